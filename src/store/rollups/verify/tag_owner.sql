-- On the day $1: compares spend by tag, team and user in the day table, including unfolded deltas, with the log.
WITH counted AS (
    SELECT tag, team, usr, sum(requests) AS requests, sum(spend) AS spend
    FROM (
        SELECT w.word AS tag, t.word AS team, u.word AS usr, log_count AS requests, spend
        FROM litespend.day_tag_owner d
        LEFT JOIN litespend.words w ON w.id = d.tag
        LEFT JOIN litespend.words t ON t.id = d.team_id
        LEFT JOIN litespend.words u ON u.id = d.user_id
        WHERE day = $1
        UNION ALL
        SELECT tag, team_id, user_id, sign, spend
        FROM litespend.deltas
        CROSS JOIN LATERAL jsonb_array_elements_text(request_tags) AS tag
        WHERE day = $1) AS parts
    GROUP BY 1, 2, 3
    HAVING sum(requests) <> 0
),
logged AS (
    SELECT tag, team_id AS team, "user" AS usr, count(*) AS requests, sum(spend) AS spend
    FROM "LiteLLM_SpendLogs"
    CROSS JOIN LATERAL jsonb_array_elements_text(
        CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
    WHERE "startTime" >= $1 AND "startTime" < $1 + 1
    GROUP BY 1, 2, 3
)
SELECT 'tag of owner' AS rollup,
       $1 AS day,
       concat_ws(', ', 'tag ' || COALESCE(c.tag, l.tag), 'team ' || COALESCE(c.team, l.team), 'user ' || COALESCE(c.usr, l.usr)) AS entry,
       COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
       COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
FROM counted c
FULL JOIN logged l ON ROW(c.tag, c.team, c.usr)::text = ROW(l.tag, l.team, l.usr)::text
WHERE (c.requests IS DISTINCT FROM l.requests
    OR c.spend IS DISTINCT FROM l.spend AND abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)))
LIMIT 1
