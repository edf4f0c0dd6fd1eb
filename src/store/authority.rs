//! What has to be known of keys, users and teams before somebody gives rights to them.

use sqlx::PgConnection;

/// Whether a key names one of these users as its owner.
pub async fn have_keys(connection: &mut PgConnection, user_ids: &[String]) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_VerificationToken" WHERE user_id = ANY ($1))"#)
        .bind(user_ids)
        .fetch_one(connection)
        .await
}

/// Those of the users who don't exist.
pub async fn missing_users(connection: &mut PgConnection, user_ids: &[String]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT id FROM unnest($1::text[]) AS asked (id)
           WHERE NOT EXISTS (SELECT FROM "LiteLLM_UserTable" WHERE user_id = asked.id)"#,
    )
    .bind(user_ids)
    .fetch_all(connection)
    .await
}

/// A user's stored role: `None` where there is no such user, `Some(None)` where the user has none.
pub async fn role_of(connection: &mut PgConnection, user_id: &str) -> Result<Option<Option<String>>, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT user_role FROM "LiteLLM_UserTable" WHERE user_id = $1"#)
        .bind(user_id)
        .fetch_optional(connection)
        .await
}
