-- Closed days, continued: which of them have rows that the log lost, what their archive was recorded to have, and rows that
-- come into a closed day by other ways than INSERT.

-- The closed days of which the log may lack rows. All other closed days are answered from the log alone. A day may occur
-- several times, so that writers never wait for each other.
CREATE TABLE litespend.incomplete_days (day date NOT NULL);
CREATE INDEX incomplete_days_day ON litespend.incomplete_days (day);
INSERT INTO litespend.incomplete_days SELECT day FROM litespend.closed_days;

-- The sums of the archive's rows when they were last written. NULL: not recorded.
ALTER TABLE litespend.closed_days
    ADD COLUMN archived_spend double precision,
    ADD COLUMN archived_prompt_tokens bigint,
    ADD COLUMN archived_completion_tokens bigint,
    ADD COLUMN archived_total_tokens bigint;

-- What a reopened day counted before, and after it was counted from its rows again.
ALTER TABLE litespend.reopened_days
    ADD COLUMN requests bigint,
    ADD COLUMN spend double precision,
    ADD COLUMN total_tokens bigint;

-- Whether the archive has a row with this ID on a closed day.
CREATE FUNCTION litespend.is_archived(closed date, request_id text, buckets integer) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT COALESCE((SELECT position(litespend.id_digest(request_id) IN digests) > 0 FROM litespend.closed_ids
                     WHERE day = closed
                       AND bucket = litespend.id_bucket(litespend.id_digest(request_id), buckets)), false)
$$;

-- A row that comes into a closed day, in the form that "add_late" takes.
CREATE TYPE litespend.late_row AS (
    request_id text,
    started_at timestamp,
    team_id text,
    user_id text,
    api_key text,
    model text,
    model_group text,
    model_id text,
    end_user text,
    request_tags jsonb,
    spend double precision,
    prompt_tokens bigint,
    completion_tokens bigint,
    total_tokens bigint
);

-- Adds rows to closed days, except those that the days count already.
CREATE FUNCTION litespend.add_late(rows litespend.late_row[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    late litespend.late_row[];
BEGIN
    late := ARRAY(SELECT r FROM unnest(rows) AS r JOIN litespend.closed_days AS c ON c.day = r.started_at::date
                  WHERE NOT litespend.is_known(c.day, r.request_id, c.buckets));
    INSERT INTO litespend.adjustments
    SELECT started_at::date, now(), 'late', count(*), sum(spend), sum(prompt_tokens), sum(completion_tokens),
           sum(total_tokens)
    FROM unnest(late) GROUP BY 1;
    INSERT INTO litespend.closed_activity
    SELECT started_at::date, user_id, model_group, model_id, count(*), sum(spend), sum(total_tokens)
    FROM unnest(late) GROUP BY 1, 2, 3, 4;
    INSERT INTO litespend.closed_midnights
    SELECT started_at::date, team_id, user_id, api_key, model, end_user, count(*), sum(spend), sum(prompt_tokens),
           sum(completion_tokens), sum(total_tokens)
    FROM unnest(late) WHERE started_at = started_at::date GROUP BY 1, 2, 3, 4, 5, 6;
    INSERT INTO litespend.deltas
    SELECT 1, started_at::date, team_id, user_id, api_key, model, end_user,
           CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
           spend, prompt_tokens, completion_tokens, total_tokens
    FROM unnest(late);
    INSERT INTO litespend.late_ids
    SELECT DISTINCT started_at::date, litespend.id_digest(request_id) FROM unnest(late) ON CONFLICT DO NOTHING;
END $$;

-- Adds the rows of closed days that a table has, except those that the days count already.
CREATE FUNCTION litespend.add_late_of(source regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    closed litespend.closed_days;
    late litespend.late_row[];
BEGIN
    FOR closed IN SELECT * FROM litespend.closed_days ORDER BY day
    LOOP
        EXECUTE format($q$
            SELECT COALESCE(array_agg(ROW(request_id, "startTime", team_id, "user", api_key, model, model_group,
                                          to_jsonb(r) ->> 'model_id', end_user, request_tags, spend, prompt_tokens,
                                          completion_tokens, total_tokens)::litespend.late_row), '{}')
            FROM %s AS r WHERE "startTime" >= $1 AND "startTime" < $1 + 1 AND NOT litespend.is_known($1, request_id, $2)
            $q$, source)
        INTO late USING closed.day, closed.buckets;
        PERFORM litespend.add_late(late);
    END LOOP;
END $$;

-- Notes that the log may have lost rows of closed days; of all, if the days are not known.
CREATE FUNCTION litespend.mark_incomplete(first date, last date) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO litespend.incomplete_days
    SELECT day FROM litespend.closed_days
    WHERE (first IS NULL OR last IS NULL OR day BETWEEN first AND last)
      AND day NOT IN (SELECT known.day FROM litespend.incomplete_days AS known)
$$;

-- Marks days to be counted again. Without days, or with more than ten years of them: all. Closed days are not counted again, but
-- the log may have lost rows of them.
CREATE OR REPLACE FUNCTION litespend.mark_dirty(first date, last date) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT litespend.mark_incomplete(first, last);
    INSERT INTO litespend.deltas (sign, day)
    SELECT 0, NULL WHERE first IS NULL OR last IS NULL OR last - first > 3660
    UNION ALL
    SELECT 0, day::date FROM generate_series(first::timestamp, last::timestamp, interval '1 day') AS day
    WHERE last - first <= 3660 AND day::date NOT IN (SELECT closed.day FROM litespend.closed_days AS closed)
$$;

CREATE OR REPLACE FUNCTION litespend.log_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days)
           AND EXISTS (SELECT FROM added JOIN litespend.closed_days AS c ON c.day = "startTime"::date) THEN
            PERFORM litespend.add_late(ARRAY(
                SELECT ROW(request_id, "startTime", team_id, "user", api_key, model, model_group,
                           to_jsonb(a) ->> 'model_id', end_user, request_tags, a.spend, a.prompt_tokens,
                           a.completion_tokens, a.total_tokens)::litespend.late_row
                FROM added AS a JOIN litespend.closed_days AS c ON c.day = "startTime"::date));
            INSERT INTO litespend.deltas
            SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
                   spend, prompt_tokens, completion_tokens, total_tokens
            FROM added WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
        ELSE
            INSERT INTO litespend.deltas
            SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
                   spend, prompt_tokens, completion_tokens, total_tokens
            FROM added;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day)
            SELECT DISTINCT 0, "startTime"::date FROM added
            WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
            INSERT INTO litespend.adjustments (day, kind)
            SELECT DISTINCT "startTime"::date, 'missed' FROM added
            WHERE "startTime"::date IN (SELECT day FROM litespend.closed_days);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed an insert: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION litespend.log_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days) THEN
            PERFORM litespend.mark_incomplete(day, day) FROM (SELECT DISTINCT "startTime"::date AS day FROM removed) AS days;
        END IF;
        INSERT INTO litespend.deltas
        SELECT -1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               -spend, -prompt_tokens::bigint, -completion_tokens::bigint, -total_tokens::bigint
        FROM removed WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
        -- What is not a finite number can't be subtracted again.
        INSERT INTO litespend.deltas (sign, day)
        SELECT DISTINCT 0, "startTime"::date FROM removed
        WHERE spend IN ('NaN', 'Infinity', '-Infinity')
          AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            PERFORM litespend.mark_incomplete(NULL, NULL);
            INSERT INTO litespend.deltas (sign, day)
            SELECT DISTINCT 0, "startTime"::date FROM removed
            WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed a delete: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION litespend.log_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days) THEN
            -- A row that left its day, or got another ID, is missing where the archive has it. One that came into a closed
            -- day counts there by its difference; its ID is one that arrived late.
            PERFORM litespend.mark_incomplete(day, day)
            FROM (SELECT request_id, "startTime"::date AS day FROM removed
                  EXCEPT SELECT request_id, "startTime"::date FROM added) AS left_behind GROUP BY day;
            INSERT INTO litespend.late_ids
            SELECT c.day, litespend.id_digest(request_id)
            FROM (SELECT request_id, "startTime"::date AS day FROM added
                  EXCEPT SELECT request_id, "startTime"::date FROM removed) AS came
            JOIN litespend.closed_days AS c USING (day)
            WHERE NOT litespend.is_known(c.day, request_id, c.buckets)
            ON CONFLICT DO NOTHING;
            INSERT INTO litespend.adjustments
            SELECT day, now(), 'updated', sum(sign), sum(sign * spend), sum(sign * prompt_tokens),
                   sum(sign * completion_tokens), sum(sign * total_tokens)
            FROM (SELECT -1 AS sign, "startTime"::date AS day, spend, prompt_tokens, completion_tokens, total_tokens
                  FROM removed
                  UNION ALL
                  SELECT 1, "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM added) AS changes
            WHERE day IN (SELECT closed.day FROM litespend.closed_days AS closed)
            GROUP BY day
            HAVING sum(sign) <> 0 OR sum(sign * spend) <> 0 OR sum(sign * prompt_tokens) <> 0
                OR sum(sign * completion_tokens) <> 0 OR sum(sign * total_tokens) <> 0;
            INSERT INTO litespend.closed_activity
            SELECT c.day, a."user", a.model_group, a.model_id, sum(sign), sum(sign * a.spend), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, "startTime"::date AS day, "user", model_group, to_jsonb(r) ->> 'model_id' AS model_id,
                         spend, total_tokens
                  FROM removed AS r
                  UNION ALL
                  SELECT 1, "startTime"::date, "user", model_group, to_jsonb(n) ->> 'model_id', spend, total_tokens
                  FROM added AS n) AS a
            JOIN litespend.closed_days AS c ON c.day = a.day
            GROUP BY 1, 2, 3, 4
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
            INSERT INTO litespend.closed_midnights
            SELECT c.day, a.team_id, a."user", a.api_key, a.model, a.end_user, sum(sign), sum(sign * a.spend),
                   sum(sign * a.prompt_tokens), sum(sign * a.completion_tokens), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, "startTime"::timestamp AS at, team_id, "user", api_key, model, end_user, spend,
                         prompt_tokens, completion_tokens, total_tokens
                  FROM removed
                  UNION ALL
                  SELECT 1, "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                         completion_tokens, total_tokens
                  FROM added) AS a
            JOIN litespend.closed_days AS c ON a.at = c.day::timestamp
            GROUP BY 1, 2, 3, 4, 5, 6
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
        END IF;
        INSERT INTO litespend.deltas
        SELECT -1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               -spend, -prompt_tokens::bigint, -completion_tokens::bigint, -total_tokens::bigint
        FROM removed
        UNION ALL
        SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens
        FROM added;
        INSERT INTO litespend.deltas (sign, day)
        SELECT DISTINCT 0, "startTime"::date FROM removed
        WHERE spend IN ('NaN', 'Infinity', '-Infinity')
          AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            PERFORM litespend.mark_incomplete(NULL, NULL);
            INSERT INTO litespend.deltas (sign, day)
            SELECT 0, day FROM (SELECT "startTime"::date AS day FROM removed
                                UNION SELECT "startTime"::date FROM added) AS days
            WHERE day NOT IN (SELECT closed.day FROM litespend.closed_days AS closed);
            INSERT INTO litespend.adjustments (day, kind)
            SELECT day, 'missed' FROM (SELECT "startTime"::date AS day FROM removed
                                       UNION SELECT "startTime"::date FROM added) AS days
            WHERE day IN (SELECT closed.day FROM litespend.closed_days AS closed);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed an update: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

-- As before; rows of closed days that a partition brings are added to these days.
CREATE OR REPLACE FUNCTION litespend.follow_partitions(OUT came integer, OUT went integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    log regclass := litespend.counted_table('log_inserted');
    found record;
BEGIN
    came := 0;
    went := 0;
    IF log IS NULL OR litespend.partitions_are_counted(log) OR NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN;
    END IF;
    FOR found IN SELECT relation, first_day, last_day FROM litespend.partitions
                 WHERE relation NOT IN (SELECT p::oid FROM litespend.partitions_of(log) AS p)
    LOOP
        PERFORM litespend.mark_dirty(found.first_day, found.last_day);
        DELETE FROM litespend.partitions WHERE relation = found.relation;
        went := went + 1;
    END LOOP;
    -- A detached partition that was never remembered may have triggers, too: it was attached with them.
    FOR found IN SELECT relation FROM litespend.tables_with_triggers() AS relation
                 WHERE relation <> log AND relation NOT IN (SELECT litespend.partitions_of(log))
                   AND (SELECT relnamespace FROM pg_class WHERE oid = relation)
                       = (SELECT relnamespace FROM pg_class WHERE oid = log)
    LOOP
        PERFORM litespend.drop_log_triggers(found.relation);
    END LOOP;
    FOR found IN SELECT relation, days.first_day, days.last_day
                 FROM litespend.partitions_of(log) AS relation, litespend.partition_days(relation) AS days
                 WHERE relation::oid NOT IN (SELECT p.relation FROM litespend.partitions p)
                    OR NOT litespend.has_triggers(relation)
    LOOP
        -- Waits for the writers of the partition: what they write is there when its days are counted.
        PERFORM litespend.create_triggers(found.relation);
        PERFORM litespend.mark_dirty(found.first_day, found.last_day);
        PERFORM litespend.add_late_of(found.relation);
        INSERT INTO litespend.partitions VALUES (found.relation, found.first_day, found.last_day)
        ON CONFLICT (relation) DO UPDATE SET first_day = EXCLUDED.first_day, last_day = EXCLUDED.last_day;
        came := came + 1;
    END LOOP;
END $$;

-- As before, but writers of the log wait until the partition is there.
CREATE OR REPLACE FUNCTION litespend.add_month(log regclass, month date, move_rows boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    month_start date := date_trunc('month', month);
    next_month date := date_trunc('month', month) + interval '1 month';
    default_part regclass := litespend.default_partition(log);
    has_rollup_triggers boolean := litespend.has_triggers(log);
    has_rows_to_move boolean := false;
    partition text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884304) THEN
        RETURN false;
    END IF;
    -- A statement of its own: its snapshot shows what the last holder of the lock committed.
    IF EXISTS (SELECT FROM litespend.partitions_of(log) AS other, litespend.partition_days(other) AS days
               WHERE days.first_day < next_month AND days.last_day >= month_start) THEN
        RETURN false;
    END IF;
    SELECT format('%I.%I', n.nspname, c.relname || to_char(month_start, '_YYYY_MM')) INTO partition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    IF to_regclass(partition) IS NOT NULL THEN
        RAISE WARNING 'litespend: % exists, but is no partition of the log', partition;
        RETURN false;
    END IF;
    -- A writer chooses the partition of a row, and then waits for it. If it waited for the default partition, it would fail
    -- when the new partition is there. So it waits for the log before it chooses.
    EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', log);
    IF default_part IS NOT NULL THEN
        -- No more rows come while the lock is held. Readers do not wait for it.
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', default_part);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE "startTime" >= $1 AND "startTime" < $2)', default_part)
        INTO has_rows_to_move USING month_start::timestamp, next_month::timestamp;
        IF has_rows_to_move AND NOT move_rows THEN
            RETURN false;
        END IF;
    END IF;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING CONSTRAINTS)', partition, log);
    IF has_rows_to_move THEN
        -- The rows stay in the log, so the triggers must not count them as deleted.
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', default_part);
        EXECUTE format('WITH moved AS (DELETE FROM %s WHERE "startTime" >= $1 AND "startTime" < $2 RETURNING *)
                        INSERT INTO %s SELECT * FROM moved', default_part, partition)
        USING month_start::timestamp, next_month::timestamp;
        EXECUTE format('ALTER TABLE %s ENABLE TRIGGER USER', default_part);
    END IF;
    IF has_rollup_triggers THEN
        PERFORM litespend.create_triggers(partition::regclass);
        INSERT INTO litespend.partitions VALUES (partition::regclass, month_start, next_month - 1);
    END IF;
    -- Waits for the readers of the default partition.
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                   log, partition, month_start, next_month);
    RETURN true;
END $$;
