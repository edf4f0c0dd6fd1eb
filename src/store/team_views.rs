//! Reads of `LiteLLM_TeamTable` that decide what a caller may see of a team.

use sqlx::{FromRow, PgConnection};

/// A team, with what the caller may see of it.
#[derive(Clone, Debug, FromRow)]
pub struct TeamView {
    /// Team ID.
    pub team_id: String,
    /// Display name of the team.
    pub team_alias: Option<String>,
    /// Whether the caller may see all activity of the team. This requires the caller to be its admin, or a member of a
    /// team whose permissions allow it.
    pub sees_all: bool,
}

/// The teams that the user's row lists; `None` if the user does not exist.
pub async fn teams_of_user(connection: &mut PgConnection, user_id: &str) -> Result<Option<Vec<String>>, sqlx::Error> {
    let teams: Option<Option<Vec<String>>> =
        sqlx::query_scalar(r#"SELECT teams FROM "LiteLLM_UserTable" WHERE user_id = $1"#)
            .bind(user_id)
            .fetch_optional(connection)
            .await?;
    Ok(teams.map(Option::unwrap_or_default))
}

/// These teams, or all teams without `team_ids`. Each says whether `user_id` may see all of it, as an admin or because
/// the team has the `permission`.
pub async fn views(
    connection: &mut PgConnection,
    team_ids: Option<&[String]>,
    user_id: Option<&str>,
    permission: &str,
) -> Result<Vec<TeamView>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT t.team_id, t.team_alias,
                  EXISTS (SELECT FROM jsonb_array_elements(
                              CASE WHEN jsonb_typeof(t.members_with_roles) = 'array'
                                   THEN t.members_with_roles ELSE '[]' END) AS member
                          WHERE member ->> 'user_id' = $2
                            AND (member ->> 'role' = 'admin' OR $3 = ANY (t.team_member_permissions))) AS sees_all
           FROM (SELECT NULL::text[] AS team_member_permissions) AS defaults
           CROSS JOIN LATERAL (SELECT team_id, team_alias, members_with_roles, team_member_permissions
                               FROM "LiteLLM_TeamTable" WHERE $1::text[] IS NULL OR team_id = ANY ($1)) AS t"#,
    )
    .bind(team_ids)
    .bind(user_id)
    .bind(permission)
    .fetch_all(connection)
    .await
}

/// SHA-256 hashes of a user's keys.
pub async fn keys_of_user(connection: &mut PgConnection, user_id: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT token FROM "LiteLLM_VerificationToken" WHERE user_id = $1"#)
        .bind(user_id)
        .fetch_all(connection)
        .await
}
