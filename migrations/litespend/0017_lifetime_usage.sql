-- What was ever logged, by team, user, key and model: it grows with the log, and stays when rows are deleted.

-- Changes that an update made: their sums are differences.
ALTER TABLE litespend.deltas ADD COLUMN is_update boolean;

CREATE TABLE litespend.lifetime_usage (
    team_id integer NOT NULL,
    user_id integer NOT NULL,
    api_key integer NOT NULL,
    model integer NOT NULL,
    -- The order in which they came.
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    requests bigint NOT NULL,
    spend double precision NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    -- The most that the figures have been: an update may lower them, and a counter never falls.
    most_spend double precision NOT NULL DEFAULT 0,
    most_prompt_tokens bigint NOT NULL DEFAULT 0,
    most_completion_tokens bigint NOT NULL DEFAULT 0,
    most_total_tokens bigint NOT NULL DEFAULT 0,
    most_requests bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (team_id, user_id, api_key, model)
);

-- What days counted that are to be counted again.
CREATE TABLE litespend.expected_usage (LIKE litespend.day_usage INCLUDING CONSTRAINTS INCLUDING INDEXES);

CREATE FUNCTION litespend.finite(amount double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN amount IN ('NaN', 'Infinity', '-Infinity') THEN 0 ELSE amount END
$$;

CREATE FUNCTION litespend.raise_most() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.most_requests := GREATEST(NEW.most_requests, NEW.requests);
    NEW.most_spend := GREATEST(NEW.most_spend, NEW.spend);
    NEW.most_prompt_tokens := GREATEST(NEW.most_prompt_tokens, NEW.prompt_tokens);
    NEW.most_completion_tokens := GREATEST(NEW.most_completion_tokens, NEW.completion_tokens);
    NEW.most_total_tokens := GREATEST(NEW.most_total_tokens, NEW.total_tokens);
    RETURN NEW;
END $$;
CREATE TRIGGER raise_most BEFORE INSERT OR UPDATE ON litespend.lifetime_usage
    FOR EACH ROW EXECUTE FUNCTION litespend.raise_most();

INSERT INTO litespend.lifetime_usage (team_id, user_id, api_key, model, requests, spend, prompt_tokens, completion_tokens,
                                      total_tokens)
SELECT team_id, user_id, api_key, model, sum(requests), sum(litespend.finite(spend)), sum(prompt_tokens),
       sum(completion_tokens), sum(total_tokens)
FROM litespend.day_usage GROUP BY 1, 2, 3, 4 ORDER BY min(day), 1, 2, 3, 4;

-- Numbers the words of entries. "source" is a query of ours on deltas, with $1 for "chosen" and $2 for "picked".
CREATE FUNCTION litespend.add_words(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO litespend.words (word, digest)
        SELECT word, litespend.digest(word)
        FROM (SELECT DISTINCT unnest(ARRAY[team_id, user_id, api_key, model]) AS word FROM (%1$s) AS entries) AS words
        WHERE word IS NOT NULL
          AND NOT EXISTS (SELECT FROM litespend.words known WHERE known.digest = litespend.digest(words.word))
        ON CONFLICT (digest) DO NOTHING $q$, source) USING chosen, picked;
END $$;

-- Adds what entries log: rows that came, and what updates changed. Their words are numbered.
CREATE FUNCTION litespend.add_lifetime(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO litespend.lifetime_usage AS into_table (team_id, user_id, api_key, model, requests, spend,
                                                            prompt_tokens, completion_tokens, total_tokens)
        SELECT COALESCE(t.id, 0), COALESCE(u.id, 0), COALESCE(k.id, 0), COALESCE(m.id, 0),
               requests, spend, prompt_tokens, completion_tokens, total_tokens
        FROM (SELECT team_id, user_id, api_key, model, sum(sign) AS requests, sum(litespend.finite(spend)) AS spend,
                     sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                     sum(total_tokens) AS total_tokens
              FROM (%1$s) AS entries WHERE sign > 0 OR is_update GROUP BY 1, 2, 3, 4) AS sums
        LEFT JOIN litespend.words t ON t.digest = litespend.digest(team_id)
        LEFT JOIN litespend.words u ON u.digest = litespend.digest(user_id)
        LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
        LEFT JOIN litespend.words m ON m.digest = litespend.digest(model)
        ORDER BY 1, 2, 3, 4
        ON CONFLICT (team_id, user_id, api_key, model) DO UPDATE
        SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
            prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
            total_tokens = into_table.total_tokens + excluded.total_tokens $q$, source)
    USING chosen, picked;
END $$;

-- Adds entries to what their days are expected to count.
CREATE FUNCTION litespend.add_expected(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO litespend.expected_usage AS into_table
        SELECT day, COALESCE(t.id, 0), COALESCE(u.id, 0), COALESCE(k.id, 0), COALESCE(m.id, 0),
               requests, spend, prompt_tokens, completion_tokens, total_tokens
        FROM (SELECT day, team_id, user_id, api_key, model, sum(sign) AS requests, sum(litespend.finite(spend)) AS spend,
                     sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                     sum(total_tokens) AS total_tokens
              FROM (%1$s) AS entries GROUP BY 1, 2, 3, 4, 5) AS sums
        LEFT JOIN litespend.words t ON t.digest = litespend.digest(team_id)
        LEFT JOIN litespend.words u ON u.digest = litespend.digest(user_id)
        LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
        LEFT JOIN litespend.words m ON m.digest = litespend.digest(model)
        ORDER BY 1, 2, 3, 4, 5
        ON CONFLICT (day, team_id, user_id, api_key, model) DO UPDATE
        SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
            prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
            total_tokens = into_table.total_tokens + excluded.total_tokens $q$, source)
    USING chosen, picked;
END $$;

-- As before; changes by an update are marked.
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
        INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                      prompt_tokens, completion_tokens, total_tokens, is_update)
        SELECT -1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               -spend, -prompt_tokens::bigint, -completion_tokens::bigint, -total_tokens::bigint, true
        FROM removed
        UNION ALL
        SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens, true
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

-- As before; what the entries log is added to what was ever logged.
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
    PERFORM litespend.add_lifetime('SELECT * FROM litespend.deltas WHERE ctid = ANY ($2)', picked, NULL);
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

-- As before; rows that come to light are added to what was ever logged.
CREATE OR REPLACE FUNCTION litespend.recount() RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    chosen date;
    log regclass := litespend.counted_table('log_inserted');
    closed date[];
    open_deltas text := 'SELECT * FROM litespend.deltas WHERE sign <> 0
                         AND day NOT IN (SELECT closed.day FROM litespend.closed_days AS closed)';
    deltas_of_day text := 'SELECT * FROM litespend.deltas WHERE day = $1 AND sign <> 0';
BEGIN
    IF log IS NULL OR NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    closed := ARRAY(SELECT day FROM litespend.closed_days);
    IF EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND day IS NULL) THEN
        -- Every day is dirty: what was counted is void, and each day of the log is marked by itself.
        UPDATE litespend.turn SET taken = taken + 1;
        PERFORM litespend.add_words(open_deltas, NULL, NULL);
        PERFORM litespend.add_lifetime(open_deltas, NULL, NULL);
        -- What each day counted so far, until it is counted again.
        INSERT INTO litespend.expected_usage
        SELECT * FROM litespend.day_usage WHERE day <> ALL (closed) ON CONFLICT DO NOTHING;
        PERFORM litespend.add_expected(open_deltas, NULL, NULL);
        DELETE FROM litespend.deltas WHERE day IS NULL OR day <> ALL (closed);
        DELETE FROM litespend.day_usage WHERE day <> ALL (closed);
        DELETE FROM litespend.day_customer WHERE day <> ALL (closed);
        DELETE FROM litespend.day_tag WHERE day <> ALL (closed);
        DELETE FROM litespend.day_tag_owner WHERE day <> ALL (closed);
        EXECUTE format($q$
            INSERT INTO litespend.deltas (sign, day)
            SELECT 0, day::date FROM (SELECT min("startTime")::date AS first, max("startTime")::date AS last
                                      FROM %s) AS span,
                   generate_series(first, last, interval '1 day') AS day
            WHERE first IS NOT NULL AND isfinite(first) AND isfinite(last) AND day::date <> ALL ($1) $q$, log)
        USING closed;
        DELETE FROM litespend.expected_usage
        WHERE day NOT IN (SELECT d.day FROM litespend.deltas AS d WHERE d.sign = 0 AND d.day IS NOT NULL);
    END IF;
    IF cardinality(closed) > 0 THEN
        DELETE FROM litespend.deltas WHERE sign = 0 AND day = ANY (closed);
    END IF;
    chosen := (SELECT max(day) FROM litespend.deltas WHERE sign = 0);
    IF chosen IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE litespend.turn SET taken = taken + 1;
    PERFORM litespend.add_words(deltas_of_day, NULL, chosen);
    PERFORM litespend.add_lifetime(deltas_of_day, NULL, chosen);
    INSERT INTO litespend.expected_usage SELECT * FROM litespend.day_usage WHERE day = chosen ON CONFLICT DO NOTHING;
    PERFORM litespend.add_expected(deltas_of_day, NULL, chosen);
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
    -- Rows that no trigger counted were logged all the same.
    INSERT INTO litespend.lifetime_usage AS into_table (team_id, user_id, api_key, model, requests, spend, prompt_tokens,
                                                        completion_tokens, total_tokens)
    SELECT team_id, user_id, api_key, model, more.requests, more.spend, more.prompt_tokens, more.completion_tokens,
           more.total_tokens
    FROM (SELECT c.team_id, c.user_id, c.api_key, c.model,
                 GREATEST(c.requests - COALESCE(e.requests, 0), 0) AS requests,
                 GREATEST(litespend.finite(c.spend) - COALESCE(litespend.finite(e.spend), 0), 0) AS spend,
                 GREATEST(c.prompt_tokens - COALESCE(e.prompt_tokens, 0), 0) AS prompt_tokens,
                 GREATEST(c.completion_tokens - COALESCE(e.completion_tokens, 0), 0) AS completion_tokens,
                 GREATEST(c.total_tokens - COALESCE(e.total_tokens, 0), 0) AS total_tokens
          FROM litespend.day_usage AS c
          LEFT JOIN litespend.expected_usage AS e USING (day, team_id, user_id, api_key, model)
          WHERE c.day = chosen) AS more
    WHERE more.requests > 0 OR more.spend > 1e-9 OR more.total_tokens > 0
    ORDER BY 1, 2, 3, 4
    ON CONFLICT (team_id, user_id, api_key, model) DO UPDATE
    SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
        prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
        total_tokens = into_table.total_tokens + excluded.total_tokens;
    DELETE FROM litespend.expected_usage WHERE day = chosen;
    RETURN chosen;
END $$;
