//! Random secrets of this installation, stored in `litespend.secrets`. If LiteLLM owns the database, there are none.

use sqlx::PgConnection;

use crate::store::database;
use crate::store::database::DatabaseKind;

/// The secret with this name. If there is none, stores and returns `proposed`. Servers that start at the same time get
/// the same secret. `None` if LiteLLM owns the database.
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
