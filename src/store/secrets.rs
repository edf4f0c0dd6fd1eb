//! `litespend.secrets`: random secrets of this installation. There are none where LiteLLM owns the database.

use sqlx::PgConnection;

use crate::store::database;
use crate::store::database::DatabaseKind;

/// The secret of this name, or `proposed` where there is none yet; servers that start together agree on one. `None`
/// where the database is LiteLLM's.
pub async fn find_or_keep(
    connection: &mut PgConnection,
    name: &str,
    proposed: &[u8],
) -> Result<Option<Vec<u8>>, sqlx::Error> {
    if database::kind(connection).await? == DatabaseKind::LiteLlm {
        return Ok(None);
    }
    if let Some(found) = find(connection, name).await? {
        return Ok(Some(found));
    }
    sqlx::query("INSERT INTO litespend.secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(proposed)
        .execute(&mut *connection)
        .await?;
    find(connection, name).await
}

async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<Vec<u8>>, sqlx::Error> {
    sqlx::query_scalar("SELECT value FROM litespend.secrets WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await
}
