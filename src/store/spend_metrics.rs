//! What was ever logged, and budgets, for Prometheus. Reads no row of the log.

use futures_util::TryStreamExt;
use sqlx::{FromRow, PgConnection};

/// What a series of calls has logged: never less than before.
#[derive(Clone, Debug, FromRow)]
pub struct Logged {
    /// Team ID.
    pub team_id: Option<String>,
    /// User ID.
    pub user_id: Option<String>,
    /// SHA-256 of the key in hex, or an alias of the master key.
    pub api_key: Option<String>,
    /// Model name.
    pub model: Option<String>,
    /// The place of the series in the order in which they came. `None` for a series that is not folded yet.
    pub number: Option<i64>,
    /// Number of rows.
    pub requests: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Input tokens.
    pub prompt_tokens: i64,
    /// Output tokens.
    pub completion_tokens: i64,
    /// All tokens.
    pub total_tokens: i64,
}

/// Whether what was ever logged is kept in this database. The rollups of an older version do not have it.
pub async fn is_kept(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('litespend.lifetime_usage') IS NOT NULL").fetch_one(connection).await
}

/// What was ever logged, by team, user, key and model, with what is not folded yet, in the order in which the series came.
/// Names are cut after [`NAME_LENGTH`] characters. All of one moment. `each` gets every row.
pub async fn logged(connection: &mut PgConnection, mut each: impl FnMut(Logged)) -> Result<(), sqlx::Error> {
    let mut rows = sqlx::query_as::<_, Logged>(
        "WITH unfolded AS (
             SELECT team_id AS team, user_id AS \"user\", api_key AS key, model AS model_name, sum(sign)::bigint AS requests,
                    sum(litespend.finite(spend)) AS spend, sum(prompt_tokens)::bigint AS prompt_tokens,
                    sum(completion_tokens)::bigint AS completion_tokens, sum(total_tokens)::bigint AS total_tokens
             FROM litespend.deltas WHERE sign > 0 OR is_update GROUP BY 1, 2, 3, 4),
         numbered AS (
             -- A word that has no number yet belongs to a new series.
             SELECT CASE WHEN team IS NULL THEN 0 ELSE COALESCE(t.id, -1) END AS team_id,
                    CASE WHEN \"user\" IS NULL THEN 0 ELSE COALESCE(u.id, -1) END AS user_id,
                    CASE WHEN key IS NULL THEN 0 ELSE COALESCE(k.id, -1) END AS api_key,
                    CASE WHEN model_name IS NULL THEN 0 ELSE COALESCE(m.id, -1) END AS model, unfolded.*
             FROM unfolded
             LEFT JOIN litespend.words t ON t.digest = litespend.digest(team)
             LEFT JOIN litespend.words u ON u.digest = litespend.digest(\"user\")
             LEFT JOIN litespend.words k ON k.digest = litespend.digest(key)
             LEFT JOIN litespend.words m ON m.digest = litespend.digest(model_name))
         SELECT left(COALESCE(t.word, n.team), $1) AS team_id, left(COALESCE(u.word, n.\"user\"), $1) AS user_id,
                left(COALESCE(k.word, n.key), $1) AS api_key, left(COALESCE(m.word, n.model_name), $1) AS model, l.number,
                GREATEST(l.most_requests, COALESCE(l.requests, 0) + COALESCE(n.requests, 0)) AS requests,
                GREATEST(l.most_spend, COALESCE(l.spend, 0) + COALESCE(n.spend, 0)) AS spend,
                GREATEST(l.most_prompt_tokens, COALESCE(l.prompt_tokens, 0) + COALESCE(n.prompt_tokens, 0)) AS prompt_tokens,
                GREATEST(l.most_completion_tokens,
                         COALESCE(l.completion_tokens, 0) + COALESCE(n.completion_tokens, 0)) AS completion_tokens,
                GREATEST(l.most_total_tokens, COALESCE(l.total_tokens, 0) + COALESCE(n.total_tokens, 0)) AS total_tokens
         FROM litespend.lifetime_usage AS l
         FULL JOIN numbered AS n USING (team_id, user_id, api_key, model)
         LEFT JOIN litespend.words t ON t.id = l.team_id
         LEFT JOIN litespend.words u ON u.id = l.user_id
         LEFT JOIN litespend.words k ON k.id = l.api_key
         LEFT JOIN litespend.words m ON m.id = l.model
         ORDER BY l.number NULLS LAST",
    )
    .bind(NAME_LENGTH)
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        each(row);
    }
    Ok(())
}

/// The most characters of a name. Longer ones are cut: every series is in memory while metrics are written.
pub const NAME_LENGTH: i32 = 128;

/// Names of things by their IDs.
pub type Names = Vec<(String, Option<String>)>;

/// Aliases of keys by their hashes.
pub async fn key_aliases(connection: &mut PgConnection) -> Result<Names, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT left(token, $1), left(key_alias, $1) FROM "LiteLLM_VerificationToken" WHERE key_alias <> ''"#,
    )
    .bind(NAME_LENGTH)
    .fetch_all(connection)
    .await
}

/// Aliases of teams by their IDs.
pub async fn team_aliases(connection: &mut PgConnection) -> Result<Names, sqlx::Error> {
    sqlx::query_as(r#"SELECT left(team_id, $1), left(team_alias, $1) FROM "LiteLLM_TeamTable" WHERE team_alias <> ''"#)
        .bind(NAME_LENGTH)
        .fetch_all(connection)
        .await
}

/// Email addresses of users by their IDs.
pub async fn user_emails(connection: &mut PgConnection) -> Result<Names, sqlx::Error> {
    sqlx::query_as(r#"SELECT left(user_id, $1), left(user_email, $1) FROM "LiteLLM_UserTable" WHERE user_email <> ''"#)
        .bind(NAME_LENGTH)
        .fetch_all(connection)
        .await
}

/// A budget and what is spent of it.
#[derive(Clone, Debug, FromRow)]
pub struct Budget {
    /// ID of the team, key, user, organisation or customer.
    pub id: String,
    /// Its alias.
    pub alias: Option<String>,
    /// The budget in USD. `None`: no limit.
    pub max_budget: Option<f64>,
    /// Spend of the current period in USD.
    pub spend: Option<f64>,
    /// Hours until the budget is reset; negative if that is over. `None`: never.
    pub remaining_hours: Option<f64>,
}

/// Who has a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Teams.
    Team,
    /// Organisations.
    Organization,
    /// API keys.
    Key,
    /// Users.
    User,
    /// Customers, which LiteLLM calls end users.
    Customer,
}

macro_rules! budgets_of {
    ($id:literal, $alias:literal, $budget:literal, $from:literal) => {
        concat!(
            "SELECT ",
            $id,
            " AS id, ",
            $alias,
            " AS alias, ",
            $budget,
            ".max_budget, o.spend, (extract(epoch FROM ",
            $budget,
            ".budget_reset_at::timestamptz - now()) / 3600)::float8 AS remaining_hours FROM ",
            $from,
            " ORDER BY 1 LIMIT $1"
        )
    };
}

/// The first budgets of a kind by ID, at most `limit`. None if an older LiteLLM does not have them.
pub async fn budgets(connection: &mut PgConnection, of: Holder, limit: i64) -> Result<Vec<Budget>, sqlx::Error> {
    let (tables, statement): (&[&str], &str) = match of {
        Holder::Team => {
            (&[r#""LiteLLM_TeamTable""#], budgets_of!("team_id", "team_alias", "o", r#""LiteLLM_TeamTable" AS o"#))
        }
        // The keys of the dashboard's sessions have budgets of their own, which concern nobody.
        Holder::Key => (
            &[r#""LiteLLM_VerificationToken""#],
            budgets_of!(
                "token",
                "key_alias",
                "o",
                r#""LiteLLM_VerificationToken" AS o WHERE team_id IS DISTINCT FROM 'litellm-dashboard'"#
            ),
        ),
        Holder::User => {
            (&[r#""LiteLLM_UserTable""#], budgets_of!("user_id", "NULL::text", "o", r#""LiteLLM_UserTable" AS o"#))
        }
        Holder::Organization => (
            &[r#""LiteLLM_OrganizationTable""#, r#""LiteLLM_BudgetTable""#],
            budgets_of!(
                "organization_id",
                "organization_alias",
                "b",
                r#""LiteLLM_OrganizationTable" AS o JOIN "LiteLLM_BudgetTable" AS b USING (budget_id)"#
            ),
        ),
        Holder::Customer => (
            &[r#""LiteLLM_EndUserTable""#, r#""LiteLLM_BudgetTable""#],
            budgets_of!(
                "user_id",
                "NULL::text",
                "b",
                r#""LiteLLM_EndUserTable" AS o JOIN "LiteLLM_BudgetTable" AS b USING (budget_id)"#
            ),
        ),
    };
    let exist: bool =
        sqlx::query_scalar("SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name")
            .bind(tables)
            .fetch_one(&mut *connection)
            .await?;
    if !exist {
        return Ok(Vec::new());
    }
    sqlx::query_as(statement).bind(limit).bind(NAME_LENGTH).fetch_all(connection).await
}
