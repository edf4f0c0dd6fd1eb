-- Rollups of the spend log by day, exact at every moment, so that reports need not read the log.
--
-- Statement triggers on the log append what a statement added and removed to "deltas", a table without an index,
-- so that writers never wait for each other. A background task folds deltas into the day tables. A read sums day
-- tables and unfolded deltas in one snapshot. Where a trigger fails, or a day was never counted, the day is marked
-- dirty (sign 0; without a day: every day): reads then use the log itself until the day is counted again.

-- Texts by number. 0 stands for NULL and is not in the table. The digest carries the uniqueness, because a text may
-- be longer than an index entry.
CREATE TABLE litespend.words (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    word text NOT NULL,
    digest bytea NOT NULL UNIQUE
);

CREATE TABLE litespend.deltas (
    sign smallint NOT NULL,
    day date,
    team_id text,
    user_id text,
    api_key text,
    model text,
    end_user text,
    request_tags jsonb,
    spend double precision,
    prompt_tokens bigint,
    completion_tokens bigint,
    total_tokens bigint
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE litespend.day_usage (
    day date NOT NULL,
    team_id integer NOT NULL,
    user_id integer NOT NULL,
    api_key integer NOT NULL,
    model integer NOT NULL,
    requests bigint NOT NULL,
    spend double precision NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    PRIMARY KEY (day, team_id, user_id, api_key, model)
);
CREATE INDEX day_usage_api_key ON litespend.day_usage (api_key, day);
CREATE INDEX day_usage_user ON litespend.day_usage (user_id, day);
CREATE INDEX day_usage_team ON litespend.day_usage (team_id, day);

CREATE TABLE litespend.day_customer (
    day date NOT NULL,
    end_user integer NOT NULL,
    team_id integer NOT NULL,
    api_key integer NOT NULL,
    model integer NOT NULL,
    requests bigint NOT NULL,
    spend double precision NOT NULL,
    total_tokens bigint NOT NULL,
    PRIMARY KEY (day, end_user, team_id, api_key, model)
);
CREATE INDEX day_customer_end_user ON litespend.day_customer (end_user, day);

-- By tag for everybody, and by tag and owner for callers who see their own rows only.
CREATE TABLE litespend.day_tag (
    day date NOT NULL,
    tag integer NOT NULL,
    log_count bigint NOT NULL,
    spend double precision NOT NULL,
    PRIMARY KEY (day, tag)
);
CREATE TABLE litespend.day_tag_owner (
    day date NOT NULL,
    tag integer NOT NULL,
    team_id integer NOT NULL,
    user_id integer NOT NULL,
    log_count bigint NOT NULL,
    spend double precision NOT NULL,
    PRIMARY KEY (day, tag, team_id, user_id)
);
CREATE INDEX day_tag_owner_user ON litespend.day_tag_owner (user_id, day);
CREATE INDEX day_tag_owner_team ON litespend.day_tag_owner (team_id, day);

-- The triggers' functions run as their owner, so that who writes the log needs no rights here. They never fail.
CREATE FUNCTION litespend.log_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
        INSERT INTO litespend.deltas
        SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens
        FROM added;
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day) SELECT DISTINCT 0, "startTime"::date FROM added;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed an insert: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE FUNCTION litespend.log_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
        INSERT INTO litespend.deltas
        SELECT -1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               -spend, -prompt_tokens::bigint, -completion_tokens::bigint, -total_tokens::bigint
        FROM removed;
        -- What is not a finite number can't be subtracted again.
        INSERT INTO litespend.deltas (sign, day)
        SELECT DISTINCT 0, "startTime"::date FROM removed
        WHERE spend IN ('NaN', 'Infinity', '-Infinity');
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day) SELECT DISTINCT 0, "startTime"::date FROM removed;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed a delete: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE FUNCTION litespend.log_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
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
        WHERE spend IN ('NaN', 'Infinity', '-Infinity');
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day)
            SELECT 0, "startTime"::date FROM removed UNION SELECT 0, "startTime"::date FROM added;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed an update: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE FUNCTION litespend.log_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
        INSERT INTO litespend.deltas (sign, day) VALUES (0, NULL);
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'litespend: rollups missed a truncate: %', SQLERRM;
    END;
    RETURN NULL;
END $$;

-- STABLE, as its body is, so that it is inlined.
CREATE FUNCTION litespend.digest(word text) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT sha256(convert_to(word, 'UTF8')) $$;

-- Adds entries to the day tables. "source" is a query of ours on deltas, with $1 for "chosen" and $2 for "picked".
CREATE FUNCTION litespend.absorb(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        INSERT INTO litespend.words (word, digest)
        SELECT DISTINCT word, litespend.digest(word) FROM (
            SELECT DISTINCT unnest(ARRAY[team_id, user_id, api_key, model, end_user]) AS word FROM (%1$s) AS entries
            UNION
            SELECT jsonb_array_elements_text(request_tags) FROM (%1$s) AS entries WHERE request_tags IS NOT NULL
        ) AS words
        WHERE word IS NOT NULL
          AND NOT EXISTS (SELECT FROM litespend.words known WHERE known.digest = litespend.digest(words.word))
        ON CONFLICT (digest) DO NOTHING $q$, source) USING chosen, picked;

    EXECUTE format($q$
        INSERT INTO litespend.day_usage AS into_table
        SELECT day, COALESCE(t.id, 0), COALESCE(u.id, 0), COALESCE(k.id, 0), COALESCE(m.id, 0),
               requests, spend, prompt_tokens, completion_tokens, total_tokens
        FROM (SELECT day, team_id, user_id, api_key, model, sum(sign) AS requests, sum(spend) AS spend,
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

    EXECUTE format($q$
        INSERT INTO litespend.day_customer AS into_table
        SELECT day, COALESCE(e.id, 0), COALESCE(t.id, 0), COALESCE(k.id, 0), COALESCE(m.id, 0),
               requests, spend, total_tokens
        FROM (SELECT day, end_user, team_id, api_key, model, sum(sign) AS requests, sum(spend) AS spend,
                     sum(total_tokens) AS total_tokens
              FROM (%1$s) AS entries GROUP BY 1, 2, 3, 4, 5) AS sums
        LEFT JOIN litespend.words e ON e.digest = litespend.digest(end_user)
        LEFT JOIN litespend.words t ON t.digest = litespend.digest(team_id)
        LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
        LEFT JOIN litespend.words m ON m.digest = litespend.digest(model)
        ORDER BY 1, 2, 3, 4, 5
        ON CONFLICT (day, end_user, team_id, api_key, model) DO UPDATE
        SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
            total_tokens = into_table.total_tokens + excluded.total_tokens $q$, source)
    USING chosen, picked;

    EXECUTE format($q$
        INSERT INTO litespend.day_tag_owner AS into_table
        SELECT day, COALESCE(g.id, 0), COALESCE(t.id, 0), COALESCE(u.id, 0), log_count, spend
        FROM (SELECT day, tag, team_id, user_id, sum(sign) AS log_count, sum(spend) AS spend
              FROM (%1$s) AS entries CROSS JOIN LATERAL jsonb_array_elements_text(request_tags) AS tag
              GROUP BY 1, 2, 3, 4) AS sums
        LEFT JOIN litespend.words g ON g.digest = litespend.digest(tag)
        LEFT JOIN litespend.words t ON t.digest = litespend.digest(team_id)
        LEFT JOIN litespend.words u ON u.digest = litespend.digest(user_id)
        ORDER BY 1, 2, 3, 4
        ON CONFLICT (day, tag, team_id, user_id) DO UPDATE
        SET log_count = into_table.log_count + excluded.log_count, spend = into_table.spend + excluded.spend
        $q$, source) USING chosen, picked;

    EXECUTE format($q$
        INSERT INTO litespend.day_tag AS into_table
        SELECT day, COALESCE(g.id, 0), log_count, spend
        FROM (SELECT day, tag, sum(sign) AS log_count, sum(spend) AS spend
              FROM (%1$s) AS entries CROSS JOIN LATERAL jsonb_array_elements_text(request_tags) AS tag
              GROUP BY 1, 2) AS sums
        LEFT JOIN litespend.words g ON g.digest = litespend.digest(tag)
        ORDER BY 1, 2
        ON CONFLICT (day, tag) DO UPDATE
        SET log_count = into_table.log_count + excluded.log_count, spend = into_table.spend + excluded.spend
        $q$, source) USING chosen, picked;
END $$;

-- Folds up to "batch" deltas of days that are not dirty; returns how many. To be called in a transaction of its own,
-- REPEATABLE READ. One at a time: a second caller returns 0 at once.
CREATE FUNCTION litespend.fold(batch integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    picked tid[];
    negative date[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN 0;
    END IF;
    IF EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND day IS NULL) THEN
        RETURN 0;
    END IF;
    picked := ARRAY(SELECT ctid FROM litespend.deltas WHERE sign <> 0
                    AND day NOT IN (SELECT day FROM litespend.deltas WHERE sign = 0) LIMIT batch);
    IF cardinality(picked) = 0 THEN
        RETURN 0;
    END IF;
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

-- Counts one dirty day again from the log, newest first; returns the day, or NULL where none is dirty or another
-- caller is at work. To be called in a transaction of its own, REPEATABLE READ: the log, its deltas and the day tables
-- are then of one moment.
CREATE FUNCTION litespend.recount() RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND day IS NULL) THEN
        -- Every day is dirty: what was counted is void, and each day of the log is marked by itself.
        DELETE FROM litespend.deltas;
        DELETE FROM litespend.day_usage;
        DELETE FROM litespend.day_customer;
        DELETE FROM litespend.day_tag;
        DELETE FROM litespend.day_tag_owner;
        INSERT INTO litespend.deltas (sign, day)
        SELECT 0, day::date FROM (SELECT min("startTime")::date AS first, max("startTime")::date AS last
                                  FROM public."LiteLLM_SpendLogs") AS span,
               generate_series(first, last, interval '1 day') AS day
        WHERE first IS NOT NULL AND isfinite(first) AND isfinite(last);
    END IF;
    chosen := (SELECT max(day) FROM litespend.deltas WHERE sign = 0);
    IF chosen IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM litespend.deltas WHERE day = chosen;
    DELETE FROM litespend.day_usage WHERE day = chosen;
    DELETE FROM litespend.day_customer WHERE day = chosen;
    DELETE FROM litespend.day_tag WHERE day = chosen;
    DELETE FROM litespend.day_tag_owner WHERE day = chosen;
    -- The log is read once; what follows reads the day's entries several times.
    INSERT INTO litespend.deltas
    SELECT 1, chosen, team_id, "user", api_key, model, end_user,
           CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
           spend, prompt_tokens, completion_tokens, total_tokens
    FROM public."LiteLLM_SpendLogs" WHERE "startTime" >= chosen AND "startTime" < chosen + 1;
    PERFORM litespend.absorb('SELECT * FROM litespend.deltas WHERE day = $1', NULL, chosen);
    DELETE FROM litespend.deltas WHERE day = chosen;
    RETURN chosen;
END $$;

-- Begins to count: the triggers, and a mark that every day is still to be counted.
CREATE FUNCTION litespend.attach() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CREATE TRIGGER litespend_inserted AFTER INSERT ON public."LiteLLM_SpendLogs"
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_inserted();
    CREATE TRIGGER litespend_deleted AFTER DELETE ON public."LiteLLM_SpendLogs"
        REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_deleted();
    CREATE TRIGGER litespend_updated AFTER UPDATE ON public."LiteLLM_SpendLogs"
        REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT
        EXECUTE FUNCTION litespend.log_updated();
    CREATE TRIGGER litespend_truncated AFTER TRUNCATE ON public."LiteLLM_SpendLogs"
        FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_truncated();
    INSERT INTO litespend.deltas (sign, day) VALUES (0, NULL);
END $$;

CREATE FUNCTION litespend.attached() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT count(*) = 4 FROM pg_catalog.pg_trigger
    WHERE tgrelid = to_regclass('public."LiteLLM_SpendLogs"') AND NOT tgisinternal AND tgenabled IN ('O', 'A')
      AND tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')
$$;

CREATE FUNCTION litespend.detach() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DROP TRIGGER IF EXISTS litespend_inserted ON public."LiteLLM_SpendLogs";
    DROP TRIGGER IF EXISTS litespend_deleted ON public."LiteLLM_SpendLogs";
    DROP TRIGGER IF EXISTS litespend_updated ON public."LiteLLM_SpendLogs";
    DROP TRIGGER IF EXISTS litespend_truncated ON public."LiteLLM_SpendLogs";
END $$;
