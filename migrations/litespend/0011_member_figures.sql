-- LiteLLM 1.110 shows every figure of aggregated activity by user, too, so the sums by user and key have all figures.
ALTER TABLE litespend.activity_members
    ADD COLUMN compression_saved_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN compression_savings_spend double precision NOT NULL DEFAULT 0,
    ADD COLUMN prompt_caching_savings_spend double precision NOT NULL DEFAULT 0,
    ADD COLUMN gateway_injected_caching_savings_spend double precision NOT NULL DEFAULT 0,
    ADD COLUMN autorouter_savings_spend double precision NOT NULL DEFAULT 0,
    ADD COLUMN total_response_time_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN timed_requests bigint NOT NULL DEFAULT 0;

-- As before, but for the new columns.
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
        INSERT INTO litespend.activity_members (
            date, user_id, api_key, spend, prompt_tokens, completion_tokens, cache_read_input_tokens,
            cache_creation_input_tokens, api_requests, successful_requests, failed_requests, compression_saved_tokens,
            compression_savings_spend, prompt_caching_savings_spend, gateway_injected_caching_savings_spend,
            autorouter_savings_spend, total_response_time_ms, timed_requests)
        SELECT $1, user_id, api_key, sum(spend), sum(prompt_tokens), sum(completion_tokens),
               sum(cache_read_input_tokens), sum(cache_creation_input_tokens), sum(api_requests),
               sum(successful_requests), sum(failed_requests), sum(compression_saved_tokens),
               sum(compression_savings_spend), sum(prompt_caching_savings_spend),
               sum(gateway_injected_caching_savings_spend), sum(autorouter_savings_spend), sum(total_response_time_ms),
               sum(timed_requests)
        FROM daily GROUP BY 2, 3
    )
    INSERT INTO litespend.activity_days VALUES ($1) $q$, daily) USING picked;
    RETURN picked;
END $$;

-- What was summed lacks them.
INSERT INTO litespend.activity_changes VALUES (NULL);
