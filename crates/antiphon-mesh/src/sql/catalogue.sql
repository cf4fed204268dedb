SELECT pg_catalog.json_build_object(
    'id', m.id,
    'oid', r.oid::bigint,
    'schema', n.nspname,
    'name', r.relname,
    'resolver', m.resolver,
    'deltas', coalesce(pg_catalog.to_jsonb(m) -> 'deltas', '[]'),
    'ledger', (
        SELECT c.relname FROM antiphon.tables l JOIN pg_catalog.pg_class c ON c.oid = l.rel
        WHERE (pg_catalog.to_jsonb(l) ->> 'ledger_of')::integer = m.id),
    'ledger_of', pg_catalog.to_jsonb(m) -> 'ledger_of',
    'columns', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname,
            'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
            'array', (SELECT y.typcategory = 'A' FROM pg_catalog.pg_type y WHERE y.oid = a.atttypid),
            'merges', EXISTS (
                SELECT FROM pg_catalog.pg_type y
                WHERE y.oid = a.atttypid AND y.typtype = 'd' AND y.typnamespace = 'antiphon'::regnamespace),
            'identity_always', a.attidentity = 'a',
            'equals', (
                SELECT pg_catalog.format('OPERATOR(%I.%s)', s.nspname, o.oprname)
                FROM pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, nth)
                JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.nth - 1]
                JOIN pg_catalog.pg_amop p ON p.amopfamily = c.opcfamily AND p.amopstrategy = 3
                    AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype
                JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
                JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
                WHERE k.attnum = a.attnum LIMIT 1)
            ) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    'generated', (
        SELECT coalesce(pg_catalog.json_agg(a.attname), '[]')
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''),
    'key', (
        SELECT pg_catalog.json_agg((
            SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute b
            WHERE b.attrelid = r.oid AND b.attnum > 0 AND b.attnum < k.attnum AND NOT b.attisdropped
                AND b.attgenerated = '') ORDER BY k.nth)
        FROM pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, nth)
        WHERE k.nth <= i.indnkeyatts)
)::text
FROM antiphon.tables m
JOIN pg_catalog.pg_class r ON r.oid = m.rel
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
JOIN pg_catalog.pg_index i ON i.indrelid = r.oid AND i.indisprimary
ORDER BY m.id
