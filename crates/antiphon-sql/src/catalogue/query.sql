-- What the names of this database mean to one who asks whether a statement only reads: one row a kind, schema
-- and name, six texts each. PostgreSQL 14 to 18. It reads catalogues only, and takes no lock but theirs.
--   verdict  safe, or what is wrong with it: volatile, unlogged, foreign, sequence, system_view
--   body     what it is made of, which has to be safe too: SQL for relations and types, code for the others
--   origin   the extension that it is of
WITH RECURSIVE
-- Types whose values cannot be read, written or cast without calling something volatile; and what holds them.
odd_type (oid) AS (
    SELECT t.oid
    FROM pg_catalog.pg_type t
    WHERE t.typtype <> 'p' AND EXISTS (
        SELECT FROM pg_catalog.pg_proc p
        WHERE p.provolatile = 'v' AND p.oid = ANY (
            ARRAY[t.typinput, t.typoutput, t.typreceive, t.typsend, t.typmodin, t.typmodout]::pg_catalog.oid[]))
  UNION
    SELECT side.type
    FROM pg_catalog.pg_cast c
    JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc AND p.provolatile = 'v'
    CROSS JOIN LATERAL (VALUES (c.castsource, c.casttarget), (c.casttarget, c.castsource)) side (type, other)
    -- Of a built-in and another, the other: both are of the first 16384 only if somebody wants harm.
    WHERE side.type >= 16384 OR side.other < 16384
  UNION
    SELECT t.oid
    FROM odd_type o
    JOIN pg_catalog.pg_type t ON t.typelem = o.oid OR t.typbasetype = o.oid
),
-- Relations that a follower does not have or that are elsewhere, and those that inherit or partition over them.
odd_relation (oid, why) AS (
    SELECT c.oid, CASE WHEN c.relkind = 'f' THEN 'foreign' WHEN c.relkind = 'S' THEN 'sequence' ELSE 'unlogged' END
    FROM pg_catalog.pg_class c
    WHERE c.relkind IN ('f', 'S') OR c.relpersistence = 'u'
  UNION
    SELECT a.attrelid, 'volatile'
    FROM pg_catalog.pg_attribute a
    WHERE a.atttypid IN (SELECT o.oid FROM odd_type o)
  UNION
    SELECT i.inhparent, o.why
    FROM odd_relation o
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = o.oid
),
called AS (
    SELECT p.oid, p.proname, n.nspname, p.pronargs, p.pronargdefaults, p.proargtypes,
        n.nspname IN ('pg_catalog', 'information_schema') AS built_in,
        p.provolatile = 'v' OR EXISTS (
            SELECT FROM pg_catalog.pg_aggregate g
            JOIN pg_catalog.pg_proc s ON s.oid = ANY (ARRAY[g.aggtransfn, g.aggfinalfn, g.aggcombinefn,
                g.aggserialfn, g.aggdeserialfn, g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn]::pg_catalog.oid[])
            WHERE g.aggfnoid = p.oid AND s.provolatile = 'v') AS volatile,
        CASE WHEN n.nspname NOT IN ('pg_catalog', 'information_schema') THEN pg_catalog.concat_ws(' ',
            CASE WHEN l.lanname IN ('sql', 'plpgsql')
                THEN coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc) END,
            pg_catalog.pg_get_expr(p.proargdefaults, 0)) END AS body
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.prokind <> 'p'
)
SELECT 'function' AS kind, f.nspname::text AS schema, f.proname::text AS name,
    CASE WHEN pg_catalog.bool_or(f.volatile) THEN 'volatile' ELSE 'safe' END AS verdict,
    coalesce(pg_catalog.string_agg(f.body, ' '), '') AS body,
    coalesce(pg_catalog.min(e.extname), '')::text AS origin
FROM called f
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = f.oid
    AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e'
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
GROUP BY f.nspname, f.proname
UNION ALL
-- Functions that x.name calls.
SELECT DISTINCT 'field', f.nspname::text, f.proname::text, 'safe', pg_catalog.quote_ident(f.proname) || '(', ''
FROM called f
JOIN pg_catalog.pg_type t ON t.oid = f.proargtypes[0]
WHERE NOT f.built_in AND f.pronargs >= 1 AND f.pronargs - f.pronargdefaults <= 1 AND t.typtype IN ('c', 'd', 'p')
UNION ALL
SELECT 'operator', n.nspname::text, o.oprname::text,
    CASE WHEN pg_catalog.bool_or(f.volatile) THEN 'volatile' ELSE 'safe' END,
    coalesce(pg_catalog.string_agg(pg_catalog.quote_ident(f.proname) || '(', ' ') FILTER (WHERE NOT f.built_in), ''),
    ''
FROM pg_catalog.pg_operator o
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
JOIN called f ON f.oid = o.oprcode
GROUP BY n.nspname, o.oprname
UNION ALL
SELECT 'type', n.nspname::text, t.typname::text,
    CASE WHEN t.oid IN (SELECT o.oid FROM odd_type o) THEN 'volatile' ELSE 'safe' END,
    CASE WHEN t.typtype = 'd' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        THEN pg_catalog.concat('SELECT NULL::', pg_catalog.format_type(t.typbasetype, t.typtypmod), (
            SELECT pg_catalog.string_agg(', (' || pg_catalog.pg_get_expr(k.conbin, 0) || ')', '')
            FROM pg_catalog.pg_constraint k
            WHERE k.contypid = t.oid AND k.contype = 'c'))
        ELSE '' END,
    ''
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE t.typtype <> 'p' AND NOT (t.typelem <> 0 AND t.typcategory = 'A')
    AND n.nspname !~ '^pg_(toast|temp|toast_temp)'
UNION ALL
SELECT 'relation', n.nspname::text, c.relname::text,
    coalesce((SELECT pg_catalog.min(o.why) FROM odd_relation o WHERE o.oid = c.oid),
        CASE WHEN c.relkind = 'v' AND n.nspname = 'pg_catalog' THEN 'system_view' ELSE 'safe' END),
    coalesce(CASE
        WHEN n.nspname IN ('pg_catalog', 'information_schema') THEN NULL
        WHEN c.relkind = 'v' THEN pg_catalog.pg_get_viewdef(c.oid)
        WHEN c.relrowsecurity THEN (
            SELECT 'SELECT ' || pg_catalog.string_agg('(' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')', ', ')
            FROM pg_catalog.pg_policy p
            WHERE p.polrelid = c.oid AND p.polcmd IN ('*', 'r') AND p.polqual IS NOT NULL)
        END, ''),
    ''
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
-- Temporary ones are of other sessions: who has one of its own is tied to the leader anyway.
WHERE c.relkind IN ('r', 'v', 'm', 'S', 'f', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_toast'
