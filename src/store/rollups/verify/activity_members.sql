-- On the day $1, if it is summed: compares the stored sums by user and key with LiteLLM's daily rows.
WITH counted AS (
    SELECT user_id, api_key, api_requests AS requests, spend,
           prompt_tokens, completion_tokens, cache_read_input_tokens,
           cache_creation_input_tokens, successful_requests, failed_requests
    FROM litespend.activity_members
    WHERE date = $1::text
),
logged AS (
    SELECT user_id, api_key, sum(api_requests) AS requests, sum(spend) AS spend,
           sum(prompt_tokens) AS prompt_tokens,
           sum(completion_tokens) AS completion_tokens,
           sum(cache_read_input_tokens) AS cache_read_input_tokens,
           sum(cache_creation_input_tokens) AS cache_creation_input_tokens,
           sum(successful_requests) AS successful_requests,
           sum(failed_requests) AS failed_requests
    FROM "LiteLLM_DailyUserSpend"
    WHERE date = $1::text
    GROUP BY 1, 2
)
SELECT 'member of daily rows' AS rollup,
       $1 AS day,
       concat_ws(', ', 'user ' || COALESCE(c.user_id, l.user_id), 'key ' || COALESCE(c.api_key, l.api_key)) AS entry,
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
FULL JOIN logged l ON ROW(c.user_id, c.api_key)::text = ROW(l.user_id, l.api_key)::text
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
