//! Invariants of the ledger: rows are counted once, and every counter is the sum of its rows.

use sqlx::PgPool;

/// Compares the log with all counters and daily tables.
pub(crate) async fn assert_consistent(pool: &PgPool) {
    let differences: Vec<(String, String, f64, f64)> = sqlx::query_as(
        r#"
        WITH log AS (SELECT * FROM "LiteLLM_SpendLogs"),
        compared (counter, id, counted, booked) AS (
            SELECT 'key', t.token, t.spend, (SELECT sum(spend) FROM log WHERE api_key = t.token) FROM "LiteLLM_VerificationToken" t
            UNION ALL SELECT 'key, total', t.token, t.total_spend, (SELECT sum(spend) FROM log WHERE api_key = t.token) FROM "LiteLLM_VerificationToken" t
            UNION ALL SELECT 'user', t.user_id, t.spend, (SELECT sum(spend) FROM log WHERE "user" = t.user_id) FROM "LiteLLM_UserTable" t
            UNION ALL SELECT 'team', t.team_id, t.spend, (SELECT sum(spend) FROM log WHERE team_id = t.team_id) FROM "LiteLLM_TeamTable" t
            UNION ALL SELECT 'organization', t.organization_id, t.spend, (SELECT sum(spend) FROM log WHERE organization_id = t.organization_id) FROM "LiteLLM_OrganizationTable" t
            UNION ALL SELECT 'end user', t.user_id, t.spend, (SELECT sum(spend) FROM log WHERE end_user = t.user_id) FROM "LiteLLM_EndUserTable" t
            UNION ALL SELECT 'member', t.user_id, t.spend, (SELECT sum(spend) FROM log WHERE "user" = t.user_id AND team_id = t.team_id) FROM "LiteLLM_TeamMembership" t
            UNION ALL SELECT 'end users', '', (SELECT sum(spend) FROM "LiteLLM_EndUserTable"), (SELECT sum(spend) FROM log WHERE end_user <> '')
            UNION ALL SELECT 'daily users', user_id || date, sum(spend), (SELECT sum(spend) FROM log WHERE "user" = user_id AND "startTime"::date::text = date)
                      FROM "LiteLLM_DailyUserSpend" GROUP BY user_id, date
            UNION ALL SELECT 'daily teams', team_id || date, sum(spend), (SELECT sum(spend) FROM log WHERE team_id = d.team_id AND "startTime"::date::text = date)
                      FROM "LiteLLM_DailyTeamSpend" d GROUP BY team_id, date
            UNION ALL SELECT 'daily tags', tag || date, sum(spend), (SELECT sum(spend) FROM log WHERE request_tags ? tag AND "startTime"::date::text = date)
                      FROM "LiteLLM_DailyTagSpend" GROUP BY tag, date
            UNION ALL SELECT 'users', '', (SELECT sum(spend) FROM "LiteLLM_DailyUserSpend"), (SELECT sum(spend) FROM log)
            UNION ALL SELECT 'teams', '', (SELECT sum(spend) FROM "LiteLLM_DailyTeamSpend"), (SELECT sum(spend) FROM log)
            UNION ALL SELECT 'tags', '', (SELECT sum(spend) FROM "LiteLLM_DailyTagSpend"), (SELECT sum(spend * jsonb_array_length(request_tags)) FROM log)
            UNION ALL SELECT 'requests', '', (SELECT sum(api_requests) FROM "LiteLLM_DailyUserSpend"), (SELECT count(*) FROM log)
            UNION ALL SELECT 'successes', '', (SELECT sum(successful_requests) FROM "LiteLLM_DailyTeamSpend"), (SELECT count(*) FROM log WHERE status = 'success')
            UNION ALL SELECT 'failures', '', (SELECT sum(failed_requests) FROM "LiteLLM_DailyTeamSpend"), (SELECT count(*) FROM log WHERE status = 'failure')
            UNION ALL SELECT 'prompt tokens', '', (SELECT sum(prompt_tokens) FROM "LiteLLM_DailyUserSpend"), (SELECT sum(prompt_tokens) FROM log)
            UNION ALL SELECT 'completion tokens', '', (SELECT sum(completion_tokens) FROM "LiteLLM_DailyTeamSpend"), (SELECT sum(completion_tokens) FROM log)
            UNION ALL SELECT 'duplicate ids', '', count(DISTINCT request_id), count(*) FROM log
        )
        SELECT counter, id, COALESCE(counted, 0)::float8, COALESCE(booked, 0)::float8 FROM compared
        WHERE abs(COALESCE(counted, 0) - COALESCE(booked, 0)) > 1e-6
        "#,
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(differences.is_empty(), "{differences:#?}");
}

/// The number of rows in the log.
pub(crate) async fn rows(pool: &PgPool) -> i64 {
    sqlx::query_scalar(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).fetch_one(pool).await.unwrap()
}
