-- What a table needs here so that changes of some columns add up. {n} is its number, {table} its name, {ledger} its
-- ledger, {k} the ledger's columns for the key, {d} those for what is counted, and of the rest as many pieces as there
-- are of those. Run as often as one likes.
CREATE OR REPLACE FUNCTION antiphon.count_{n}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $f$
DECLARE
    own CONSTANT smallint := antiphon.node_id();
    last record;
BEGIN
    SELECT l.epoch, l.epoch_node INTO last FROM {ledger} l WHERE {is_new_key}
        ORDER BY l.epoch DESC, l.epoch_node DESC LIMIT 1;
    IF TG_ARGV[0] = 'begin' OR last.epoch IS NULL THEN
        INSERT INTO {ledger} ({k}, node, epoch, epoch_node, {d})
            VALUES ({new_key}, own, greatest({now}, coalesce(last.epoch, 0) + 1), own, {new_d})
            ON CONFLICT ({k}, node) DO UPDATE SET epoch = excluded.epoch, epoch_node = excluded.epoch_node, {replaced};
    ELSE
        INSERT INTO {ledger} AS l ({k}, node, epoch, epoch_node, {d})
            VALUES ({new_key}, own, last.epoch, last.epoch_node, {differences})
            ON CONFLICT ({k}, node) DO UPDATE
            SET epoch = excluded.epoch, epoch_node = excluded.epoch_node, {added};
    END IF;
    RETURN NULL;
END $f$;

DROP TRIGGER IF EXISTS antiphon_count_begin ON {table};
CREATE TRIGGER antiphon_count_begin AFTER INSERT ON {table}
    FOR EACH ROW EXECUTE FUNCTION antiphon.count_{n}('begin');
DROP TRIGGER IF EXISTS antiphon_count_move ON {table};
CREATE TRIGGER antiphon_count_move AFTER UPDATE ON {table}
    FOR EACH ROW WHEN (({old_key}) IS DISTINCT FROM ({new_key})) EXECUTE FUNCTION antiphon.count_{n}('begin');
DROP TRIGGER IF EXISTS antiphon_count ON {table};
CREATE TRIGGER antiphon_count AFTER UPDATE ON {table}
    FOR EACH ROW WHEN (NOT (({old_key}) IS DISTINCT FROM ({new_key})) AND ({old_d}) IS DISTINCT FROM ({new_d}))
    EXECUTE FUNCTION antiphon.count_{n}('go on');
