-- LiteLLM's daily rows, summed: days that have been quiet are kept by group and by member, so that a month of activity
-- over a million daily rows reads some thousands. Who changes a daily row leaves a note of its day; a day with a note is
-- read from the daily rows, until a background task has summed it again. Notes and rows are of one transaction: a
-- snapshot sees both or neither.

-- Days with changes; NULL is every day.
CREATE TABLE litespend.activity_changes (
    date text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Days that are summed.
CREATE TABLE litespend.activity_days (
    date text PRIMARY KEY
);

CREATE TABLE litespend.activity_groups (
    date text NOT NULL,
    model text,
    model_group text,
    custom_llm_provider text,
    mcp_namespaced_tool_name text,
    endpoint text,
    spend double precision NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    cache_creation_input_tokens bigint NOT NULL,
    compression_saved_tokens bigint NOT NULL,
    compression_savings_spend double precision NOT NULL,
    prompt_caching_savings_spend double precision NOT NULL,
    gateway_injected_caching_savings_spend double precision NOT NULL,
    autorouter_savings_spend double precision NOT NULL,
    api_requests bigint NOT NULL,
    successful_requests bigint NOT NULL,
    failed_requests bigint NOT NULL,
    total_response_time_ms bigint NOT NULL,
    timed_requests bigint NOT NULL
);
CREATE INDEX activity_groups_date ON litespend.activity_groups (date);

CREATE TABLE litespend.activity_members (
    date text NOT NULL,
    user_id text,
    api_key text NOT NULL,
    spend double precision NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    cache_creation_input_tokens bigint NOT NULL,
    api_requests bigint NOT NULL,
    successful_requests bigint NOT NULL,
    failed_requests bigint NOT NULL
);
CREATE INDEX activity_members_date ON litespend.activity_members (date);

-- Runs as its owner, so that who writes daily rows needs no rights here. It never fails.
CREATE FUNCTION litespend.activity_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            INSERT INTO litespend.activity_changes VALUES (NULL);
        ELSIF TG_OP = 'UPDATE' THEN
            INSERT INTO litespend.activity_changes SELECT date FROM changed UNION SELECT date FROM removed;
        ELSE
            INSERT INTO litespend.activity_changes SELECT DISTINCT date FROM changed;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'litespend: sums of daily rows missed a change: %', SQLERRM;
    END;
    RETURN NULL;
END $$;

-- Begins to note changes, where there is such a table. What was summed before is void.
CREATE FUNCTION litespend.attach_activity() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('public."LiteLLM_DailyUserSpend"') IS NULL OR litespend.activity_attached() THEN
        RETURN;
    END IF;
    PERFORM litespend.detach_activity();
    CREATE TRIGGER litespend_inserted AFTER INSERT ON public."LiteLLM_DailyUserSpend"
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION litespend.activity_changed();
    CREATE TRIGGER litespend_deleted AFTER DELETE ON public."LiteLLM_DailyUserSpend"
        REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION litespend.activity_changed();
    CREATE TRIGGER litespend_updated AFTER UPDATE ON public."LiteLLM_DailyUserSpend"
        REFERENCING OLD TABLE AS removed NEW TABLE AS changed FOR EACH STATEMENT
        EXECUTE FUNCTION litespend.activity_changed();
    CREATE TRIGGER litespend_truncated AFTER TRUNCATE ON public."LiteLLM_DailyUserSpend"
        FOR EACH STATEMENT EXECUTE FUNCTION litespend.activity_changed();
    INSERT INTO litespend.activity_changes VALUES (NULL);
END $$;

CREATE FUNCTION litespend.activity_attached() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT count(*) = 4 FROM pg_catalog.pg_trigger
    WHERE tgrelid = to_regclass('public."LiteLLM_DailyUserSpend"') AND NOT tgisinternal AND tgenabled IN ('O', 'A')
      AND tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')
$$;

CREATE FUNCTION litespend.detach_activity() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('public."LiteLLM_DailyUserSpend"') IS NOT NULL THEN
        DROP TRIGGER IF EXISTS litespend_inserted ON public."LiteLLM_DailyUserSpend";
        DROP TRIGGER IF EXISTS litespend_deleted ON public."LiteLLM_DailyUserSpend";
        DROP TRIGGER IF EXISTS litespend_updated ON public."LiteLLM_DailyUserSpend";
        DROP TRIGGER IF EXISTS litespend_truncated ON public."LiteLLM_DailyUserSpend";
    END IF;
END $$;

CREATE OR REPLACE FUNCTION litespend.detach() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DROP TRIGGER IF EXISTS litespend_inserted ON public."LiteLLM_SpendLogs";
    DROP TRIGGER IF EXISTS litespend_deleted ON public."LiteLLM_SpendLogs";
    DROP TRIGGER IF EXISTS litespend_updated ON public."LiteLLM_SpendLogs";
    DROP TRIGGER IF EXISTS litespend_truncated ON public."LiteLLM_SpendLogs";
    PERFORM litespend.detach_activity();
END $$;

-- The days of a range whose sums stand.
CREATE FUNCTION litespend.activity_summed(first text, last text) RETURNS SETOF text
LANGUAGE sql STABLE AS $$
    SELECT d.date FROM litespend.activity_days d
    WHERE d.date >= first AND d.date <= last AND litespend.activity_attached()
      AND NOT EXISTS (SELECT FROM litespend.activity_changes c WHERE c.date IS NULL OR c.date = d.date)
    ORDER BY 1
$$;

-- Voids the sums of days with notes, then sums the newest day before "before" that is not summed, and not among "but".
-- Returns it, or NULL where there is none or another caller is at work. To be called READ COMMITTED, in a transaction of
-- its own: notes go only when the sums of their day are gone, and a day is summed in one statement, so that a note is
-- left of whatever that statement did not see.
CREATE FUNCTION litespend.sum_activity(before text, but text[]) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stale text[];
    picked text;
BEGIN
    IF to_regclass('public."LiteLLM_DailyUserSpend"') IS NULL OR NOT pg_try_advisory_xact_lock(7811884302) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM litespend.activity_changes WHERE date IS NULL) THEN
        DELETE FROM litespend.activity_days;
        DELETE FROM litespend.activity_groups;
        DELETE FROM litespend.activity_members;
        DELETE FROM litespend.activity_changes;
    END IF;
    stale := ARRAY(SELECT DISTINCT date FROM litespend.activity_changes WHERE date IS NOT NULL);
    IF cardinality(stale) > 0 THEN
        DELETE FROM litespend.activity_days WHERE date = ANY (stale);
        DELETE FROM litespend.activity_groups WHERE date = ANY (stale);
        DELETE FROM litespend.activity_members WHERE date = ANY (stale);
        DELETE FROM litespend.activity_changes WHERE date = ANY (stale);
    END IF;
    -- The days there are, one index lookup each.
    WITH RECURSIVE days AS (
        (SELECT date FROM public."LiteLLM_DailyUserSpend" WHERE date < before ORDER BY date DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT d.date FROM public."LiteLLM_DailyUserSpend" d WHERE d.date < days.date ORDER BY d.date DESC LIMIT 1)
        FROM days WHERE days.date IS NOT NULL
    )
    SELECT date INTO picked FROM days
    WHERE date ~ '^\d{4}-\d{2}-\d{2}$' AND date <> ALL (but)
      AND NOT EXISTS (SELECT FROM litespend.activity_days summed WHERE summed.date = days.date)
    ORDER BY date DESC LIMIT 1;
    IF picked IS NULL THEN
        RETURN NULL;
    END IF;
    -- Columns that an older LiteLLM lacks are found in the outer row of defaults.
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
            FROM public."LiteLLM_DailyUserSpend" WHERE date = picked) AS rows
    ), groups AS (
        INSERT INTO litespend.activity_groups
        SELECT picked, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, sum(spend),
               sum(prompt_tokens), sum(completion_tokens), sum(cache_read_input_tokens),
               sum(cache_creation_input_tokens), sum(compression_saved_tokens), sum(compression_savings_spend),
               sum(prompt_caching_savings_spend), sum(gateway_injected_caching_savings_spend),
               sum(autorouter_savings_spend), sum(api_requests), sum(successful_requests), sum(failed_requests),
               sum(total_response_time_ms), sum(timed_requests)
        FROM daily GROUP BY 2, 3, 4, 5, 6
    ), members AS (
        INSERT INTO litespend.activity_members
        SELECT picked, user_id, api_key, sum(spend), sum(prompt_tokens), sum(completion_tokens),
               sum(cache_read_input_tokens), sum(cache_creation_input_tokens), sum(api_requests),
               sum(successful_requests), sum(failed_requests)
        FROM daily GROUP BY 2, 3
    )
    INSERT INTO litespend.activity_days VALUES (picked);
    RETURN picked;
END $$;
