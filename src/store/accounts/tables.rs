//! Whole rows of `LiteLLM_VerificationToken` and `LiteLLM_UserTable`, as JSON. The route decides which columns it
//! returns, and how. The password of a user never leaves the database.

use futures_util::stream::BoxStream;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

/// A row as a JSON object, by column.
pub type Row = Json<Map<String, Value>>;

/// Streams all keys, largest spend first.
pub fn all_keys(connection: &mut PgConnection) -> BoxStream<'_, Result<Row, sqlx::Error>> {
    sqlx::query_scalar(r#"SELECT to_jsonb(k) FROM "LiteLLM_VerificationToken" k ORDER BY k.spend DESC, k.token"#)
        .fetch(connection)
}

/// Streams the keys of one user, oldest first.
pub fn keys_of_user(connection: &mut PgConnection, user_id: String) -> BoxStream<'_, Result<Row, sqlx::Error>> {
    sqlx::query_scalar(
        r#"SELECT to_jsonb(k) FROM "LiteLLM_VerificationToken" k WHERE k.user_id = $1 ORDER BY k.created_at, k.ctid"#,
    )
    .bind(user_id)
    .fetch(connection)
}

/// Streams all users, largest spend first. Each has `key_aliases`, the list of the aliases of the user's keys; the list
/// contains one null if the user has no key.
pub fn all_users(connection: &mut PgConnection) -> BoxStream<'_, Result<Row, sqlx::Error>> {
    sqlx::query_scalar(
        r#"SELECT (to_jsonb(u) - 'password') || jsonb_build_object('key_aliases', COALESCE(
                      (SELECT jsonb_agg(k.key_alias ORDER BY k.created_at, k.ctid)
                       FROM "LiteLLM_VerificationToken" k WHERE k.user_id = u.user_id), '[null]'))
           FROM "LiteLLM_UserTable" u ORDER BY u.spend DESC, u.user_id"#,
    )
    .fetch(connection)
}

/// The row of one user; `None` if the user does not exist.
pub async fn user(connection: &mut PgConnection, user_id: &str) -> Result<Option<Row>, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT to_jsonb(u) - 'password' FROM "LiteLLM_UserTable" u WHERE u.user_id = $1"#)
        .bind(user_id)
        .fetch_optional(connection)
        .await
}
