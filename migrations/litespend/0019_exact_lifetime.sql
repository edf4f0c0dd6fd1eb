-- What was ever logged, continued: its spend is summed exactly, so it is the same in whatever batches it is folded. A sum of
-- floating-point numbers depends on their order, and a counter that falls by its last digit has started again for Prometheus.
SET LOCAL lock_timeout = '10s';
SET LOCAL extra_float_digits = 1;

-- By their texts: a number keeps all its digits.
ALTER TABLE litespend.lifetime_usage
    ALTER COLUMN spend TYPE numeric USING spend::text::numeric,
    ALTER COLUMN most_spend TYPE numeric USING most_spend::text::numeric;

-- As before. The function is replaced because sessions that ran it remember the types that these columns had.
CREATE OR REPLACE FUNCTION litespend.raise_most() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.most_requests := GREATEST(NEW.most_requests, NEW.requests);
    NEW.most_spend := GREATEST(NEW.most_spend, NEW.spend);
    NEW.most_prompt_tokens := GREATEST(NEW.most_prompt_tokens, NEW.prompt_tokens);
    NEW.most_completion_tokens := GREATEST(NEW.most_completion_tokens, NEW.completion_tokens);
    NEW.most_total_tokens := GREATEST(NEW.most_total_tokens, NEW.total_tokens);
    RETURN NEW;
END $$;

-- As before, with exact sums.
CREATE OR REPLACE FUNCTION litespend.add_lifetime(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['sign > 0 AND is_update IS NOT TRUE', 'is_update'] LOOP
        EXECUTE format($q$
            INSERT INTO litespend.lifetime_usage AS into_table (team_id, user_id, api_key, model, requests, spend,
                                                                prompt_tokens, completion_tokens, total_tokens)
            SELECT COALESCE(t.id, 0), COALESCE(u.id, 0), COALESCE(k.id, 0), COALESCE(m.id, 0),
                   requests, spend, prompt_tokens, completion_tokens, total_tokens
            FROM (SELECT team_id, user_id, api_key, model, sum(sign) AS requests, sum(litespend.finite(spend)::numeric) AS spend,
                         sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                         sum(total_tokens) AS total_tokens
                  FROM (%1$s) AS entries WHERE %2$s GROUP BY 1, 2, 3, 4) AS sums
            LEFT JOIN litespend.words t ON t.digest = litespend.digest(team_id)
            LEFT JOIN litespend.words u ON u.digest = litespend.digest(user_id)
            LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
            LEFT JOIN litespend.words m ON m.digest = litespend.digest(model)
            ORDER BY 1, 2, 3, 4
            ON CONFLICT (team_id, user_id, api_key, model) DO UPDATE
            SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
                prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
                completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
                total_tokens = into_table.total_tokens + excluded.total_tokens $q$, source, kind)
        USING chosen, picked;
    END LOOP;
END $$;

-- As before. Rows that came are folded first, then what updates took away, and then what they added: else the figures of a batch
-- could be more than they ever were, and the most would keep them, or a scrape could show less than the one before. A group
-- without requests may have money meanwhile, which waits for what an update added: it is deleted when nothing is left of it.
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
        SELECT place,
               1 + COALESCE(jsonb_array_length(request_tags), 0)
               + (COALESCE(octet_length(team_id), 0) + COALESCE(octet_length(user_id), 0)
                  + COALESCE(octet_length(api_key), 0) + COALESCE(octet_length(model), 0)
                  + COALESCE(octet_length(end_user), 0) + COALESCE(pg_column_size(request_tags), 0)) / 1000 AS weight
        FROM (SELECT ctid AS place, d.* FROM litespend.deltas AS d
              WHERE sign <> 0 AND is_update IS NOT TRUE AND day NOT IN (SELECT unnest(dirty))
              UNION ALL
              SELECT ctid, d.* FROM litespend.deltas AS d
              WHERE is_update AND sign < 0 AND day NOT IN (SELECT unnest(dirty))
              UNION ALL
              SELECT ctid, d.* FROM litespend.deltas AS d
              WHERE is_update AND sign > 0 AND day NOT IN (SELECT unnest(dirty))) AS candidates
        LIMIT batch
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
    PERFORM litespend.add_lifetime('SELECT * FROM litespend.deltas WHERE ctid = ANY ($2)', picked, NULL);
    negative := ARRAY(SELECT DISTINCT day FROM litespend.deltas WHERE ctid = ANY (picked) AND (sign < 0 OR is_update));
    IF cardinality(negative) > 0 THEN
        DELETE FROM litespend.day_usage
        WHERE day = ANY (negative) AND requests = 0 AND abs(spend) < 1e-9
          AND (prompt_tokens, completion_tokens, total_tokens) = (0, 0, 0);
        DELETE FROM litespend.day_customer
        WHERE day = ANY (negative) AND requests = 0 AND abs(spend) < 1e-9 AND total_tokens = 0;
        DELETE FROM litespend.day_tag WHERE day = ANY (negative) AND log_count = 0 AND abs(spend) < 1e-9;
        DELETE FROM litespend.day_tag_owner WHERE day = ANY (negative) AND log_count = 0 AND abs(spend) < 1e-9;
    END IF;
    DELETE FROM litespend.deltas WHERE ctid = ANY (picked);
    RETURN cardinality(picked);
END $$;

-- Whether a row with this ID is counted in a closed day: the archive has it or it arrived late, and no update moved it away.
CREATE FUNCTION litespend.is_counted(closed date, request_id text, buckets integer) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT litespend.is_known(closed, request_id, buckets)
       AND NOT EXISTS (SELECT FROM litespend.moved_ids AS moved
                       WHERE moved.day = closed AND moved.digest = litespend.id_digest(request_id))
$$;

-- Adds rows to closed days. The caller leaves out those that the days count already. A row that an update had moved away is not
-- moved any more.
CREATE OR REPLACE FUNCTION litespend.add_late(rows litespend.late_row[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    IF cardinality(rows) = 0 THEN
        RETURN;
    END IF;
    INSERT INTO litespend.adjustments
    SELECT started_at::date, now(), 'late', count(*), sum(spend), sum(prompt_tokens), sum(completion_tokens),
           sum(total_tokens)
    FROM unnest(rows) GROUP BY 1;
    INSERT INTO litespend.closed_activity
    SELECT started_at::date, user_id, model_group, model_id, count(*), sum(spend), sum(total_tokens)
    FROM unnest(rows) GROUP BY 1, 2, 3, 4;
    INSERT INTO litespend.closed_midnights
    SELECT started_at::date, team_id, user_id, api_key, model, end_user, count(*), sum(spend), sum(prompt_tokens),
           sum(completion_tokens), sum(total_tokens)
    FROM unnest(rows) WHERE started_at = started_at::date GROUP BY 1, 2, 3, 4, 5, 6;
    INSERT INTO litespend.deltas
    SELECT 1, started_at::date, team_id, user_id, api_key, model, end_user,
           CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
           spend, prompt_tokens, completion_tokens, total_tokens
    FROM unnest(rows);
    INSERT INTO litespend.late_ids
    SELECT DISTINCT c.day, litespend.id_digest(r.request_id)
    FROM unnest(rows) AS r JOIN litespend.closed_days AS c ON c.day = r.started_at::date
    WHERE NOT litespend.is_known(c.day, r.request_id, c.buckets)
    ON CONFLICT DO NOTHING;
    DELETE FROM litespend.moved_ids AS moved USING unnest(rows) AS r
    WHERE moved.day = r.started_at::date AND moved.digest = litespend.id_digest(r.request_id);
END $$;

-- Adds the rows of closed days that a table has, except those that the days count already; a thousand at a time.
CREATE OR REPLACE FUNCTION litespend.add_late_of(source regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    closed litespend.closed_days;
    late litespend.late_row;
    slice litespend.late_row[] := '{}';
BEGIN
    FOR closed IN SELECT * FROM litespend.closed_days ORDER BY day
    LOOP
        FOR late IN EXECUTE format($q$
            SELECT request_id, "startTime", team_id, "user", api_key, model, model_group, to_jsonb(r) ->> 'model_id', end_user,
                   request_tags, spend, prompt_tokens, completion_tokens, total_tokens
            FROM %s AS r WHERE "startTime" >= $1 AND "startTime" < $1 + 1 AND NOT litespend.is_counted($1, request_id, $2)
            $q$, source) USING closed.day, closed.buckets
        LOOP
            slice := slice || late;
            IF cardinality(slice) >= 1000 THEN
                PERFORM litespend.add_late(slice);
                slice := '{}';
            END IF;
        END LOOP;
    END LOOP;
    PERFORM litespend.add_late(slice);
END $$;

-- As before, a thousand rows at a time: one statement may bring millions into closed days.
CREATE OR REPLACE FUNCTION litespend.log_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    late litespend.late_row;
    slice litespend.late_row[] := '{}';
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days)
           AND EXISTS (SELECT FROM added JOIN litespend.closed_days AS c ON c.day = "startTime"::date) THEN
            FOR late IN
                SELECT request_id, "startTime", team_id, "user", api_key, model, model_group, to_jsonb(a) ->> 'model_id',
                       end_user, request_tags, a.spend, a.prompt_tokens, a.completion_tokens, a.total_tokens
                FROM added AS a JOIN litespend.closed_days AS c ON c.day = "startTime"::date
                WHERE NOT litespend.is_counted(c.day, request_id, c.buckets)
            LOOP
                slice := slice || late;
                IF cardinality(slice) >= 1000 THEN
                    PERFORM litespend.add_late(slice);
                    slice := '{}';
                END IF;
            END LOOP;
            PERFORM litespend.add_late(slice);
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
