-- On the day $1: compares usage by team, user, key and model in the day table, including unfolded deltas, with the log.
WITH counted AS (
    SELECT team, usr, key, model, sum(requests) AS requests, sum(spend) AS spend, sum(total_tokens) AS total_tokens,
           sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens
    FROM (
        SELECT t.word AS team, u.word AS usr, k.word AS key, m.word AS model, requests, spend, total_tokens,
               prompt_tokens, completion_tokens
        FROM litespend.day_usage d
        LEFT JOIN litespend.words t ON t.id = d.team_id
        LEFT JOIN litespend.words u ON u.id = d.user_id
        LEFT JOIN litespend.words k ON k.id = d.api_key
        LEFT JOIN litespend.words m ON m.id = d.model
        WHERE day = $1
        UNION ALL
        SELECT team_id, user_id, api_key, model, sign, spend, total_tokens, prompt_tokens, completion_tokens
        FROM litespend.deltas
        WHERE day = $1) AS parts
    GROUP BY 1, 2, 3, 4
    HAVING sum(requests) <> 0
),
logged AS (
    SELECT team_id AS team, "user" AS usr, api_key AS key, model, count(*) AS requests, sum(spend) AS spend,
           sum(total_tokens) AS total_tokens, sum(prompt_tokens) AS prompt_tokens,
           sum(completion_tokens) AS completion_tokens
    FROM "LiteLLM_SpendLogs"
    WHERE "startTime" >= $1 AND "startTime" < $1 + 1
    GROUP BY 1, 2, 3, 4
)
SELECT 'usage' AS rollup,
       $1 AS day,
       concat_ws(', ', 'team ' || COALESCE(c.team, l.team), 'user ' || COALESCE(c.usr, l.usr), 'key ' || COALESCE(c.key, l.key), 'model ' || COALESCE(c.model, l.model)) AS entry,
       format('%s requests, %s USD, %s prompt tokens, %s completion tokens, %s tokens',
              COALESCE(c.requests, 0), COALESCE(c.spend, 0), COALESCE(c.prompt_tokens, 0), COALESCE(c.completion_tokens, 0),
              COALESCE(c.total_tokens, 0)) AS counted,
       format('%s requests, %s USD, %s prompt tokens, %s completion tokens, %s tokens',
              COALESCE(l.requests, 0), COALESCE(l.spend, 0), COALESCE(l.prompt_tokens, 0), COALESCE(l.completion_tokens, 0),
              COALESCE(l.total_tokens, 0)) AS logged
FROM counted c
FULL JOIN logged l ON ROW(c.team, c.usr, c.key, c.model)::text = ROW(l.team, l.usr, l.key, l.model)::text
WHERE (c.requests IS DISTINCT FROM l.requests
    OR c.total_tokens IS DISTINCT FROM l.total_tokens
    OR c.prompt_tokens IS DISTINCT FROM l.prompt_tokens
    OR c.completion_tokens IS DISTINCT FROM l.completion_tokens
    OR c.spend IS DISTINCT FROM l.spend AND abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)))
LIMIT 1
