//! Comparing the rollups with the log.

use chrono::NaiveDate;
use sqlx::{Connection, Executor, FromRow, PgConnection};

use crate::store::rollups::Attempts;

/// A difference between the rollups and the log.
#[derive(Clone, Debug, FromRow)]
pub struct Difference {
    /// Which rollup.
    pub rollup: String,
    /// Day.
    pub day: NaiveDate,
    /// Of which entry, in words.
    pub entry: String,
    /// What the rollup has: requests and spend.
    pub counted: String,
    /// What the log has: requests and spend.
    pub logged: String,
}

/// The first difference between the rollups (with their unfolded deltas) and the log on one day that is not dirty,
/// all in one snapshot. Spend is compared within 1e-9, relative or absolute.
pub async fn verify_day(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<Difference>, sqlx::Error> {
    let mut attempts = Attempts::default();
    loop {
        let result = compare_day(connection, day).await;
        if let Some(found) = attempts.again(result).await? {
            return Ok(found);
        }
    }
}

async fn compare_day(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<Difference>, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    transaction.execute("SET LOCAL statement_timeout = '30min'").await?;
    let dirty: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND (day = $1 OR day IS NULL))")
            .bind(day)
            .fetch_one(&mut *transaction)
            .await?;
    if dirty {
        return Ok(None);
    }
    let mut found = None;
    for statement in VERIFY {
        found = sqlx::query_as(statement).bind(day).fetch_optional(&mut *transaction).await?;
        if found.is_some() {
            break;
        }
    }
    transaction.commit().await?;
    Ok(found)
}

/// Each compares one rollup with the log on the day `$1`.
const VERIFY: [&str; 6] = [
    r#"WITH counted AS (
           SELECT team, usr, key, model, sum(requests) AS requests, sum(spend) AS spend, sum(tokens) AS tokens FROM (
               SELECT t.word AS team, u.word AS usr, k.word AS key, m.word AS model, requests, spend,
                      total_tokens + prompt_tokens * 3 + completion_tokens * 5 AS tokens
               FROM litespend.day_usage d
               LEFT JOIN litespend.words t ON t.id = d.team_id LEFT JOIN litespend.words u ON u.id = d.user_id
               LEFT JOIN litespend.words k ON k.id = d.api_key LEFT JOIN litespend.words m ON m.id = d.model
               WHERE day = $1
               UNION ALL
               SELECT team_id, user_id, api_key, model, sign, spend,
                      total_tokens + prompt_tokens * 3 + completion_tokens * 5
               FROM litespend.deltas WHERE day = $1) AS parts GROUP BY 1, 2, 3, 4 HAVING sum(requests) <> 0),
       logged AS (
           SELECT team_id AS team, "user" AS usr, api_key AS key, model, count(*) AS requests, sum(spend) AS spend,
                  sum(total_tokens + prompt_tokens * 3::bigint + completion_tokens * 5::bigint) AS tokens
           FROM "LiteLLM_SpendLogs" WHERE "startTime" >= $1 AND "startTime" < $1 + 1 GROUP BY 1, 2, 3, 4)
       SELECT 'usage' AS rollup, $1 AS day, concat_ws(', ', 'team ' || COALESCE(c.team, l.team),
                  'user ' || COALESCE(c.usr, l.usr), 'key ' || COALESCE(c.key, l.key),
                  'model ' || COALESCE(c.model, l.model)) AS entry,
              COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
              COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
       FROM counted c FULL JOIN logged l
         ON ROW(c.team, c.usr, c.key, c.model)::text = ROW(l.team, l.usr, l.key, l.model)::text
       WHERE c.requests IS DISTINCT FROM l.requests OR c.tokens IS DISTINCT FROM l.tokens
          OR abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)) LIMIT 1"#,
    r#"WITH counted AS (
           SELECT customer, team, key, model, sum(requests) AS requests, sum(spend) AS spend, sum(tokens) AS tokens
           FROM (
               SELECT e.word AS customer, t.word AS team, k.word AS key, m.word AS model, requests, spend,
                      total_tokens AS tokens
               FROM litespend.day_customer d
               LEFT JOIN litespend.words e ON e.id = d.end_user LEFT JOIN litespend.words t ON t.id = d.team_id
               LEFT JOIN litespend.words k ON k.id = d.api_key LEFT JOIN litespend.words m ON m.id = d.model
               WHERE day = $1
               UNION ALL
               SELECT end_user, team_id, api_key, model, sign, spend, total_tokens
               FROM litespend.deltas WHERE day = $1) AS parts GROUP BY 1, 2, 3, 4 HAVING sum(requests) <> 0),
       logged AS (
           SELECT end_user AS customer, team_id AS team, api_key AS key, model, count(*) AS requests,
                  sum(spend) AS spend, sum(total_tokens) AS tokens
           FROM "LiteLLM_SpendLogs" WHERE "startTime" >= $1 AND "startTime" < $1 + 1 GROUP BY 1, 2, 3, 4)
       SELECT 'customer' AS rollup, $1 AS day, concat_ws(', ', 'customer ' || COALESCE(c.customer, l.customer),
                  'team ' || COALESCE(c.team, l.team), 'key ' || COALESCE(c.key, l.key),
                  'model ' || COALESCE(c.model, l.model)) AS entry,
              COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
              COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
       FROM counted c FULL JOIN logged l
         ON ROW(c.customer, c.team, c.key, c.model)::text = ROW(l.customer, l.team, l.key, l.model)::text
       WHERE c.requests IS DISTINCT FROM l.requests OR c.tokens IS DISTINCT FROM l.tokens
          OR abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)) LIMIT 1"#,
    r#"WITH counted AS (
           SELECT tag, sum(requests) AS requests, sum(spend) AS spend FROM (
               SELECT w.word AS tag, log_count AS requests, spend FROM litespend.day_tag d
               LEFT JOIN litespend.words w ON w.id = d.tag WHERE day = $1
               UNION ALL
               SELECT tag, sign, spend FROM litespend.deltas
               CROSS JOIN LATERAL jsonb_array_elements_text(request_tags) AS tag WHERE day = $1
           ) AS parts GROUP BY 1 HAVING sum(requests) <> 0),
       logged AS (
           SELECT tag, count(*) AS requests, sum(spend) AS spend FROM "LiteLLM_SpendLogs"
           CROSS JOIN LATERAL jsonb_array_elements_text(
               CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
           WHERE "startTime" >= $1 AND "startTime" < $1 + 1 GROUP BY 1)
       SELECT 'tag' AS rollup, $1 AS day, 'tag ' || COALESCE(c.tag, l.tag, 'null') AS entry,
              COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
              COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
       FROM counted c FULL JOIN logged l ON ROW(c.tag)::text = ROW(l.tag)::text
       WHERE c.requests IS DISTINCT FROM l.requests
          OR abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)) LIMIT 1"#,
    r#"WITH counted AS (
           SELECT tag, team, usr, sum(requests) AS requests, sum(spend) AS spend FROM (
               SELECT w.word AS tag, t.word AS team, u.word AS usr, log_count AS requests, spend
               FROM litespend.day_tag_owner d
               LEFT JOIN litespend.words w ON w.id = d.tag LEFT JOIN litespend.words t ON t.id = d.team_id
               LEFT JOIN litespend.words u ON u.id = d.user_id WHERE day = $1
               UNION ALL
               SELECT tag, team_id, user_id, sign, spend FROM litespend.deltas
               CROSS JOIN LATERAL jsonb_array_elements_text(request_tags) AS tag WHERE day = $1
           ) AS parts GROUP BY 1, 2, 3 HAVING sum(requests) <> 0),
       logged AS (
           SELECT tag, team_id AS team, "user" AS usr, count(*) AS requests, sum(spend) AS spend
           FROM "LiteLLM_SpendLogs"
           CROSS JOIN LATERAL jsonb_array_elements_text(
               CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
           WHERE "startTime" >= $1 AND "startTime" < $1 + 1 GROUP BY 1, 2, 3)
       SELECT 'tag of owner' AS rollup, $1 AS day, concat_ws(', ', 'tag ' || COALESCE(c.tag, l.tag),
                  'team ' || COALESCE(c.team, l.team), 'user ' || COALESCE(c.usr, l.usr)) AS entry,
              COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
              COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
       FROM counted c FULL JOIN logged l ON ROW(c.tag, c.team, c.usr)::text = ROW(l.tag, l.team, l.usr)::text
       WHERE c.requests IS DISTINCT FROM l.requests
          OR abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend)) LIMIT 1"#,
    r#"WITH counted AS (
           SELECT model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, api_requests AS requests,
                  spend, prompt_tokens + completion_tokens * 3 + cache_read_input_tokens * 5
                  + cache_creation_input_tokens * 7 + successful_requests * 11 + failed_requests * 13 AS figures
           FROM litespend.activity_groups WHERE date = $1::text),
       logged AS (
           SELECT model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint,
                  sum(api_requests) AS requests, sum(spend) AS spend,
                  sum(prompt_tokens + completion_tokens * 3 + cache_read_input_tokens * 5
                      + cache_creation_input_tokens * 7 + successful_requests * 11 + failed_requests * 13) AS figures
           FROM "LiteLLM_DailyUserSpend" WHERE date = $1::text GROUP BY 1, 2, 3, 4, 5)
       SELECT 'group of daily rows' AS rollup, $1 AS day, concat_ws(', ', 'model ' || COALESCE(c.model, l.model),
                  'endpoint ' || COALESCE(c.endpoint, l.endpoint)) AS entry,
              COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
              COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
       FROM counted c FULL JOIN logged l
         ON ROW(c.model, c.model_group, c.custom_llm_provider, c.mcp_namespaced_tool_name, c.endpoint)::text
          = ROW(l.model, l.model_group, l.custom_llm_provider, l.mcp_namespaced_tool_name, l.endpoint)::text
       WHERE EXISTS (SELECT FROM litespend.activity_summed($1::text, $1::text))
         AND (c.requests IS DISTINCT FROM l.requests OR c.figures IS DISTINCT FROM l.figures
              OR abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend))) LIMIT 1"#,
    r#"WITH counted AS (
           SELECT user_id, api_key, api_requests AS requests, spend, prompt_tokens + completion_tokens * 3
                  + cache_read_input_tokens * 5 + cache_creation_input_tokens * 7 + successful_requests * 11
                  + failed_requests * 13 AS figures
           FROM litespend.activity_members WHERE date = $1::text),
       logged AS (
           SELECT user_id, api_key, sum(api_requests) AS requests, sum(spend) AS spend,
                  sum(prompt_tokens + completion_tokens * 3 + cache_read_input_tokens * 5
                      + cache_creation_input_tokens * 7 + successful_requests * 11 + failed_requests * 13) AS figures
           FROM "LiteLLM_DailyUserSpend" WHERE date = $1::text GROUP BY 1, 2)
       SELECT 'member of daily rows' AS rollup, $1 AS day, concat_ws(', ', 'user ' || COALESCE(c.user_id, l.user_id),
                  'key ' || COALESCE(c.api_key, l.api_key)) AS entry,
              COALESCE(c.requests, 0) || ' requests, ' || COALESCE(c.spend, 0) || ' USD' AS counted,
              COALESCE(l.requests, 0) || ' requests, ' || COALESCE(l.spend, 0) || ' USD' AS logged
       FROM counted c FULL JOIN logged l ON ROW(c.user_id, c.api_key)::text = ROW(l.user_id, l.api_key)::text
       WHERE EXISTS (SELECT FROM litespend.activity_summed($1::text, $1::text))
         AND (c.requests IS DISTINCT FROM l.requests OR c.figures IS DISTINCT FROM l.figures
              OR abs(c.spend - l.spend) > 1e-9 * greatest(1, abs(l.spend))) LIMIT 1"#,
];
