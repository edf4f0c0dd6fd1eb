//! Budgets of teams, keys, users, organisations and customers.

use sqlx::{FromRow, PgConnection};

use crate::store::spend_metrics::{NAME_LENGTH, exist};

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

/// The budgets of a kind.
#[derive(Clone, Debug, Default)]
pub struct Budgets {
    /// The first ones.
    pub listed: Vec<Budget>,
    /// The number of the others.
    pub not_listed: i64,
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

/// The statement that lists a kind's budgets, and the one that counts them.
macro_rules! budgets_of {
    ($id:literal, $alias:literal, $budget:literal, $from:literal) => {
        (
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
                " ORDER BY ",
                $budget,
                ".max_budget IS NULL, 1 LIMIT $1"
            ),
            concat!("SELECT count(*) FROM ", $from),
        )
    };
}

/// The first budgets of a kind by ID, at most `limit`; those who have no limit come last. None if an older LiteLLM does not have
/// them.
pub async fn budgets(connection: &mut PgConnection, of: Holder, limit: i64) -> Result<Budgets, sqlx::Error> {
    let (tables, (statement, count)): (&[&str], (&str, &str)) = match of {
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
    if !exist(connection, tables).await? {
        return Ok(Budgets::default());
    }
    let listed: Vec<Budget> =
        sqlx::query_as(statement).bind(limit).bind(NAME_LENGTH).fetch_all(&mut *connection).await?;
    let number = i64::try_from(listed.len()).unwrap_or(i64::MAX);
    if number < limit {
        return Ok(Budgets { listed, not_listed: 0 });
    }
    let all: i64 = sqlx::query_scalar(count).fetch_one(connection).await?;
    Ok(Budgets { listed, not_listed: all - number })
}
