-- What was ever logged, by customer, provider, organisation, model group and deployment as well.
SET LOCAL lock_timeout = '10s';
SET LOCAL statement_timeout = 0;

-- Nobody folds or counts meanwhile. Who has begun, and waits, fails at its end and begins again with the functions below. Rollups that
-- nobody has used yet stay so.
SELECT pg_advisory_xact_lock(7811884301);
UPDATE litespend.turn SET taken = taken + 1 WHERE taken > 0 OR EXISTS (SELECT FROM litespend.deltas);

-- As "lifetime_usage", divided further. What was logged before this table was there has none of the further words, and neither has
-- what no trigger counted, in a day in which its team, user, key and model had been counted before.
CREATE TABLE litespend.lifetime_detail (
    team_id integer NOT NULL,
    user_id integer NOT NULL,
    api_key integer NOT NULL,
    model integer NOT NULL,
    end_user integer NOT NULL,
    custom_llm_provider integer NOT NULL,
    organization_id integer NOT NULL,
    model_group integer NOT NULL,
    model_id integer NOT NULL,
    -- The order in which they came.
    number bigint GENERATED ALWAYS AS IDENTITY,
    requests bigint NOT NULL,
    spend numeric NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    -- The most that the figures have been.
    most_spend numeric NOT NULL DEFAULT 0,
    most_prompt_tokens bigint NOT NULL DEFAULT 0,
    most_completion_tokens bigint NOT NULL DEFAULT 0,
    most_total_tokens bigint NOT NULL DEFAULT 0,
    most_requests bigint NOT NULL DEFAULT 0
);
INSERT INTO litespend.lifetime_detail (team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id,
                                       model_group, model_id, requests, spend, prompt_tokens, completion_tokens, total_tokens,
                                       most_spend, most_prompt_tokens, most_completion_tokens, most_total_tokens, most_requests)
SELECT team_id, user_id, api_key, model, 0, 0, 0, 0, 0, requests, spend, prompt_tokens, completion_tokens, total_tokens,
       most_spend, most_prompt_tokens, most_completion_tokens, most_total_tokens, most_requests
FROM litespend.lifetime_usage ORDER BY number;

ALTER TABLE litespend.lifetime_detail
    ADD UNIQUE (number),
    ADD PRIMARY KEY (team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id);
CREATE TRIGGER raise_most BEFORE INSERT OR UPDATE ON litespend.lifetime_detail
    FOR EACH ROW EXECUTE FUNCTION litespend.raise_most();

-- Of what days counted that are to be counted again, that which came since, divided further. Where "day_usage" had a sum, or what
-- came has none of the further words, as before this migration, it is not known how it is divided.
CREATE TABLE litespend.expected_detail (
    day date NOT NULL,
    team_id integer NOT NULL,
    user_id integer NOT NULL,
    api_key integer NOT NULL,
    model integer NOT NULL,
    end_user integer NOT NULL,
    custom_llm_provider integer NOT NULL,
    organization_id integer NOT NULL,
    model_group integer NOT NULL,
    model_id integer NOT NULL,
    requests bigint NOT NULL,
    spend numeric NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    PRIMARY KEY (day, team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id)
);
ALTER TABLE litespend.expected_usage ADD COLUMN is_divided boolean NOT NULL DEFAULT false;

-- From here on, writers of the log wait.
ALTER TABLE litespend.deltas
    ADD COLUMN custom_llm_provider text,
    ADD COLUMN organization_id text,
    ADD COLUMN model_group text,
    ADD COLUMN model_id text;

ALTER TYPE litespend.late_row
    ADD ATTRIBUTE custom_llm_provider text,
    ADD ATTRIBUTE organization_id text;

-- Numbers the words of entries. "source" is a query of ours on deltas, with $1 for "chosen" and $2 for "picked".
CREATE OR REPLACE FUNCTION litespend.add_words(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO litespend.words (word, digest)
        SELECT word, litespend.digest(word)
        FROM (SELECT DISTINCT unnest(ARRAY[team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id,
                                           model_group, model_id]) AS word
              FROM (%1$s) AS entries) AS words
        WHERE word IS NOT NULL
          AND NOT EXISTS (SELECT FROM litespend.words known WHERE known.digest = litespend.digest(words.word))
        ON CONFLICT (digest) DO NOTHING $q$, source) USING chosen, picked;
END $$;

-- Those of the words that "absorb" does not number.
CREATE FUNCTION litespend.add_further_words(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO litespend.words (word, digest)
        SELECT word, litespend.digest(word)
        FROM (SELECT DISTINCT unnest(ARRAY[custom_llm_provider, organization_id, model_group, model_id]) AS word
              FROM (%1$s) AS entries) AS words
        WHERE word IS NOT NULL
          AND NOT EXISTS (SELECT FROM litespend.words known WHERE known.digest = litespend.digest(words.word))
        ON CONFLICT (digest) DO NOTHING $q$, source) USING chosen, picked;
END $$;

-- The text of a query: sums of the entries that "condition" chooses, by day and the numbers of their words. The words have numbers
-- already. Each word is looked up once.
CREATE FUNCTION litespend.divided_sums(source text, condition text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($q$
        SELECT day, COALESCE(t.id, 0) AS team_id, COALESCE(u.id, 0) AS user_id, COALESCE(k.id, 0) AS api_key,
               COALESCE(m.id, 0) AS model, COALESCE(e.id, 0) AS end_user, COALESCE(p.id, 0) AS custom_llm_provider,
               COALESCE(o.id, 0) AS organization_id, COALESCE(g.id, 0) AS model_group, COALESCE(d.id, 0) AS model_id,
               requests, spend, prompt_tokens, completion_tokens, total_tokens
        FROM (SELECT day, team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id,
                     sum(sign)::bigint AS requests, sum(litespend.finite(spend)::numeric) AS spend,
                     sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
                     sum(total_tokens)::bigint AS total_tokens
              FROM (%1$s) AS entries WHERE %2$s GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10) AS sums
        LEFT JOIN numbers t ON t.word = team_id
        LEFT JOIN numbers u ON u.word = user_id
        LEFT JOIN numbers k ON k.word = api_key
        LEFT JOIN numbers m ON m.word = model
        LEFT JOIN numbers e ON e.word = end_user
        LEFT JOIN numbers p ON p.word = custom_llm_provider
        LEFT JOIN numbers o ON o.word = organization_id
        LEFT JOIN numbers g ON g.word = model_group
        LEFT JOIN numbers d ON d.word = model_id $q$, source, condition)
$$;

-- The text of the query "numbers" that "divided_sums" reads. A join might read all words: the number of different ones among the
-- entries is not known to the planner.
CREATE FUNCTION litespend.numbers_of_words(source text, condition text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($q$
        SELECT words.word, (SELECT known.id FROM litespend.words AS known
                            WHERE known.digest = litespend.digest(words.word)) AS id
        FROM (SELECT DISTINCT unnest(ARRAY[team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id,
                                           model_group, model_id]) AS word
              FROM (%1$s) AS entries WHERE %2$s) AS words
        WHERE words.word IS NOT NULL $q$, source, condition)
$$;

-- As before, and divided further. The joins are not reordered: planning would take longer than they do.
CREATE OR REPLACE FUNCTION litespend.add_lifetime(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET join_collapse_limit = 1 SET jit = off AS $$
DECLARE
    kind text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['sign > 0 AND is_update IS NOT TRUE', 'is_update'] LOOP
        EXECUTE format($q$
            WITH numbers AS MATERIALIZED (%1$s),
            sums AS MATERIALIZED (%2$s),
            detail AS (
                INSERT INTO litespend.lifetime_detail AS into_table (
                    team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id,
                    requests, spend, prompt_tokens, completion_tokens, total_tokens)
                SELECT team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id,
                       sum(requests), sum(spend), sum(prompt_tokens), sum(completion_tokens), sum(total_tokens)
                FROM sums GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9
                ON CONFLICT (team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group,
                             model_id) DO UPDATE
                SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
                    prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
                    completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
                    total_tokens = into_table.total_tokens + excluded.total_tokens)
            INSERT INTO litespend.lifetime_usage AS into_table (team_id, user_id, api_key, model, requests, spend,
                                                                prompt_tokens, completion_tokens, total_tokens)
            SELECT team_id, user_id, api_key, model, sum(requests), sum(spend), sum(prompt_tokens), sum(completion_tokens),
                   sum(total_tokens)
            FROM sums GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
            ON CONFLICT (team_id, user_id, api_key, model) DO UPDATE
            SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
                prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
                completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
                total_tokens = into_table.total_tokens + excluded.total_tokens $q$,
            litespend.numbers_of_words(source, kind), litespend.divided_sums(source, kind))
        USING chosen, picked;
    END LOOP;
END $$;

-- As before, and divided further.
CREATE OR REPLACE FUNCTION litespend.add_expected(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET join_collapse_limit = 1 SET jit = off AS $$
BEGIN
    EXECUTE format($q$
        WITH numbers AS MATERIALIZED (%1$s),
        sums AS MATERIALIZED (%2$s),
        detail AS (
            INSERT INTO litespend.expected_detail AS into_table
            SELECT * FROM sums ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
            ON CONFLICT (day, team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group,
                         model_id) DO UPDATE
            SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
                prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
                completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
                total_tokens = into_table.total_tokens + excluded.total_tokens)
        INSERT INTO litespend.expected_usage AS into_table
        SELECT day, team_id, user_id, api_key, model, sum(requests), sum(spend), sum(prompt_tokens), sum(completion_tokens),
               sum(total_tokens), bool_and((custom_llm_provider, organization_id, model_group, model_id) <> (0, 0, 0, 0))
        FROM sums GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
        ON CONFLICT (day, team_id, user_id, api_key, model) DO UPDATE
        SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
            prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
            total_tokens = into_table.total_tokens + excluded.total_tokens,
            is_divided = into_table.is_divided AND excluded.is_divided $q$,
        litespend.numbers_of_words(source, 'true'), litespend.divided_sums(source, 'true'))
    USING chosen, picked;
END $$;

-- As before; the further words are numbered.
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
                  + COALESCE(octet_length(end_user), 0) + COALESCE(octet_length(custom_llm_provider), 0)
                  + COALESCE(octet_length(organization_id), 0) + COALESCE(octet_length(model_group), 0)
                  + COALESCE(octet_length(model_id), 0) + COALESCE(pg_column_size(request_tags), 0)) / 1000 AS weight
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
    PERFORM litespend.add_further_words('SELECT * FROM litespend.deltas WHERE ctid = ANY ($2)', picked, NULL);
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

-- Rows of a day that no trigger counted were logged all the same: adds what the day counts more than is expected. The day's rows
-- are in "deltas". Of teams, users, keys and models that the day had counted before, it is not known which rows are the new ones.
CREATE FUNCTION litespend.add_uncounted(chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET join_collapse_limit = 1 SET jit = off AS $$
DECLARE
    rows_of_day text := 'SELECT * FROM litespend.deltas WHERE day = $1';
BEGIN
    EXECUTE format($q$
        WITH numbers AS MATERIALIZED (%1$s),
        counted AS MATERIALIZED (%2$s)
        INSERT INTO litespend.lifetime_detail AS into_table (
            team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id,
            requests, spend, prompt_tokens, completion_tokens, total_tokens)
        SELECT team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id,
               more.requests, more.spend, more.prompt_tokens, more.completion_tokens, more.total_tokens
        FROM (SELECT team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id,
                     GREATEST(COALESCE(c.requests, 0) - COALESCE(e.requests, 0), 0) AS requests,
                     GREATEST(COALESCE(c.spend, 0) - COALESCE(e.spend, 0), 0) AS spend,
                     GREATEST(COALESCE(c.prompt_tokens, 0) - COALESCE(e.prompt_tokens, 0), 0) AS prompt_tokens,
                     GREATEST(COALESCE(c.completion_tokens, 0) - COALESCE(e.completion_tokens, 0), 0) AS completion_tokens,
                     GREATEST(COALESCE(c.total_tokens, 0) - COALESCE(e.total_tokens, 0), 0) AS total_tokens
              FROM counted AS c
              FULL JOIN (SELECT * FROM litespend.expected_detail WHERE day = $1) AS e
                  USING (day, team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group,
                         model_id)
              LEFT JOIN litespend.expected_usage AS u USING (day, team_id, user_id, api_key, model)
              WHERE COALESCE(u.is_divided, true)
              UNION ALL
              SELECT c.team_id, c.user_id, c.api_key, c.model, 0, 0, 0, 0, 0,
                     GREATEST(c.requests - u.requests, 0),
                     GREATEST(litespend.finite(c.spend) - litespend.finite(u.spend), 0)::numeric,
                     GREATEST(c.prompt_tokens - u.prompt_tokens, 0),
                     GREATEST(c.completion_tokens - u.completion_tokens, 0),
                     GREATEST(c.total_tokens - u.total_tokens, 0)
              FROM litespend.day_usage AS c
              JOIN litespend.expected_usage AS u USING (day, team_id, user_id, api_key, model)
              WHERE c.day = $1 AND NOT u.is_divided) AS more
        WHERE more.requests > 0 OR more.spend > 1e-9 OR more.total_tokens > 0
        ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9
        ON CONFLICT (team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group,
                     model_id) DO UPDATE
        SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
            prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
            total_tokens = into_table.total_tokens + excluded.total_tokens $q$,
        litespend.numbers_of_words(rows_of_day, 'true'), litespend.divided_sums(rows_of_day, 'true'))
    USING chosen;
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
END $$;

-- As before; what comes to light is divided further.
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
        DELETE FROM litespend.expected_detail
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
        INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                      prompt_tokens, completion_tokens, total_tokens, custom_llm_provider,
                                      organization_id, model_group, model_id)
        SELECT 1, $1, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens,
               rows.custom_llm_provider, rows.organization_id, rows.model_group, rows.model_id
        FROM (VALUES (NULL::text, NULL::text, NULL::text, NULL::text))
                 AS missing (custom_llm_provider, organization_id, model_group, model_id)
        CROSS JOIN LATERAL (
            SELECT team_id, "user", api_key, model, end_user, request_tags, spend, prompt_tokens, completion_tokens, total_tokens,
                   custom_llm_provider, organization_id, model_group, model_id
            FROM %s WHERE "startTime" >= $1 AND "startTime" < $1 + 1) AS rows $q$, log) USING chosen;
    PERFORM litespend.absorb('SELECT * FROM litespend.deltas WHERE day = $1', NULL, chosen);
    PERFORM litespend.add_further_words('SELECT * FROM litespend.deltas WHERE day = $1', NULL, chosen);
    PERFORM litespend.add_uncounted(chosen);
    DELETE FROM litespend.deltas WHERE day = chosen;
    DELETE FROM litespend.expected_usage WHERE day = chosen;
    DELETE FROM litespend.expected_detail WHERE day = chosen;
    RETURN chosen;
END $$;

-- As before, with the further words.
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
    INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                  prompt_tokens, completion_tokens, total_tokens, custom_llm_provider,
                                  organization_id, model_group, model_id)
    SELECT 1, started_at::date, team_id, user_id, api_key, model, end_user,
           CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
           spend, prompt_tokens, completion_tokens, total_tokens,
           custom_llm_provider, organization_id, model_group, model_id
    FROM unnest(rows);
    INSERT INTO litespend.late_ids
    SELECT DISTINCT c.day, litespend.id_digest(r.request_id)
    FROM unnest(rows) AS r JOIN litespend.closed_days AS c ON c.day = r.started_at::date
    WHERE NOT litespend.is_known(c.day, r.request_id, c.buckets)
    ON CONFLICT DO NOTHING;
    DELETE FROM litespend.moved_ids AS moved USING unnest(rows) AS r
    WHERE moved.day = r.started_at::date AND moved.digest = litespend.id_digest(r.request_id);
END $$;

-- As before, with the further words.
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
                   request_tags, spend, prompt_tokens, completion_tokens, total_tokens,
                   to_jsonb(r) ->> 'custom_llm_provider', to_jsonb(r) ->> 'organization_id'
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

-- As before, with the further words. An older LiteLLM's log lacks some of the columns: their names then stand for those of
-- "missing". What is needed for closed days only is declared where it is needed: most statements have none of them.
CREATE OR REPLACE FUNCTION litespend.log_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days)
           AND EXISTS (SELECT FROM added JOIN litespend.closed_days AS c ON c.day = "startTime"::date) THEN
            DECLARE
                late litespend.late_row;
                slice litespend.late_row[] := '{}';
            BEGIN
                FOR late IN
                    SELECT request_id, "startTime", team_id, "user", api_key, model, model_group, to_jsonb(a) ->> 'model_id',
                           end_user, request_tags, a.spend, a.prompt_tokens, a.completion_tokens, a.total_tokens,
                           to_jsonb(a) ->> 'custom_llm_provider', to_jsonb(a) ->> 'organization_id'
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
            END;
            INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                          prompt_tokens, completion_tokens, total_tokens, custom_llm_provider,
                                          organization_id, model_group, model_id)
            SELECT 1, started_on, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
                   spend, prompt_tokens, completion_tokens, total_tokens,
                   rows.custom_llm_provider, rows.organization_id, rows.model_group, rows.model_id
            FROM (VALUES (NULL::text, NULL::text, NULL::text, NULL::text))
                     AS missing (custom_llm_provider, organization_id, model_group, model_id)
            CROSS JOIN LATERAL (
                SELECT "startTime"::date AS started_on, team_id, "user", api_key, model, end_user, request_tags, spend,
                       prompt_tokens, completion_tokens, total_tokens, custom_llm_provider, organization_id, model_group, model_id
                FROM added
                WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days)) AS rows;
        ELSE
            INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                          prompt_tokens, completion_tokens, total_tokens, custom_llm_provider,
                                          organization_id, model_group, model_id)
            SELECT 1, started_on, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
                   spend, prompt_tokens, completion_tokens, total_tokens,
                   rows.custom_llm_provider, rows.organization_id, rows.model_group, rows.model_id
            FROM (VALUES (NULL::text, NULL::text, NULL::text, NULL::text))
                     AS missing (custom_llm_provider, organization_id, model_group, model_id)
            CROSS JOIN LATERAL (
                SELECT "startTime"::date AS started_on, team_id, "user", api_key, model, end_user, request_tags, spend,
                       prompt_tokens, completion_tokens, total_tokens, custom_llm_provider, organization_id, model_group, model_id
                FROM added) AS rows;
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

-- As before, with the further words.
CREATE OR REPLACE FUNCTION litespend.log_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days) THEN
            -- A row that left its day, or got another ID, is no longer what the archive of that day has. One that came into
            -- a closed day counts there by its difference; its ID is one that arrived late, or that has come back.
            PERFORM litespend.mark_incomplete(day, day)
            FROM (SELECT request_id, "startTime"::date AS day FROM removed
                  EXCEPT SELECT request_id, "startTime"::date FROM added) AS left_behind GROUP BY day;
            INSERT INTO litespend.moved_ids
            SELECT c.day, litespend.id_digest(request_id)
            FROM (SELECT request_id, "startTime"::date AS day FROM removed
                  EXCEPT SELECT request_id, "startTime"::date FROM added) AS left_behind
            JOIN litespend.closed_days AS c USING (day);
            DELETE FROM litespend.moved_ids AS moved
            USING (SELECT request_id, "startTime"::date AS day FROM added
                   EXCEPT SELECT request_id, "startTime"::date FROM removed) AS came
            WHERE moved.day = came.day AND moved.digest = litespend.id_digest(came.request_id);
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
            FROM (SELECT -1 AS sign, gone.*
                  FROM (SELECT "startTime"::date AS day, spend, prompt_tokens, completion_tokens, total_tokens FROM removed
                        EXCEPT ALL
                        SELECT "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM added) AS gone
                  UNION ALL
                  SELECT 1, came.*
                  FROM (SELECT "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM added
                        EXCEPT ALL
                        SELECT "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM removed) AS came
                 ) AS changes
            WHERE day IN (SELECT closed.day FROM litespend.closed_days AS closed)
            GROUP BY day
            HAVING sum(sign) <> 0 OR sum(sign * spend) <> 0 OR sum(sign * prompt_tokens) <> 0
                OR sum(sign * completion_tokens) <> 0 OR sum(sign * total_tokens) <> 0;
            INSERT INTO litespend.closed_activity
            SELECT c.day, a."user", a.model_group, a.model_id, sum(sign), sum(sign * a.spend), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, gone.*
                  FROM (SELECT "startTime"::date AS day, "user", model_group, to_jsonb(r) ->> 'model_id' AS model_id, spend,
                               total_tokens FROM removed AS r
                        EXCEPT ALL
                        SELECT "startTime"::date, "user", model_group, to_jsonb(n) ->> 'model_id', spend, total_tokens
                        FROM added AS n) AS gone
                  UNION ALL
                  SELECT 1, came.*
                  FROM (SELECT "startTime"::date, "user", model_group, to_jsonb(n) ->> 'model_id', spend, total_tokens
                        FROM added AS n
                        EXCEPT ALL
                        SELECT "startTime"::date, "user", model_group, to_jsonb(r) ->> 'model_id', spend, total_tokens
                        FROM removed AS r) AS came) AS a
            JOIN litespend.closed_days AS c ON c.day = a.day
            GROUP BY 1, 2, 3, 4
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
            INSERT INTO litespend.closed_midnights
            SELECT c.day, a.team_id, a."user", a.api_key, a.model, a.end_user, sum(sign), sum(sign * a.spend),
                   sum(sign * a.prompt_tokens), sum(sign * a.completion_tokens), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, gone.*
                  FROM (SELECT "startTime"::timestamp AS at, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM removed
                        EXCEPT ALL
                        SELECT "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM added) AS gone
                  UNION ALL
                  SELECT 1, came.*
                  FROM (SELECT "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM added
                        EXCEPT ALL
                        SELECT "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM removed) AS came) AS a
            JOIN litespend.closed_days AS c ON a.at = c.day::timestamp
            GROUP BY 1, 2, 3, 4, 5, 6
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
        END IF;
        INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                      prompt_tokens, completion_tokens, total_tokens, is_update, custom_llm_provider,
                                      organization_id, model_group, model_id)
        WITH
        before AS (
            SELECT started_on, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END AS tags,
                   spend, prompt_tokens, completion_tokens, total_tokens,
                   rows.custom_llm_provider, rows.organization_id, rows.model_group, rows.model_id
            FROM (VALUES (NULL::text, NULL::text, NULL::text, NULL::text))
                     AS missing (custom_llm_provider, organization_id, model_group, model_id)
            CROSS JOIN LATERAL (
                SELECT "startTime"::date AS started_on, team_id, "user", api_key, model, end_user, request_tags, spend,
                       prompt_tokens, completion_tokens, total_tokens, custom_llm_provider, organization_id, model_group, model_id
                FROM removed) AS rows),
        after AS (
            SELECT started_on, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END AS tags,
                   spend, prompt_tokens, completion_tokens, total_tokens,
                   rows.custom_llm_provider, rows.organization_id, rows.model_group, rows.model_id
            FROM (VALUES (NULL::text, NULL::text, NULL::text, NULL::text))
                     AS missing (custom_llm_provider, organization_id, model_group, model_id)
            CROSS JOIN LATERAL (
                SELECT "startTime"::date AS started_on, team_id, "user", api_key, model, end_user, request_tags, spend,
                       prompt_tokens, completion_tokens, total_tokens, custom_llm_provider, organization_id, model_group, model_id
                FROM added) AS rows)
        SELECT -1, started_on, team_id, "user", api_key, model, end_user, tags, -spend, -prompt_tokens::bigint,
               -completion_tokens::bigint, -total_tokens::bigint, true,
               custom_llm_provider, organization_id, model_group, model_id
        FROM (SELECT * FROM before EXCEPT ALL SELECT * FROM after) AS gone
        UNION ALL
        SELECT 1, started_on, team_id, "user", api_key, model, end_user, tags, spend, prompt_tokens, completion_tokens,
               total_tokens, true, custom_llm_provider, organization_id, model_group, model_id
        FROM (SELECT * FROM after EXCEPT ALL SELECT * FROM before) AS came;
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
