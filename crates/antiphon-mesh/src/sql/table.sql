-- What one table needs here. {n} is its number, {table} its name, {key} the columns of its primary key, and of the
-- rest as many pieces as it has of those. Run as often as one likes.
CREATE TABLE IF NOT EXISTS antiphon.gone_{n} AS SELECT {key} FROM {table} WITH NO DATA;
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = 'antiphon.gone_{n}'::regclass AND indisprimary) THEN
        ALTER TABLE antiphon.gone_{n} ADD PRIMARY KEY ({key});
    END IF;
END $do$;

CREATE OR REPLACE FUNCTION antiphon.bury_{n}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $f$
BEGIN
    INSERT INTO antiphon.gone_{n} ({key}) SELECT {key} FROM gone
        ON CONFLICT ({key}) DO UPDATE SET {first} = excluded.{first};
    RETURN NULL;
END $f$;

CREATE OR REPLACE FUNCTION antiphon.move_{n}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $f$
BEGIN
    INSERT INTO antiphon.gone_{n} ({key}) VALUES ({old_key})
        ON CONFLICT ({key}) DO UPDATE SET {first} = excluded.{first};
    RETURN NULL;
END $f$;

CREATE OR REPLACE FUNCTION antiphon.empty_{n}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $f$
BEGIN
    INSERT INTO antiphon.truncations (id) VALUES ({n}) ON CONFLICT (id) DO UPDATE SET id = excluded.id;
    RETURN NULL;
END $f$;

-- For the applier, once it has written a row: an error if the row was deleted here and its writer did not know. It
-- knew of what it had seen up to a time, and of what its own node did, which has this origin here.
CREATE OR REPLACE FUNCTION antiphon.alive_{n}({parameters}, seen timestamptz, origin oid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $f$
BEGIN
    IF EXISTS (SELECT FROM antiphon.gone_{n} g WHERE {is_key} AND antiphon.unseen(g.xmin, seen, origin))
        OR EXISTS (SELECT FROM antiphon.truncations t WHERE t.id OPERATOR(pg_catalog.=) {n}
            AND antiphon.unseen(t.xmin, seen, origin)) THEN
        RAISE EXCEPTION 'antiphon: this row was deleted' USING ERRCODE = 'AN001';
    END IF;
END $f$;

DROP TRIGGER IF EXISTS antiphon_bury ON {table};
CREATE TRIGGER antiphon_bury AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION antiphon.bury_{n}();
DROP TRIGGER IF EXISTS antiphon_move ON {table};
CREATE TRIGGER antiphon_move AFTER UPDATE OF {key} ON {table}
    FOR EACH ROW WHEN (({old_key}) IS DISTINCT FROM ({new_key})) EXECUTE FUNCTION antiphon.move_{n}();
DROP TRIGGER IF EXISTS antiphon_empty ON {table};
CREATE TRIGGER antiphon_empty AFTER TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION antiphon.empty_{n}();
