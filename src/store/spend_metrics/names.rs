//! Aliases and email addresses, for the labels of the metrics.

use sqlx::PgConnection;

use crate::store::spend_metrics::{NAME_LENGTH, exist};

/// Names of things by their IDs.
pub type Names = Vec<(String, Option<String>)>;

/// Aliases of keys by their hashes: of deleted keys, if there is a table of them, and then of all others.
pub async fn key_aliases(connection: &mut PgConnection) -> Result<Names, sqlx::Error> {
    // A LiteLLM before 1.80 has no such table.
    let deleted = if exist(connection, &[r#""LiteLLM_DeletedVerificationToken""#]).await? {
        r#"SELECT left(token, $1), left(key_alias, $1) FROM "LiteLLM_DeletedVerificationToken" AS gone
           WHERE key_alias <> ''
             AND NOT EXISTS (SELECT FROM "LiteLLM_VerificationToken" AS own WHERE own.token = gone.token)
           ORDER BY deleted_at"#
    } else {
        ""
    };
    let own = r#"SELECT left(token, $1), left(key_alias, $1) FROM "LiteLLM_VerificationToken" WHERE key_alias <> ''"#;
    names(connection, [deleted, own]).await
}

/// Aliases of teams by their IDs: of deleted teams, if there is a table of them, and then of all others.
pub async fn team_aliases(connection: &mut PgConnection) -> Result<Names, sqlx::Error> {
    // Only LiteLLM has this table, since 1.80.
    let deleted = if exist(connection, &[r#""LiteLLM_DeletedTeamTable""#]).await? {
        r#"SELECT left(team_id, $1), left(team_alias, $1) FROM "LiteLLM_DeletedTeamTable" AS gone
           WHERE team_alias <> ''
             AND NOT EXISTS (SELECT FROM "LiteLLM_TeamTable" AS own WHERE own.team_id = gone.team_id)
           ORDER BY deleted_at"#
    } else {
        ""
    };
    let own = r#"SELECT left(team_id, $1), left(team_alias, $1) FROM "LiteLLM_TeamTable" WHERE team_alias <> ''"#;
    names(connection, [deleted, own]).await
}

/// The rows of all statements that are not empty.
async fn names(connection: &mut PgConnection, statements: [&'static str; 2]) -> Result<Names, sqlx::Error> {
    let mut names = Names::new();
    for statement in statements.into_iter().filter(|statement| !statement.is_empty()) {
        names.extend(sqlx::query_as(statement).bind(NAME_LENGTH).fetch_all(&mut *connection).await?);
    }
    Ok(names)
}

/// Aliases of organisations by their IDs.
pub async fn organization_aliases(connection: &mut PgConnection) -> Result<Names, sqlx::Error> {
    if !exist(connection, &[r#""LiteLLM_OrganizationTable""#]).await? {
        return Ok(Names::new());
    }
    sqlx::query_as(
        r#"SELECT left(organization_id, $1), left(organization_alias, $1) FROM "LiteLLM_OrganizationTable"
           WHERE organization_alias <> ''"#,
    )
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
