-- On the day $1, if it is summed: compares the stored sums by model, model group, provider, tool and endpoint with
-- LiteLLM's daily rows.
WITH counted AS (
    SELECT model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, api_requests AS requests, spend,
           prompt_tokens, completion_tokens, cache_read_input_tokens,
           cache_creation_input_tokens, successful_requests, failed_requests
    FROM litespend.activity_groups
    WHERE date = $1::text
),
logged AS (
    SELECT daily.model, daily.model_group, daily.custom_llm_provider, daily.mcp_namespaced_tool_name, daily.endpoint,
           sum(api_requests) AS requests, sum(spend) AS spend, sum(prompt_tokens) AS prompt_tokens,
           sum(completion_tokens) AS completion_tokens,
           sum(cache_read_input_tokens) AS cache_read_input_tokens,
           sum(cache_creation_input_tokens) AS cache_creation_input_tokens,
           sum(successful_requests) AS successful_requests,
           sum(failed_requests) AS failed_requests
    -- Columns that an older LiteLLM lacks are found in the outer row of defaults.
    FROM (SELECT NULL::text AS endpoint, NULL::text AS mcp_namespaced_tool_name) AS defaults
    CROSS JOIN LATERAL (
        SELECT model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, api_requests, spend,
               prompt_tokens, completion_tokens, cache_read_input_tokens, cache_creation_input_tokens,
               successful_requests, failed_requests
        FROM "LiteLLM_DailyUserSpend"
        WHERE date = $1::text) AS daily
    GROUP BY 1, 2, 3, 4, 5
)
SELECT 'group of daily rows' AS rollup,
       $1 AS day,
       concat_ws(', ', 'model ' || COALESCE(c.model, l.model), 'endpoint ' || COALESCE(c.endpoint, l.endpoint)) AS entry,
       format('%s requests, %s USD, %s prompt tokens, %s completion tokens, %s tokens read from caches, '
              '%s tokens written to caches, %s successes, %s failures',
              COALESCE(c.requests, 0), COALESCE(c.spend, 0), COALESCE(c.prompt_tokens, 0), COALESCE(c.completion_tokens, 0),
              COALESCE(c.cache_read_input_tokens, 0), COALESCE(c.cache_creation_input_tokens, 0),
              COALESCE(c.successful_requests, 0), COALESCE(c.failed_requests, 0)) AS counted,
       format('%s requests, %s USD, %s prompt tokens, %s completion tokens, %s tokens read from caches, '
              '%s tokens written to caches, %s successes, %s failures',
              COALESCE(l.requests, 0), COALESCE(l.spend, 0), COALESCE(l.prompt_tokens, 0), COALESCE(l.completion_tokens, 0),
              COALESCE(l.cache_read_input_tokens, 0), COALESCE(l.cache_creation_input_tokens, 0),
              COALESCE(l.successful_requests, 0), COALESCE(l.failed_requests, 0)) AS logged
FROM counted c
FULL JOIN logged l ON ROW(c.model, c.model_group, c.custom_llm_provider, c.mcp_namespaced_tool_name, c.endpoint)::text = ROW(l.model, l.model_group, l.custom_llm_provider, l.mcp_namespaced_tool_name, l.endpoint)::text
WHERE EXISTS (SELECT FROM litespend.activity_summed($1::text, $1::text))
  AND (c.requests IS DISTINCT FROM l.requests
    OR c.prompt_tokens IS DISTINCT FROM l.prompt_tokens
    OR c.completion_tokens IS DISTINCT FROM l.completion_tokens
    OR c.cache_read_input_tokens IS DISTINCT FROM l.cache_read_input_tokens
    OR c.cache_creation_input_tokens IS DISTINCT FROM l.cache_creation_input_tokens
    OR c.successful_requests IS DISTINCT FROM l.successful_requests
    OR c.failed_requests IS DISTINCT FROM l.failed_requests
    OR c.spend IS DISTINCT FROM l.spend AND abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)))
LIMIT 1
