-- Columns that several leaders may write at the same time and that merge without losing a write: CRDTs.
--
-- Each type is a domain over jsonb whose CHECK accepts what these functions make and nothing else. A state is an object
-- that names its kind, so that no state gets into a column of another kind:
--
--     g_counter      {"g_counter": {"1": 5, "2": 7}}                   what each node has added
--     pn_counter     {"pn_counter": {"1": 5, "-1": 2}}                 "-1": what node 1 has subtracted
--     g_set          {"g_set": {"\"apple\"": null}}                    the JSON text of each element
--     or_set         {"or_set": {"\"apple\"": {"1": 3}}, "seen": {"1": 4, "2": 9}}
--     lww_register   {"lww_register": [1790000000000000, 1, "value"]}  microseconds, node, value; [] before the first
--     mv_register    {"mv_register": {"1": [4, "value"]}, "seen": {"1": 4, "2": 9}}
--
-- A dot is the n-th write of a node to this row. An or_set has with each element the dots of the adds that it stands for, a
-- mv_register with each value the dot that wrote it; "seen" says up to which dot of each node a state knows everything. A
-- dot that a state has seen and does not hold was removed or overwritten there, so no tombstones are kept.
--
-- Every entry has one writer: its node, whose transactions the row's lock puts in a line. Of two entries for one node the
-- greater is therefore the later one and includes the other, and that is what a merge takes. It breaks if two servers
-- have one number, or if a server goes back in time and its peers know what it forgot: a copy or a restored backup
-- that is to write needs a number of its own that was never used before.
--
-- The entry `true` stands for a node that left and was compacted: it is above every number, as jsonb orders them. What
-- such a node counted is in the entries "0" and "-0", whose number no node has.
--
-- antiphon.node_id() is the number of this node, from 1 to 999999999. In a database that is no node yet, a schema with such
-- columns can be made all the same; their first write needs the number. To be sent as one message, or within a transaction.
--
-- Functions that take something beside a state are polymorphic and look at the kind: overloads by domain would be ambiguous
-- to the parser as soon as the other argument is a literal or a parameter. Most are in plpgsql and not in SQL, as measured:
-- before PostgreSQL 18 a function in SQL that is not inlined is planned anew by every statement (90 µs and more), and one that
-- is inlined lengthens the planning of every statement (increment by 200 µs) to save 1 µs of its execution.

SELECT pg_catalog.set_config('antiphon.search_path', pg_catalog.current_setting('search_path'), true);
SET LOCAL search_path = pg_catalog, pg_temp;

-- --- What all have in common ------------------------------------------------------------------------------------------

DO $$
BEGIN
  IF to_regnamespace('antiphon') IS NULL THEN
    CREATE SCHEMA antiphon;
  END IF;
  IF to_regprocedure('antiphon.node_id()') IS NULL THEN
    CREATE FUNCTION antiphon.node_id() RETURNS smallint LANGUAGE sql STABLE PARALLEL SAFE RETURN NULL::smallint;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION antiphon.crdt_refuse_number() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'this server has no number of a node yet' USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;

-- The key of this node's entries.
CREATE OR REPLACE FUNCTION antiphon.crdt_node() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(nullif(greatest(antiphon.node_id(), 0), 0)::text, antiphon.crdt_refuse_number());

-- Ends a write of a node that its peers hold for gone: they would not take it.
CREATE OR REPLACE FUNCTION antiphon.crdt_refuse_gone(node text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'node % has left for good: its entry in this row is compacted', node
    USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give this node a number that was never used before.';
END $$;

-- "seen" with this node's next dot.
CREATE OR REPLACE FUNCTION antiphon.crdt_seen_next(seen jsonb, node text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF seen->node = 'true' THEN
    PERFORM antiphon.crdt_refuse_gone(node);
  END IF;
  RETURN jsonb_set(seen, ARRAY[node], to_jsonb(coalesce((seen->>node)::bigint, 0) + 1));
END $$;

-- Two objects, of each entry the greater value. A loop, since a query costs more than the few entries.
CREATE OR REPLACE FUNCTION antiphon.crdt_greatest(a jsonb, b jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  merged jsonb := a || b;
  entries jsonb := jsonb_path_query_array(a, '$.keyvalue().key');
  entry text;
BEGIN
  FOR i IN 0 .. jsonb_array_length(entries) - 1 LOOP
    entry := entries->>i;
    IF a->entry > b->entry THEN
      merged := jsonb_set(merged, ARRAY[entry], a->entry);
    END IF;
  END LOOP;
  RETURN merged;
END $$;

-- Which of my dots stay when I meet a state that holds `theirs` and has seen `their_seen`: those that it holds too, and those
-- that it has not seen. A dot is a number, or an array of the number and what it wrote.
CREATE OR REPLACE FUNCTION antiphon.crdt_surviving(mine jsonb, theirs jsonb, their_seen jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  surviving jsonb := coalesce(mine, '{}');
  nodes jsonb := jsonb_path_query_array(surviving, '$.keyvalue().key');
  node text;
  dot jsonb;
BEGIN
  FOR i IN 0 .. jsonb_array_length(nodes) - 1 LOOP
    node := nodes->>i;
    dot := mine->node;
    IF theirs->node IS DISTINCT FROM dot
      AND their_seen->node >= (CASE jsonb_typeof(dot) WHEN 'array' THEN dot->0 ELSE dot END) THEN
      surviving := surviving - node;
    END IF;
  END LOOP;
  RETURN surviving;
END $$;

-- An element as the key of an object. 1.0 is 1.
CREATE OR REPLACE FUNCTION antiphon.crdt_key(element jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE jsonb_typeof(element) WHEN 'number' THEN trim_scale(element::numeric)::text ELSE element::text END;

CREATE OR REPLACE FUNCTION antiphon.crdt_is_key(key text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN key = CASE WHEN starts_with(key, '"') THEN key::jsonb::text ELSE antiphon.crdt_key(key::jsonb) END;

-- The elements of a set: numbers by size, then the others by the bytes of their JSON text, on every node alike.
CREATE OR REPLACE FUNCTION antiphon.crdt_elements(elements jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT coalesce(jsonb_agg(key::jsonb ORDER BY
      CASE jsonb_typeof(key::jsonb) WHEN 'number' THEN key::numeric END NULLS LAST, key COLLATE "C"), '[]')
    FROM jsonb_object_keys(elements) AS keys(key));
END $$;

-- --- Well-formed states -----------------------------------------------------------------------------------------------

-- The text of a jsonb is canonical (order of keys, one space, no leading zeros), so one expression decides exactly.
CREATE OR REPLACE FUNCTION antiphon.crdt_is_g_counter(state jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN state::text
    ~ '^[{]"g_counter": [{](?:(?:"0": [0-9]+|"[1-9][0-9]{0,8}": (?:[0-9]+|true))(?:, )?)*[}][}]$'
  AND NOT state @? '$.g_counter.* ? (@ > 9223372036854775807)';

CREATE OR REPLACE FUNCTION antiphon.crdt_is_pn_counter(state jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN state::text
    ~ '^[{]"pn_counter": [{](?:(?:"-?0": [0-9]+|"-?[1-9][0-9]{0,8}": (?:[0-9]+|true))(?:, )?)*[}][}]$'
  AND NOT state @? '$.pn_counter.* ? (@ > 9223372036854775807)';

-- The number of a dot: from 1, and a bigint.
CREATE OR REPLACE FUNCTION antiphon.crdt_is_dot(dot jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN dot::text ~ '^[1-9][0-9]*$' AND dot <= '9223372036854775807';

CREATE OR REPLACE FUNCTION antiphon.crdt_is_seen(seen jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN seen::text ~ '^[{](?:"[1-9][0-9]{0,8}": (?:[1-9][0-9]*|true)(?:, )?)*[}]$'
  AND NOT seen @? '$.* ? (@ > 9223372036854775807)';

CREATE OR REPLACE FUNCTION antiphon.crdt_is_g_set(state jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF state::text !~ '^[{]"g_set": [{](?:"(?:[^"\\]|\\.)*": null(?:, )?)*[}][}]$' THEN
    RETURN false;
  END IF;
  RETURN NOT EXISTS (SELECT FROM jsonb_object_keys(state->'g_set') AS keys(key) WHERE NOT antiphon.crdt_is_key(key));
END $$;

-- Every element has a dot, every dot is of a node in "seen", and none is above what was seen of that node.
CREATE OR REPLACE FUNCTION antiphon.crdt_is_or_set(state jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  seen jsonb := state->'seen';
  nodes jsonb;
  node text;
BEGIN
  IF antiphon.crdt_is_seen(seen) IS NOT TRUE OR state - 'or_set' - 'seen' <> '{}' THEN
    RETURN false;
  END IF;
  nodes := jsonb_path_query_array(seen, '$.keyvalue().key');
  IF (state->'or_set')::text ~ format('^[{](?:"(?:[^"\\]|\\.)*": [{](?:"(?:%s)": [1-9][0-9]*(?:, )?)+[}](?:, )?)*[}]$',
    translate(nodes::text, ',[]" ', '|')) IS NOT TRUE THEN
    RETURN false;
  END IF;
  FOR i IN 0 .. jsonb_array_length(nodes) - 1 LOOP
    node := nodes->>i;
    IF jsonb_path_exists(state, format('$.or_set.*."%s" ? (@ > %s)', node,
      CASE seen->node WHEN 'true' THEN '9223372036854775807' ELSE seen->node END)::jsonpath) THEN
      RETURN false;
    END IF;
  END LOOP;
  RETURN NOT EXISTS (SELECT FROM jsonb_object_keys(state->'or_set') AS keys(key) WHERE NOT antiphon.crdt_is_key(key));
END $$;

CREATE OR REPLACE FUNCTION antiphon.crdt_is_lww_register(state jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN state IS NULL THEN NULL
  WHEN jsonb_typeof(state) <> 'object' OR state - 'lww_register' <> '{}'
    OR jsonb_typeof(state->'lww_register') IS DISTINCT FROM 'array' THEN false
  WHEN state->'lww_register' = '[]' THEN true
  ELSE jsonb_array_length(state->'lww_register') = 3 AND antiphon.crdt_is_dot(state->'lww_register'->0)
    AND (state->'lww_register'->1)::text ~ '^[1-9][0-9]{0,8}$' END;

CREATE OR REPLACE FUNCTION antiphon.crdt_is_mv_register(state jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  seen jsonb := state->'seen';
  nodes jsonb;
  dot jsonb;
BEGIN
  IF jsonb_typeof(state) <> 'object' OR jsonb_typeof(state->'mv_register') IS DISTINCT FROM 'object'
    OR antiphon.crdt_is_seen(seen) IS NOT TRUE OR state - 'mv_register' - 'seen' <> '{}' THEN
    RETURN false;
  END IF;
  nodes := jsonb_path_query_array(state, '$.mv_register.keyvalue().key');
  FOR i IN 0 .. jsonb_array_length(nodes) - 1 LOOP
    dot := state->'mv_register'->(nodes->>i);
    IF jsonb_typeof(dot) <> 'array' OR jsonb_array_length(dot) <> 2 OR NOT antiphon.crdt_is_dot(dot->0)
      OR (seen->(nodes->>i) >= dot->0) IS NOT TRUE THEN
      RETURN false;
    END IF;
  END LOOP;
  RETURN true;
END $$;

DO $$
DECLARE
  kind text;
BEGIN
  FOREACH kind IN ARRAY '{g_counter,pn_counter,g_set,or_set,lww_register,mv_register}'::text[] LOOP
    IF to_regtype('antiphon.' || kind) IS NULL THEN
      EXECUTE format('CREATE DOMAIN antiphon.%1$I AS jsonb CONSTRAINT %2$I CHECK (antiphon.%3$I(VALUE))',
        kind, kind || '_is_well_formed', 'crdt_is_' || kind);
    END IF;
  END LOOP;
END $$;

COMMENT ON DOMAIN antiphon.g_counter IS 'counter that only grows; every leader may add to it';
COMMENT ON DOMAIN antiphon.pn_counter IS 'counter that every leader may add to and subtract from';
COMMENT ON DOMAIN antiphon.g_set IS 'set that only grows';
COMMENT ON DOMAIN antiphon.or_set IS 'set in which an add wins over a remove that did not see it';
COMMENT ON DOMAIN antiphon.lww_register IS 'value of which the last write wins';
COMMENT ON DOMAIN antiphon.mv_register IS 'value that keeps every one of the writes that did not see each other';

-- --- Empty states, fit for a DEFAULT ----------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION antiphon.g_counter() RETURNS antiphon.g_counter
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '{"g_counter": {}}'::antiphon.g_counter;

CREATE OR REPLACE FUNCTION antiphon.pn_counter() RETURNS antiphon.pn_counter
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '{"pn_counter": {}}'::antiphon.pn_counter;

CREATE OR REPLACE FUNCTION antiphon.g_set() RETURNS antiphon.g_set
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '{"g_set": {}}'::antiphon.g_set;

CREATE OR REPLACE FUNCTION antiphon.or_set() RETURNS antiphon.or_set
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '{"seen": {}, "or_set": {}}'::antiphon.or_set;

CREATE OR REPLACE FUNCTION antiphon.lww_register() RETURNS antiphon.lww_register
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '{"lww_register": []}'::antiphon.lww_register;

CREATE OR REPLACE FUNCTION antiphon.mv_register() RETURNS antiphon.mv_register
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '{"seen": {}, "mv_register": {}}'::antiphon.mv_register;

-- --- Reading ----------------------------------------------------------------------------------------------------------

-- A total that is more than a bigint holds is an error.
CREATE OR REPLACE FUNCTION antiphon.crdt_total(counts jsonb) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  entries jsonb := jsonb_path_query_array(counts, '$.keyvalue() ? (@.value.type() == "number")');
  total numeric := 0;
BEGIN
  FOR i IN 0 .. jsonb_array_length(entries) - 1 LOOP
    total := total + CASE WHEN starts_with(entries->i->>'key', '-') THEN -1 ELSE 1 END * (entries->i->>'value')::numeric;
  END LOOP;
  RETURN total;
END $$;

CREATE OR REPLACE FUNCTION antiphon.value(counter antiphon.g_counter) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN antiphon.crdt_total(counter->'g_counter');

CREATE OR REPLACE FUNCTION antiphon.value(counter antiphon.pn_counter) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN antiphon.crdt_total(counter->'pn_counter');

CREATE OR REPLACE FUNCTION antiphon.value("set" antiphon.g_set) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN antiphon.crdt_elements("set"->'g_set');

CREATE OR REPLACE FUNCTION antiphon.value("set" antiphon.or_set) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN antiphon.crdt_elements("set"->'or_set');

-- NULL before the first value.
CREATE OR REPLACE FUNCTION antiphon.value(register antiphon.lww_register) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN nullif(register->'lww_register'->2, 'null');

-- All values that no later write has seen, in the order of their text.
CREATE OR REPLACE FUNCTION antiphon.value(register antiphon.mv_register) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT coalesce(jsonb_agg(json::jsonb ORDER BY json COLLATE "C"), '[]')
    FROM (SELECT DISTINCT (dot->1)::text AS json FROM jsonb_each(register->'mv_register') AS dots(node, dot)) AS jsons);
END $$;

-- Stable, not immutable, because the JSON of a time depends on the session's TimeZone.
CREATE OR REPLACE FUNCTION antiphon.contains("set" jsonb, element anycompatible) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF "set" ?| '{or_set,g_set}' OR "set" IS NULL THEN
    RETURN coalesce("set"->'or_set', "set"->'g_set') ? antiphon.crdt_key(to_jsonb(element));
  END IF;
  RAISE EXCEPTION 'antiphon.contains takes a g_set or an or_set' USING ERRCODE = 'invalid_parameter_value';
END $$;

-- --- Writing ----------------------------------------------------------------------------------------------------------

-- More in one entry than a bigint holds is an error.
CREATE OR REPLACE FUNCTION antiphon.increment(counter anyelement, by bigint DEFAULT 1) RETURNS anyelement
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  kind text := CASE WHEN counter ? 'pn_counter' THEN 'pn_counter' WHEN counter ? 'g_counter' THEN 'g_counter' END;
  node text := antiphon.crdt_node();
  entry text := CASE WHEN by < 0 THEN '-' || node ELSE node END;
BEGIN
  IF counter IS NULL THEN
    RETURN NULL;
  ELSIF kind IS NULL THEN
    RAISE EXCEPTION 'only a g_counter or a pn_counter counts' USING ERRCODE = 'invalid_parameter_value';
  ELSIF by IS NULL THEN
    RAISE EXCEPTION 'a counter cannot count by NULL' USING ERRCODE = 'null_value_not_allowed';
  ELSIF by < 0 AND kind = 'g_counter' THEN
    RAISE EXCEPTION 'a g_counter only grows'
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use antiphon.pn_counter for what also goes down.';
  ELSIF counter->kind->node = 'true' THEN
    PERFORM antiphon.crdt_refuse_gone(node);
  END IF;
  RETURN jsonb_set(counter, ARRAY[kind, entry], to_jsonb(coalesce((counter->kind->>entry)::bigint, 0) + abs(by)));
END $$;

CREATE OR REPLACE FUNCTION antiphon.decrement(counter anyelement, by bigint DEFAULT 1) RETURNS anyelement
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF counter ? 'g_counter' THEN
    RAISE EXCEPTION 'a g_counter only grows'
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use antiphon.pn_counter for what also goes down.';
  END IF;
  RETURN antiphon.increment(counter, -by);
END $$;

-- In an or_set the new dot stands for all earlier adds of the element too: this node has seen them.
CREATE OR REPLACE FUNCTION antiphon.add("set" anyelement, element anycompatible) RETURNS anyelement
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  key text := antiphon.crdt_key(to_jsonb(element));
  node text;
  seen jsonb;
BEGIN
  IF "set" IS NULL THEN
    RETURN NULL;
  ELSIF key IS NULL THEN
    RAISE EXCEPTION 'NULL cannot be an element' USING ERRCODE = 'null_value_not_allowed';
  ELSIF "set" ? 'or_set' THEN
    node := antiphon.crdt_node();
    seen := antiphon.crdt_seen_next("set"->'seen', node);
    RETURN jsonb_set(jsonb_set("set", '{seen}', seen), ARRAY['or_set', key], jsonb_build_object(node, seen->node));
  ELSIF "set" ? 'g_set' THEN
    RETURN jsonb_set("set", ARRAY['g_set', key], 'null');
  END IF;
  RAISE EXCEPTION 'antiphon.add takes a g_set or an or_set' USING ERRCODE = 'invalid_parameter_value';
END $$;

-- What was seen stays seen: a merge needs to know no more of a removed element.
CREATE OR REPLACE FUNCTION antiphon.remove("set" anyelement, element anycompatible) RETURNS anyelement
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  key text := antiphon.crdt_key(to_jsonb(element));
BEGIN
  IF "set" IS NULL THEN
    RETURN NULL;
  ELSIF key IS NULL THEN
    RAISE EXCEPTION 'NULL cannot be an element' USING ERRCODE = 'null_value_not_allowed';
  ELSIF "set" ? 'or_set' THEN
    RETURN "set" #- ARRAY['or_set', key];
  ELSIF "set" ? 'g_set' THEN
    RAISE EXCEPTION 'a g_set only grows'
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Use antiphon.or_set for elements that are removed.';
  END IF;
  RAISE EXCEPTION 'antiphon.remove takes an or_set' USING ERRCODE = 'invalid_parameter_value';
END $$;

-- A lww_register's new time is later than the one it overwrites, also if this node's clock is behind that.
CREATE OR REPLACE FUNCTION antiphon.assign(register anyelement, value anycompatible) RETURNS anyelement
LANGUAGE plpgsql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  json jsonb := coalesce(to_jsonb(value), 'null');
  node text := antiphon.crdt_node();
  seen jsonb;
BEGIN
  IF register IS NULL THEN
    RETURN NULL;
  ELSIF register ? 'lww_register' THEN
    RETURN jsonb_build_object('lww_register', jsonb_build_array(greatest(
      (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, (register->'lww_register'->>0)::bigint + 1),
      node::bigint, json));
  ELSIF register ? 'mv_register' THEN
    seen := antiphon.crdt_seen_next(register->'seen', node);
    RETURN jsonb_build_object('seen', seen,
      'mv_register', jsonb_build_object(node, jsonb_build_array(seen->node, json)));
  END IF;
  RAISE EXCEPTION 'antiphon.assign takes a lww_register or a mv_register' USING ERRCODE = 'invalid_parameter_value';
END $$;

-- --- Merging ----------------------------------------------------------------------------------------------------------

-- Counts with these entries added to "0" and "-0", and `true` in their place.
CREATE OR REPLACE FUNCTION antiphon.crdt_folded(counts jsonb, entries jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  entry text;
  fold text;
BEGIN
  FOR i IN 0 .. jsonb_array_length(entries) - 1 LOOP
    entry := entries->>i;
    IF counts->entry <> 'true' THEN
      fold := CASE WHEN starts_with(entry, '-') THEN '-0' ELSE '0' END;
      counts := counts || jsonb_build_object(entry, true,
        fold, coalesce((counts->>fold)::bigint, 0) + (counts->>entry)::bigint);
    END IF;
  END LOOP;
  RETURN counts;
END $$;

-- What is folded in one state has to be folded in the other before the folds compare.
CREATE OR REPLACE FUNCTION antiphon.merge_counter(a jsonb, b jsonb, kind text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  ours jsonb := a->kind;
  theirs jsonb := b->kind;
BEGIN
  IF ours ?| '{0,-0}' OR theirs ?| '{0,-0}' THEN
    ours := antiphon.crdt_folded(ours, jsonb_path_query_array(theirs, '$.keyvalue() ? (@.value == true).key'));
    theirs := antiphon.crdt_folded(theirs, jsonb_path_query_array(ours, '$.keyvalue() ? (@.value == true).key'));
  END IF;
  RETURN jsonb_build_object(kind, antiphon.crdt_greatest(ours, theirs));
END $$;

CREATE OR REPLACE FUNCTION antiphon.merge_g_set(a jsonb, b jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN jsonb_set(a, '{g_set}', (a->'g_set') || (b->'g_set'));

-- OFFSET keeps the planner from writing the dots' expression into both places that use it.
CREATE OR REPLACE FUNCTION antiphon.merge_or_set(a jsonb, b jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT jsonb_build_object('seen', antiphon.crdt_greatest(a->'seen', b->'seen'),
      'or_set', coalesce(jsonb_object_agg(key, dots) FILTER (WHERE dots <> '{}'), '{}'))
    FROM (SELECT key, CASE WHEN ours.value = theirs.value THEN ours.value
        ELSE antiphon.crdt_surviving(ours.value, theirs.value, b->'seen')
          || antiphon.crdt_surviving(theirs.value, ours.value, a->'seen') END AS dots
      FROM jsonb_each(a->'or_set') AS ours FULL JOIN jsonb_each(b->'or_set') AS theirs USING (key) OFFSET 0) AS elements);
END $$;

-- jsonb orders arrays of one length by their elements: time, then node. The empty one is before all.
CREATE OR REPLACE FUNCTION antiphon.merge_lww_register(a jsonb, b jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN greatest(a, b);

CREATE OR REPLACE FUNCTION antiphon.merge_mv_register(a jsonb, b jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN jsonb_build_object('seen', antiphon.crdt_greatest(a->'seen', b->'seen'), 'mv_register',
    antiphon.crdt_surviving(a->'mv_register', b->'mv_register', b->'seen')
      || antiphon.crdt_surviving(b->'mv_register', a->'mv_register', a->'seen'));
END $$;

-- Commutative, associative, idempotent. NULL merged with a state is that state.
CREATE OR REPLACE FUNCTION antiphon.merge(a anyelement, b anyelement) RETURNS anyelement
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF a IS NULL OR b IS NULL OR a = b THEN
    RETURN coalesce(a, b);
  ELSIF a ? 'pn_counter' AND b ? 'pn_counter' THEN
    RETURN antiphon.merge_counter(a, b, 'pn_counter');
  ELSIF a ? 'g_counter' AND b ? 'g_counter' THEN
    RETURN antiphon.merge_counter(a, b, 'g_counter');
  ELSIF a ? 'or_set' AND b ? 'or_set' THEN
    RETURN antiphon.merge_or_set(a, b);
  ELSIF a ? 'g_set' AND b ? 'g_set' THEN
    RETURN antiphon.merge_g_set(a, b);
  ELSIF a ? 'lww_register' AND b ? 'lww_register' THEN
    RETURN antiphon.merge_lww_register(a, b);
  ELSIF a ? 'mv_register' AND b ? 'mv_register' THEN
    RETURN antiphon.merge_mv_register(a, b);
  END IF;
  RAISE EXCEPTION 'only two states of one kind merge' USING ERRCODE = 'invalid_parameter_value';
END $$;

-- --- Compacting -------------------------------------------------------------------------------------------------------

-- Entries of nodes that left for good. Precondition: every node has applied every change of them. Then states that are
-- compacted and states that are not merge as before, so that one node may do it, as an ordinary update.
CREATE OR REPLACE FUNCTION antiphon.compact(state anyelement, gone integer[]) RETURNS anyelement
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  kind text := CASE WHEN state ? 'pn_counter' THEN 'pn_counter' WHEN state ? 'g_counter' THEN 'g_counter' END;
  compacted jsonb := state;
  node integer;
BEGIN
  FOREACH node IN ARRAY gone LOOP
    IF node >= 1 IS NOT TRUE THEN
      RAISE EXCEPTION 'no node has the number %', coalesce(node::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    ELSIF kind IS NOT NULL THEN
      compacted := jsonb_build_object(kind,
        antiphon.crdt_folded(compacted->kind, jsonb_build_array(node::text, '-' || node)));
    ELSIF compacted->'seen' ? node::text THEN
      compacted := jsonb_set(compacted, ARRAY['seen', node::text], 'true');
    END IF;
  END LOOP;
  RETURN compacted;
END $$;

-- Drops what compact left of these nodes, where no element or value is theirs. Precondition: every node has applied the
-- compacted state, and holds this row as all others do.
CREATE OR REPLACE FUNCTION antiphon.forget(state anyelement, gone integer[]) RETURNS anyelement
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  kind text := CASE WHEN state ? 'pn_counter' THEN 'pn_counter' WHEN state ? 'g_counter' THEN 'g_counter' ELSE 'seen' END;
  forgotten jsonb := state;
  entry text;
BEGIN
  FOREACH entry IN ARRAY gone::text[] || ARRAY(SELECT '-' || node FROM unnest(gone) AS nodes(node)) LOOP
    IF forgotten->kind->entry = 'true' AND NOT coalesce(state->'mv_register' ? entry, false)
      AND NOT coalesce(jsonb_path_exists(state->'or_set', format('$.*."%s"', entry)::jsonpath), false) THEN
      forgotten := forgotten #- ARRAY[kind, entry];
    END IF;
  END LOOP;
  RETURN forgotten;
END $$;

-- --- For everybody ----------------------------------------------------------------------------------------------------

GRANT USAGE ON SCHEMA antiphon TO PUBLIC;

DO $$
DECLARE
  made regprocedure;
BEGIN
  FOR made IN SELECT oid FROM pg_proc WHERE pronamespace = 'antiphon'::regnamespace AND (starts_with(proname, 'crdt_')
    OR proname = ANY ('{g_counter,pn_counter,g_set,or_set,lww_register,mv_register,value,contains,increment,decrement,
      add,remove,assign,merge,merge_counter,merge_g_set,merge_or_set,merge_lww_register,merge_mv_register,compact,forget}')) LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', made);
  END LOOP;
END $$;

SELECT set_config('search_path', current_setting('antiphon.search_path'), true);
