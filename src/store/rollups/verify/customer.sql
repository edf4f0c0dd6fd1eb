-- On the day $1: compares usage by end user, team, key and model in the day table, including unfolded deltas, with the
-- log.
WITH counted AS (
    SELECT customer, team, key, model, sum(requests) AS requests, sum(spend) AS spend, sum(total_tokens) AS total_tokens
    FROM (
        SELECT e.word AS customer, t.word AS team, k.word AS key, m.word AS model, requests, spend, total_tokens
        FROM litespend.day_customer d
        LEFT JOIN litespend.words e ON e.id = d.end_user
        LEFT JOIN litespend.words t ON t.id = d.team_id
        LEFT JOIN litespend.words k ON k.id = d.api_key
        LEFT JOIN litespend.words m ON m.id = d.model
        WHERE day = $1
        UNION ALL
        SELECT end_user, team_id, api_key, model, sign, spend, total_tokens
        FROM litespend.deltas
        WHERE day = $1) AS parts
    GROUP BY 1, 2, 3, 4
    HAVING sum(requests) <> 0
),
logged AS (
    SELECT end_user AS customer, team_id AS team, api_key AS key, model, count(*) AS requests, sum(spend) AS spend,
           sum(total_tokens) AS total_tokens
    FROM "LiteLLM_SpendLogs"
    WHERE "startTime" >= $1 AND "startTime" < $1 + 1
    GROUP BY 1, 2, 3, 4
)
SELECT 'customer' AS rollup,
       $1 AS day,
       concat_ws(', ', 'customer ' || COALESCE(c.customer, l.customer), 'team ' || COALESCE(c.team, l.team), 'key ' || COALESCE(c.key, l.key), 'model ' || COALESCE(c.model, l.model)) AS entry,
       format('%s requests, %s USD, %s tokens',
              COALESCE(c.requests, 0), COALESCE(c.spend, 0), COALESCE(c.total_tokens, 0)) AS counted,
       format('%s requests, %s USD, %s tokens',
              COALESCE(l.requests, 0), COALESCE(l.spend, 0), COALESCE(l.total_tokens, 0)) AS logged
FROM counted c
FULL JOIN logged l ON ROW(c.customer, c.team, c.key, c.model)::text = ROW(l.customer, l.team, l.key, l.model)::text
WHERE (c.requests IS DISTINCT FROM l.requests
    OR c.total_tokens IS DISTINCT FROM l.total_tokens
    OR c.spend IS DISTINCT FROM l.spend AND abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)))
LIMIT 1
