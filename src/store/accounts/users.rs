//! Creates and reads users.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

use crate::store::accounts::teams::listed;
use crate::store::accounts::{Conflict, Row, all_shown, shown};

/// A user to create.
#[derive(Clone, Debug, Default)]
pub struct NewUser {
    /// ID; must not be taken.
    pub user_id: String,
    /// E-mail address; must be unique if given, ignoring case.
    pub user_email: Option<String>,
    /// Alias: the display name.
    pub user_alias: Option<String>,
    /// Role, by LiteLLM's name for it.
    pub user_role: Option<String>,
    /// IDs of teams to join; the teams must exist.
    pub teams: Vec<String>,
    /// Models that the user is meant to use.
    pub models: Vec<String>,
    /// Intended budget in USD.
    pub max_budget: Option<f64>,
    /// Further metadata.
    pub metadata: Row,
}

/// Creates a user, who joins the teams as a member. Returns the user's row, or the reason why it was not created.
pub async fn create_user(connection: &mut PgConnection, user: &NewUser) -> Result<Result<Row, Conflict>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    if let Some(email) = &user.user_email {
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended(lower($1), 1))")
            .bind(email)
            .execute(&mut *transaction)
            .await?;
        let taken: bool = sqlx::query_scalar(
            r#"SELECT EXISTS (SELECT FROM "LiteLLM_UserTable" WHERE lower(user_email) = lower($1))"#,
        )
        .bind(email)
        .fetch_one(&mut *transaction)
        .await?;
        if taken {
            return Ok(Err(Conflict::Email));
        }
    }
    let row: Option<Json<Row>> = sqlx::query_scalar(
        r#"
        INSERT INTO "LiteLLM_UserTable" AS t (user_id, user_email, user_alias, user_role, teams, models, max_budget, metadata)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (user_id) DO NOTHING RETURNING to_jsonb(t)
        "#,
    )
    .bind(&user.user_id)
    .bind(&user.user_email)
    .bind(&user.user_alias)
    .bind(&user.user_role)
    .bind(&user.teams)
    .bind(&user.models)
    .bind(user.max_budget)
    .bind(Json(&user.metadata))
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return Ok(Err(Conflict::Id)) };
    let mut teams = user.teams.clone();
    teams.sort();
    teams.dedup();
    for team_id in &teams {
        let joined = sqlx::query(
            r#"UPDATE "LiteLLM_TeamTable"
               SET members_with_roles = CASE
                   WHEN members_with_roles @> jsonb_build_array(jsonb_build_object('user_id', $2::text)) THEN members_with_roles
                   WHEN jsonb_typeof(members_with_roles) = 'array' THEN members_with_roles || $3
                   ELSE $3 END,
                   updated_at = now() AT TIME ZONE 'UTC'
               WHERE team_id = $1"#,
        )
        .bind(team_id)
        .bind(&user.user_id)
        .bind(Json([listed(&user.user_id, user.user_email.as_deref(), "user")]))
        .execute(&mut *transaction)
        .await?;
        if joined.rows_affected() == 0 {
            return Ok(Err(Conflict::NoTeam));
        }
        sqlx::query(
            r#"INSERT INTO "LiteLLM_TeamMembership" (user_id, team_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"#,
        )
        .bind(&user.user_id)
        .bind(team_id)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(Ok(shown(row)))
}

/// The row of a user; `None` if the user does not exist.
pub async fn find_user(connection: &mut PgConnection, user_id: &str) -> Result<Option<Row>, sqlx::Error> {
    let row: Option<Json<Row>> =
        sqlx::query_scalar(r#"SELECT to_jsonb(t) FROM "LiteLLM_UserTable" AS t WHERE user_id = $1"#)
            .bind(user_id)
            .fetch_optional(connection)
            .await?;
    Ok(row.map(shown))
}

/// A user without a row, shown as if there were one: all columns of the table, filled with these fields.
pub async fn user_without_row(connection: &mut PgConnection, fields: &Value) -> Result<Row, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT to_jsonb(jsonb_populate_record(NULL::"LiteLLM_UserTable", $1))"#)
        .bind(fields)
        .fetch_one(connection)
        .await
        .map(shown)
}

/// The newest `limit` users.
pub async fn list_users(connection: &mut PgConnection, limit: i64) -> Result<Vec<Row>, sqlx::Error> {
    let rows = sqlx::query_scalar(
        r#"SELECT to_jsonb(t) FROM "LiteLLM_UserTable" AS t ORDER BY created_at DESC NULLS LAST, user_id LIMIT $1"#,
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(all_shown(rows))
}
