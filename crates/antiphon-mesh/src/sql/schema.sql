-- What a node of a mesh keeps about it. Run as often as one likes; every statement leaves alone what is there.
CREATE SCHEMA IF NOT EXISTS antiphon;

-- Which mesh this database belongs to, and as which node. One row.
CREATE TABLE IF NOT EXISTS antiphon.mesh (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    name text NOT NULL,
    id uuid NOT NULL,
    node smallint NOT NULL,
    format integer NOT NULL DEFAULT 1,
    system_id text NOT NULL,
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- Every node that ever took part. Numbers are not given twice.
CREATE TABLE IF NOT EXISTS antiphon.nodes (
    id smallint PRIMARY KEY CHECK (id > 0),
    name text NOT NULL UNIQUE,
    connect text NOT NULL,
    state text NOT NULL CHECK (state IN ('joining', 'active', 'left')),
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- The tables whose changes are exchanged. The number names the table's tombstones and functions.
CREATE TABLE IF NOT EXISTS antiphon.tables (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rel regclass NOT NULL UNIQUE,
    resolver jsonb NOT NULL DEFAULT '"last_update_wins"'
);
-- Columns whose changes are added up, and, of the table in which that is done, the one for which.
ALTER TABLE antiphon.tables ADD COLUMN IF NOT EXISTS deltas text[] NOT NULL DEFAULT '{}';
ALTER TABLE antiphon.tables ADD COLUMN IF NOT EXISTS ledger_of integer;

-- Which tables were truncated: a tombstone for all their rows.
CREATE TABLE IF NOT EXISTS antiphon.truncations (id integer PRIMARY KEY);

-- How far each other node's log is applied here: written by the very transaction that applies.
CREATE TABLE IF NOT EXISTS antiphon.progress (
    node smallint PRIMARY KEY,
    lsn pg_lsn NOT NULL,
    committed_at timestamptz
) WITH (fillfactor = 10);

-- What the link from each other node does; for people, and for the watermarks of a node that joins.
CREATE TABLE IF NOT EXISTS antiphon.links (
    node smallint PRIMARY KEY,
    state text NOT NULL,
    message text,
    complete_to timestamptz,
    seen jsonb,
    paused boolean NOT NULL DEFAULT false,
    failed pg_lsn,
    skip pg_lsn,
    applied bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- Transactions that could not be applied and were skipped, with all that they were to do.
CREATE TABLE IF NOT EXISTS antiphon.set_aside (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    node smallint NOT NULL,
    lsn pg_lsn NOT NULL,
    committed_at timestamptz NOT NULL,
    changes jsonb NOT NULL
);

-- What met what, and how it ended.
CREATE TABLE IF NOT EXISTS antiphon.conflicts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    rel regclass NOT NULL,
    kind text NOT NULL,
    resolution text NOT NULL,
    key jsonb NOT NULL,
    local_row jsonb,
    local_node smallint,
    local_at timestamptz,
    remote_row jsonb,
    remote_node smallint NOT NULL,
    remote_at timestamptz NOT NULL,
    remote_lsn pg_lsn NOT NULL
);
CREATE INDEX IF NOT EXISTS conflicts_at ON antiphon.conflicts (at);

-- This node's number.
CREATE OR REPLACE FUNCTION antiphon.node_id() RETURNS smallint
    LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = ''
    AS 'SELECT node FROM antiphon.mesh';

-- Numbers that no other node gives out, and that grow with time: 41 bits of milliseconds since 2020, 10 of the node, 12
-- that go round.
CREATE SEQUENCE IF NOT EXISTS antiphon.snowflakes;
CREATE OR REPLACE FUNCTION antiphon.snowflake() RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = '' AS $f$
DECLARE
    node CONSTANT bigint := antiphon.node_id();
BEGIN
    IF node IS NULL OR node > 1023 THEN
        RAISE EXCEPTION 'antiphon: no snowflakes here' USING ERRCODE = '55000', HINT =
            CASE WHEN node IS NULL THEN 'Let this database take part in a mesh first.' ELSE 'Use random UUIDs: this node has number ' || node || ', and there is room for 1023.' END;
    END IF;
    RETURN ((extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint - 1577836800000) << 22
        | node << 12 | (pg_catalog.nextval('antiphon.snowflakes'::regclass) & 4095);
END $f$;

-- Whether a row was written by a transaction that a writer did not know, who had seen everything up to a time and what
-- came by an origin. What this transaction wrote itself has no time yet, and is known.
CREATE OR REPLACE FUNCTION antiphon.unseen(written xid, seen timestamptz, origin oid) RETURNS boolean
    LANGUAGE sql VOLATILE PARALLEL RESTRICTED
    AS 'SELECT coalesce(pg_catalog.pg_xact_commit_timestamp(written) OPERATOR(pg_catalog.>) seen
        AND (pg_catalog.pg_xact_commit_timestamp_origin(written)).roident OPERATOR(pg_catalog.<>) origin, false)';

-- Users' deletes write tombstones through functions that belong to the schema's owner; of the schema itself they
-- need to see nothing but its functions.
GRANT USAGE ON SCHEMA antiphon TO PUBLIC;
