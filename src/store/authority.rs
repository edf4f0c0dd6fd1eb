//! Checks of keys, users and teams before rights are granted to them.

use sqlx::PgConnection;

/// Whether any key belongs to one of these users.
pub async fn have_keys(connection: &mut PgConnection, user_ids: &[String]) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_VerificationToken" WHERE user_id = ANY ($1))"#)
        .bind(user_ids)
        .fetch_one(connection)
        .await
}

/// Those of these user IDs that do not exist.
pub async fn missing_users(connection: &mut PgConnection, user_ids: &[String]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT id FROM unnest($1::text[]) AS asked (id)
           WHERE NOT EXISTS (SELECT FROM "LiteLLM_UserTable" WHERE user_id = asked.id)"#,
    )
    .bind(user_ids)
    .fetch_all(connection)
    .await
}

/// The stored role of a user. `None` if the user does not exist, `Some(None)` if the user has no role.
pub async fn role_of(connection: &mut PgConnection, user_id: &str) -> Result<Option<Option<String>>, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT user_role FROM "LiteLLM_UserTable" WHERE user_id = $1"#)
        .bind(user_id)
        .fetch_optional(connection)
        .await
}
