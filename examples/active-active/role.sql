-- The role of the nodes: on each server, in the node's database, as a superuser. PostgreSQL 15 or newer; on 14 only a
-- superuser can be one. `psql -d shop -f role.sql`.
CREATE ROLE mesh LOGIN REPLICATION PASSWORD 'change-me';

-- It writes as somebody else wrote: with that one's origin and time, and without running triggers twice.
GRANT EXECUTE ON FUNCTION
    pg_replication_origin_create(text), pg_replication_origin_drop(text),
    pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(),
    pg_replication_origin_session_is_setup(), pg_replication_origin_xact_setup(pg_lsn, timestamptz)
    TO mesh;
GRANT SET ON PARAMETER session_replication_role TO mesh;

-- It makes the schema antiphon and a publication.
GRANT CREATE ON DATABASE shop TO mesh;

-- It publishes the tables and puts triggers on them, so it must own them or be a member of the role that does.
GRANT shop_owner TO mesh;
