-- Folding that can't be stopped by its own backlog, and rollups that know whose log they count.
--
-- Batches of deltas are weighed: a delta with many tags is worth many without. Packing and summing take their days from
-- queues, which triggers fill, instead of looking through all days. The log that is counted is the one with the triggers,
-- in whatever schema it is, and a session whose search path leads to another one is told so.
--
-- The lock on "deltas" holds writers of the log up while it is waited for: rather fail, and be tried again.
SET LOCAL lock_timeout = '10s';

-- Since when a delta waits.
ALTER TABLE litespend.deltas ADD COLUMN noted_at timestamptz DEFAULT now();

-- Who folds, counts or packs changes this row. One whose snapshot is older than the last one's work fails with 40001 and
-- begins again, instead of overlooking it.
CREATE TABLE litespend.turn (taken bigint NOT NULL);
INSERT INTO litespend.turn VALUES (0);

-- As before, but for databases whose first migrations are of an earlier wording.
CREATE OR REPLACE FUNCTION litespend.digest(word text) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE CALLED ON NULL INPUT AS $$ SELECT sha256(convert_to(word, 'UTF8')) $$;

-- The table that is counted: the one with triggers of ours. NULL where there is none, or more than one.
CREATE FUNCTION litespend.counted_table(function_name text) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN count(DISTINCT t.tgrelid) = 1 THEN min(t.tgrelid)::regclass END
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace AND p.proname = function_name
$$;

-- Whether all four triggers are on this table, on no other one, and enabled.
CREATE FUNCTION litespend.is_counted(relation regclass, function_names text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) = 4 AND COALESCE(bool_and(t.tgrelid = relation), false)
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND p.pronamespace = 'litespend'::regnamespace
      AND p.proname = ANY (function_names)
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')
$$;

-- No search path of their own: the session's says which log is meant.
CREATE OR REPLACE FUNCTION litespend.attached() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT litespend.is_counted(to_regclass('"LiteLLM_SpendLogs"'),
                                ARRAY['log_inserted', 'log_deleted', 'log_updated', 'log_truncated'])
$$;

CREATE OR REPLACE FUNCTION litespend.activity_attached() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT litespend.is_counted(to_regclass('"LiteLLM_DailyUserSpend"'), ARRAY['activity_changed'])
$$;

-- LiteLLM's daily rows beside the log that is counted.
CREATE FUNCTION litespend.daily_table() RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_regclass(format('%I."LiteLLM_DailyUserSpend"', n.nspname))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = litespend.counted_table('log_inserted')
$$;

-- Begins to count this log: the triggers, and a mark that every day is still to be counted.
CREATE FUNCTION litespend.attach(log regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    other regclass;
BEGIN
    IF log IS NULL THEN
        RAISE EXCEPTION 'there is no table "LiteLLM_SpendLogs" in the search path' USING ERRCODE = 'undefined_table';
    END IF;
    SELECT t.tgrelid::regclass INTO other FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace AND p.proname LIKE 'log\_%'
      AND t.tgrelid <> log LIMIT 1;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION 'the rollups of this database count %', other USING ERRCODE = 'object_in_use';
    END IF;
    EXECUTE format('DROP TRIGGER IF EXISTS litespend_inserted ON %s', log);
    EXECUTE format('DROP TRIGGER IF EXISTS litespend_deleted ON %s', log);
    EXECUTE format('DROP TRIGGER IF EXISTS litespend_updated ON %s', log);
    EXECUTE format('DROP TRIGGER IF EXISTS litespend_truncated ON %s', log);
    EXECUTE format($q$
        CREATE TRIGGER litespend_inserted AFTER INSERT ON %1$s
            REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_inserted();
        CREATE TRIGGER litespend_deleted AFTER DELETE ON %1$s
            REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_deleted();
        CREATE TRIGGER litespend_updated AFTER UPDATE ON %1$s
            REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT
            EXECUTE FUNCTION litespend.log_updated();
        CREATE TRIGGER litespend_truncated AFTER TRUNCATE ON %1$s
            FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_truncated();
        $q$, log);
    INSERT INTO litespend.deltas (sign, day) VALUES (0, NULL);
END $$;

CREATE OR REPLACE FUNCTION litespend.attach() RETURNS void
LANGUAGE sql AS $$ SELECT litespend.attach(to_regclass('"LiteLLM_SpendLogs"')) $$;

-- Begins to note changes, where there is such a table. What was summed before is void.
CREATE OR REPLACE FUNCTION litespend.attach_activity() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    daily regclass := litespend.daily_table();
BEGIN
    IF daily IS NULL OR litespend.is_counted(daily, ARRAY['activity_changed']) THEN
        RETURN;
    END IF;
    PERFORM litespend.detach_activity();
    EXECUTE format($q$
        CREATE TRIGGER litespend_inserted AFTER INSERT ON %1$s
            REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION litespend.activity_changed();
        CREATE TRIGGER litespend_deleted AFTER DELETE ON %1$s
            REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION litespend.activity_changed();
        CREATE TRIGGER litespend_updated AFTER UPDATE ON %1$s
            REFERENCING OLD TABLE AS removed NEW TABLE AS changed FOR EACH STATEMENT
            EXECUTE FUNCTION litespend.activity_changed();
        CREATE TRIGGER litespend_truncated AFTER TRUNCATE ON %1$s
            FOR EACH STATEMENT EXECUTE FUNCTION litespend.activity_changed();
        $q$, daily);
    INSERT INTO litespend.activity_changes VALUES (NULL);
END $$;

-- Removes the triggers with these functions, wherever they are.
CREATE FUNCTION litespend.drop_triggers(function_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT t.tgname, t.tgrelid::regclass AS relation FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                 WHERE NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace
                   AND p.proname = ANY (function_names)
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', found.tgname, found.relation);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION litespend.detach_activity() RETURNS void
LANGUAGE sql AS $$ SELECT litespend.drop_triggers(ARRAY['activity_changed']) $$;

CREATE OR REPLACE FUNCTION litespend.detach() RETURNS void
LANGUAGE sql AS $$
    SELECT litespend.drop_triggers(ARRAY['log_inserted', 'log_deleted', 'log_updated', 'log_truncated',
                                         'activity_changed'])
$$;

-- Folds deltas of days that are not dirty: at most "batch", and at most three times as many tags and long texts; at least
-- one. Returns how many. To be called in a transaction of its own, REPEATABLE READ. One at a time: a second caller returns
-- 0 at once.
CREATE OR REPLACE FUNCTION litespend.fold(batch integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    picked tid[] := '{}';
    negative date[];
    dirty date[];
    candidate record;
    weight bigint := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN 0;
    END IF;
    dirty := ARRAY(SELECT DISTINCT day FROM litespend.deltas WHERE sign = 0);
    IF array_position(dirty, NULL) IS NOT NULL THEN
        RETURN 0;
    END IF;
    -- Tags are numbered and summed one by one, and every text is hashed.
    FOR candidate IN
        SELECT ctid AS place,
               1 + COALESCE(jsonb_array_length(request_tags), 0)
               + (COALESCE(octet_length(team_id), 0) + COALESCE(octet_length(user_id), 0)
                  + COALESCE(octet_length(api_key), 0) + COALESCE(octet_length(model), 0)
                  + COALESCE(octet_length(end_user), 0) + COALESCE(pg_column_size(request_tags), 0)) / 1000 AS weight
        FROM litespend.deltas
        WHERE sign <> 0 AND day NOT IN (SELECT unnest(dirty)) LIMIT batch
    LOOP
        picked := picked || candidate.place;
        weight := weight + candidate.weight;
        EXIT WHEN weight >= batch::bigint * 3;
    END LOOP;
    IF cardinality(picked) = 0 THEN
        RETURN 0;
    END IF;
    UPDATE litespend.turn SET taken = taken + 1;
    PERFORM litespend.absorb('SELECT * FROM litespend.deltas WHERE ctid = ANY ($2)', picked, NULL);
    negative := ARRAY(SELECT DISTINCT day FROM litespend.deltas WHERE ctid = ANY (picked) AND sign < 0);
    IF cardinality(negative) > 0 THEN
        DELETE FROM litespend.day_usage WHERE day = ANY (negative) AND requests = 0;
        DELETE FROM litespend.day_customer WHERE day = ANY (negative) AND requests = 0;
        DELETE FROM litespend.day_tag WHERE day = ANY (negative) AND log_count = 0;
        DELETE FROM litespend.day_tag_owner WHERE day = ANY (negative) AND log_count = 0;
    END IF;
    DELETE FROM litespend.deltas WHERE ctid = ANY (picked);
    RETURN cardinality(picked);
END $$;

-- Counts one dirty day again from the log, newest first; returns the day, or NULL where none is dirty, another caller is
-- at work, or no log is counted. To be called in a transaction of its own, REPEATABLE READ: the log, its deltas and the
-- day tables are then of one moment.
CREATE OR REPLACE FUNCTION litespend.recount() RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen date;
    log regclass := litespend.counted_table('log_inserted');
BEGIN
    IF log IS NULL OR NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND day IS NULL) THEN
        -- Every day is dirty: what was counted is void, and each day of the log is marked by itself.
        UPDATE litespend.turn SET taken = taken + 1;
        DELETE FROM litespend.deltas;
        DELETE FROM litespend.day_usage;
        DELETE FROM litespend.day_customer;
        DELETE FROM litespend.day_tag;
        DELETE FROM litespend.day_tag_owner;
        EXECUTE format($q$
            INSERT INTO litespend.deltas (sign, day)
            SELECT 0, day::date FROM (SELECT min("startTime")::date AS first, max("startTime")::date AS last
                                      FROM %s) AS span,
                   generate_series(first, last, interval '1 day') AS day
            WHERE first IS NOT NULL AND isfinite(first) AND isfinite(last) $q$, log);
    END IF;
    chosen := (SELECT max(day) FROM litespend.deltas WHERE sign = 0);
    IF chosen IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE litespend.turn SET taken = taken + 1;
    DELETE FROM litespend.deltas WHERE day = chosen;
    DELETE FROM litespend.day_usage WHERE day = chosen;
    DELETE FROM litespend.day_customer WHERE day = chosen;
    DELETE FROM litespend.day_tag WHERE day = chosen;
    DELETE FROM litespend.day_tag_owner WHERE day = chosen;
    -- The log is read once; what follows reads the day's entries several times.
    EXECUTE format($q$
        INSERT INTO litespend.deltas
        SELECT 1, $1, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens
        FROM %s WHERE "startTime" >= $1 AND "startTime" < $1 + 1 $q$, log) USING chosen;
    PERFORM litespend.absorb('SELECT * FROM litespend.deltas WHERE day = $1', NULL, chosen);
    DELETE FROM litespend.deltas WHERE day = chosen;
    RETURN chosen;
END $$;

-- Days and months that are not packed. One that was packed a moment ago is left alone for a while: more changes of it are
-- likely.
CREATE TABLE litespend.days_to_pack (
    rollup text NOT NULL,
    day date NOT NULL,
    due timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rollup, day)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE FUNCTION litespend.queue_unpacked() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO litespend.days_to_pack
    SELECT DISTINCT rollup, day, now() + interval '5 minutes' FROM removed ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER queue_unpacked AFTER DELETE ON litespend.packed_days REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.queue_unpacked();

CREATE OR REPLACE FUNCTION litespend.drop_packed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    days date[];
    months date[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM litespend.packed_days WHERE rollup IN (TG_ARGV[0], TG_ARGV[0] || '_month');
        RETURN NULL;
    END IF;
    days := ARRAY(SELECT DISTINCT day FROM changed);
    IF cardinality(days) = 0 THEN
        RETURN NULL;
    END IF;
    DELETE FROM litespend.packed_days WHERE rollup = TG_ARGV[0] AND day = ANY (days);
    INSERT INTO litespend.days_to_pack (rollup, day) SELECT TG_ARGV[0], unnest(days) ON CONFLICT DO NOTHING;
    IF TG_ARGV[0] = 'usage' THEN
        months := ARRAY(SELECT DISTINCT date_trunc('month', day)::date FROM unnest(days) AS day);
        DELETE FROM litespend.packed_days WHERE rollup = 'usage_month' AND day = ANY (months);
        INSERT INTO litespend.days_to_pack (rollup, day) SELECT 'usage_month', unnest(months) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;

-- The newest day or month of a queue that ends before "before". Without "but", one that is due; else one that is not
-- among them, due or not.
CREATE FUNCTION litespend.next_to_pack(chosen text, before date, but date[]) RETURNS date
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT day FROM litespend.days_to_pack
    WHERE rollup = chosen AND day < before
      AND (chosen <> 'usage_month' OR day + interval '1 month' <= before)
      AND CASE WHEN but IS NULL THEN due <= now() ELSE day <> ALL (but) END
    ORDER BY day DESC LIMIT 1
$$;

-- Packs one day that waits for it; returns it, or NULL where there is none or another caller is at work. An entry is 40 or
-- 56 bytes: who, team, key and model as numbers of "words", then requests, spend, total tokens and, of usage, prompt and
-- completion tokens. To be called READ COMMITTED: what is read after the lock was taken is what the last holder left.
-- Parts are small, so that many reads at once can hold one each.
CREATE OR REPLACE FUNCTION litespend.pack(chosen text, before date, but date[]) RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    picked date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    picked := litespend.next_to_pack(chosen, before, but);
    IF picked IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE litespend.turn SET taken = taken + 1;
    DELETE FROM litespend.packed_days WHERE rollup = chosen AND day = picked;
    IF chosen = 'usage' THEN
        INSERT INTO litespend.packed_days
        SELECT chosen, picked, part, string_agg(
            int4send(user_id) || int4send(team_id) || int4send(api_key) || int4send(model) || int8send(requests)
            || float8send(spend) || int8send(total_tokens) || int8send(prompt_tokens) || int8send(completion_tokens),
            ''::bytea ORDER BY team_id, api_key, model)
        FROM (SELECT *, (row_number() OVER (ORDER BY team_id, api_key, model) - 1) / 4000 AS part
              FROM litespend.day_usage WHERE day = picked) AS entries
        GROUP BY part;
    ELSE
        INSERT INTO litespend.packed_days
        SELECT chosen, picked, part, string_agg(
            int4send(end_user) || int4send(team_id) || int4send(api_key) || int4send(model) || int8send(requests)
            || float8send(spend) || int8send(total_tokens),
            ''::bytea ORDER BY end_user, api_key, model)
        FROM (SELECT *, (row_number() OVER (ORDER BY end_user, api_key, model) - 1) / 4000 AS part
              FROM litespend.day_customer WHERE day = picked) AS entries
        GROUP BY part;
    END IF;
    DELETE FROM litespend.days_to_pack WHERE rollup = chosen AND day = picked;
    RETURN picked;
END $$;

-- Packs one month of usage that waits for it: by its first day. Users and teams are 0 in it. As with days, NULL where there
-- is none or another caller is at work; READ COMMITTED.
CREATE OR REPLACE FUNCTION litespend.pack_month(before date, but date[]) RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    picked date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    picked := litespend.next_to_pack('usage_month', before, but);
    IF picked IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE litespend.turn SET taken = taken + 1;
    DELETE FROM litespend.packed_days WHERE rollup = 'usage_month' AND day = picked;
    INSERT INTO litespend.packed_days
    SELECT 'usage_month', picked, part, string_agg(
        int4send(0) || int4send(0) || int4send(api_key) || int4send(model) || int8send(requests)
        || float8send(spend) || int8send(total_tokens) || int8send(prompt_tokens) || int8send(completion_tokens),
        ''::bytea ORDER BY api_key, model)
    FROM (SELECT api_key, model, sum(requests)::bigint AS requests, sum(spend) AS spend,
                 sum(total_tokens)::bigint AS total_tokens, sum(prompt_tokens)::bigint AS prompt_tokens,
                 sum(completion_tokens)::bigint AS completion_tokens,
                 (row_number() OVER (ORDER BY api_key, model) - 1) / 4000 AS part
          FROM litespend.day_usage WHERE day >= picked AND day < picked + interval '1 month'
          GROUP BY api_key, model) AS entries
    GROUP BY part;
    DELETE FROM litespend.days_to_pack WHERE rollup = 'usage_month' AND day = picked;
    RETURN picked;
END $$;

-- Days of LiteLLM's daily rows that are not summed, as far as their notes were looked at.
CREATE TABLE litespend.activity_to_sum (
    date text PRIMARY KEY,
    due timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Puts all days of the daily rows that are not summed into the queue: one index lookup for each day.
CREATE FUNCTION litespend.queue_activity(daily regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        WITH RECURSIVE days AS (
            (SELECT date FROM %1$s ORDER BY date DESC LIMIT 1)
            UNION ALL
            SELECT (SELECT d.date FROM %1$s d WHERE d.date < days.date ORDER BY d.date DESC LIMIT 1)
            FROM days WHERE days.date IS NOT NULL
        )
        INSERT INTO litespend.activity_to_sum (date)
        SELECT date FROM days
        WHERE date ~ '^\d{4}-\d{2}-\d{2}$'
          AND NOT EXISTS (SELECT FROM litespend.activity_days summed WHERE summed.date = days.date)
        ON CONFLICT DO NOTHING $q$, daily);
END $$;

-- Voids the sums of days with notes, then sums the newest day before "before" that waits for it: one that is due, or, with
-- "but", one that is not among them. Returns it, or NULL where there is none or another caller is at work. To be called
-- READ COMMITTED, in a transaction of its own: notes go only when the sums of their day are gone, and a day is summed in
-- one statement, so that a note is left of whatever that statement did not see.
CREATE OR REPLACE FUNCTION litespend.sum_activity(before text, but text[]) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    daily regclass := litespend.daily_table();
    stale text[];
    picked text;
    has_rows boolean;
BEGIN
    IF daily IS NULL OR NOT pg_try_advisory_xact_lock(7811884302) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM litespend.activity_changes WHERE date IS NULL) THEN
        DELETE FROM litespend.activity_days;
        DELETE FROM litespend.activity_groups;
        DELETE FROM litespend.activity_members;
        DELETE FROM litespend.activity_changes;
        PERFORM litespend.queue_activity(daily);
    END IF;
    stale := ARRAY(SELECT DISTINCT date FROM litespend.activity_changes WHERE date IS NOT NULL);
    IF cardinality(stale) > 0 THEN
        WITH gone AS (DELETE FROM litespend.activity_days WHERE date = ANY (stale) RETURNING date)
        INSERT INTO litespend.activity_to_sum
        SELECT noted, CASE WHEN noted IN (SELECT date FROM gone) THEN now() + interval '5 minutes' ELSE now() END
        FROM unnest(stale) AS noted WHERE noted ~ '^\d{4}-\d{2}-\d{2}$' ON CONFLICT DO NOTHING;
        DELETE FROM litespend.activity_groups WHERE date = ANY (stale);
        DELETE FROM litespend.activity_members WHERE date = ANY (stale);
        DELETE FROM litespend.activity_changes WHERE date = ANY (stale);
    END IF;
    LOOP
        SELECT date INTO picked FROM litespend.activity_to_sum
        WHERE date < before AND CASE WHEN but IS NULL THEN due <= now() ELSE date <> ALL (but) END
        ORDER BY date DESC LIMIT 1;
        IF picked IS NULL THEN
            RETURN NULL;
        END IF;
        DELETE FROM litespend.activity_to_sum WHERE date = picked;
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE date = $1)', daily) INTO has_rows USING picked;
        EXIT WHEN has_rows;
    END LOOP;
    -- Columns that an older LiteLLM lacks are found in the outer row of defaults.
    EXECUTE format($q$
    WITH daily AS MATERIALIZED (
        SELECT rows.* FROM
            (SELECT NULL::text AS endpoint, NULL::text AS mcp_namespaced_tool_name, 0::bigint AS compression_saved_tokens,
                    0::float8 AS compression_savings_spend, 0::float8 AS prompt_caching_savings_spend,
                    0::float8 AS gateway_injected_caching_savings_spend, 0::float8 AS autorouter_savings_spend,
                    0::bigint AS total_response_time_ms, 0::bigint AS timed_requests) AS defaults
        CROSS JOIN LATERAL (
            SELECT user_id, api_key, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, spend,
                   prompt_tokens, completion_tokens, cache_read_input_tokens, cache_creation_input_tokens,
                   compression_saved_tokens, compression_savings_spend, prompt_caching_savings_spend,
                   gateway_injected_caching_savings_spend, autorouter_savings_spend, api_requests, successful_requests,
                   failed_requests, total_response_time_ms, timed_requests
            FROM %s WHERE date = $1) AS rows
    ), groups AS (
        INSERT INTO litespend.activity_groups
        SELECT $1, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, sum(spend),
               sum(prompt_tokens), sum(completion_tokens), sum(cache_read_input_tokens),
               sum(cache_creation_input_tokens), sum(compression_saved_tokens), sum(compression_savings_spend),
               sum(prompt_caching_savings_spend), sum(gateway_injected_caching_savings_spend),
               sum(autorouter_savings_spend), sum(api_requests), sum(successful_requests), sum(failed_requests),
               sum(total_response_time_ms), sum(timed_requests)
        FROM daily GROUP BY 2, 3, 4, 5, 6
    ), members AS (
        INSERT INTO litespend.activity_members
        SELECT $1, user_id, api_key, sum(spend), sum(prompt_tokens), sum(completion_tokens),
               sum(cache_read_input_tokens), sum(cache_creation_input_tokens), sum(api_requests),
               sum(successful_requests), sum(failed_requests)
        FROM daily GROUP BY 2, 3
    )
    INSERT INTO litespend.activity_days VALUES ($1) $q$, daily) USING picked;
    RETURN picked;
END $$;

-- What there is when this comes.
DO $$
DECLARE
    source record;
BEGIN
    FOR source IN SELECT * FROM (VALUES ('usage', 'litespend.day_usage'), ('customer', 'litespend.day_customer'))
                  AS sources (rollup, relation)
    LOOP
        EXECUTE format($q$
            WITH RECURSIVE days AS (
                SELECT max(day) AS day FROM %1$s
                UNION ALL
                SELECT (SELECT max(day) FROM %1$s WHERE day < days.day) FROM days WHERE days.day IS NOT NULL
            )
            INSERT INTO litespend.days_to_pack (rollup, day)
            SELECT $1, day FROM days WHERE day IS NOT NULL
               AND NOT EXISTS (SELECT FROM litespend.packed_days p WHERE p.rollup = $1 AND p.day = days.day)
            UNION
            SELECT 'usage_month', date_trunc('month', day)::date FROM days WHERE day IS NOT NULL AND $1 = 'usage'
               AND NOT EXISTS (SELECT FROM litespend.packed_days p
                               WHERE p.rollup = 'usage_month' AND p.day = date_trunc('month', days.day)::date)
            ON CONFLICT DO NOTHING $q$, source.relation) USING source.rollup;
    END LOOP;
    IF litespend.counted_table('activity_changed') IS NOT NULL THEN
        PERFORM litespend.queue_activity(litespend.counted_table('activity_changed'));
    END IF;
END $$;
