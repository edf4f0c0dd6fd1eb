-- On the day $1: compares spend by tag in the day table, including unfolded deltas, with the log.
WITH counted AS (
    SELECT tag, sum(requests) AS requests, sum(spend) AS spend
    FROM (
        SELECT w.word AS tag, log_count AS requests, spend
        FROM litespend.day_tag d
        LEFT JOIN litespend.words w ON w.id = d.tag
        WHERE day = $1
        UNION ALL
        SELECT tag, sign, spend
        FROM litespend.deltas
        CROSS JOIN LATERAL jsonb_array_elements_text(request_tags) AS tag
        WHERE day = $1) AS parts
    GROUP BY 1
    HAVING sum(requests) <> 0
),
logged AS (
    SELECT tag, count(*) AS requests, sum(spend) AS spend
    FROM "LiteLLM_SpendLogs"
    CROSS JOIN LATERAL jsonb_array_elements_text(
        CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
    WHERE "startTime" >= $1 AND "startTime" < $1 + 1
    GROUP BY 1
)
SELECT 'tag' AS rollup,
       $1 AS day,
       'tag ' || COALESCE(c.tag, l.tag, 'null') AS entry,
       COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
       COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
FROM counted c
FULL JOIN logged l ON ROW(c.tag)::text = ROW(l.tag)::text
WHERE (c.requests IS DISTINCT FROM l.requests
    OR c.spend IS DISTINCT FROM l.spend AND abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)))
LIMIT 1
