//! `LiteLLM_VerificationToken` with its user and team: what authentication needs to know.

use chrono::NaiveDateTime;
use sqlx::{FromRow, PgConnection};

use crate::auth::{KeyRecord, Scope};

#[derive(FromRow)]
struct KeyRow {
    token: String,
    key_name: Option<String>,
    user_id: Option<String>,
    team_id: Option<String>,
    expires: Option<NaiveDateTime>,
    blocked: Option<bool>,
    allowed_routes: Option<Vec<String>>,
    may_read_global_spend: Option<bool>,
    may_book_usage: Option<bool>,
    user_exists: bool,
    user_role: Option<String>,
    user_deactivated: Option<bool>,
    team_blocked: Option<bool>,
}

/// The key with this SHA-256.
pub async fn find_key(connection: &mut PgConnection, hash: &str) -> Result<Option<KeyRecord>, sqlx::Error> {
    let row: Option<KeyRow> = sqlx::query_as(
        r#"
        SELECT k.*, u.user_id IS NOT NULL AS user_exists, u.user_role,
               (u.metadata ->> 'scim_active') = 'false' AS user_deactivated, t.blocked AS team_blocked
        FROM (SELECT NULL::text[] AS allowed_routes, '{}'::jsonb AS permissions) AS defaults
        CROSS JOIN LATERAL (
            SELECT token, key_name, user_id, team_id, expires, blocked, allowed_routes,
                   permissions ? 'get_spend_routes' AS may_read_global_spend,
                   permissions -> 'book_usage' = 'true' AS may_book_usage
            FROM "LiteLLM_VerificationToken" WHERE token = $1
        ) AS k
        LEFT JOIN "LiteLLM_UserTable" u ON u.user_id = k.user_id
        LEFT JOIN "LiteLLM_TeamTable" t ON t.team_id = k.team_id
        "#,
    )
    .bind(hash)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| KeyRecord {
        token: row.token,
        key_name: row.key_name,
        user_id: row.user_id,
        team_id: row.team_id,
        expires: row.expires,
        blocked: row.blocked.unwrap_or(false),
        allowed_routes: row.allowed_routes.unwrap_or_default(),
        may_read_global_spend: row.may_read_global_spend.unwrap_or(false),
        may_book_usage: row.may_book_usage.unwrap_or(false),
        user_exists: row.user_exists,
        user_role: row.user_role,
        user_deactivated: row.user_deactivated.unwrap_or(false),
        team_blocked: row.team_blocked.unwrap_or(false),
    }))
}

/// The rows that a user may see beside its own: teams of the user's list in which it is an admin, or a member of a
/// team that lets its members read `/spend/logs`.
pub async fn owned_scope(connection: &mut PgConnection, user_id: Option<&str>) -> Result<Scope, sqlx::Error> {
    let Some(user_id) = user_id else { return Ok(Scope::Owned { user_id: None, team_ids: Vec::new() }) };
    let team_ids = sqlx::query_scalar(
        r#"
        SELECT t.team_id
        FROM (SELECT NULL::text[] AS team_member_permissions) AS defaults
        CROSS JOIN LATERAL (
            SELECT team_id, members_with_roles, team_member_permissions FROM "LiteLLM_TeamTable"
            WHERE team_id = ANY (SELECT unnest(teams) FROM "LiteLLM_UserTable" WHERE user_id = $1)
        ) AS t
        CROSS JOIN LATERAL jsonb_array_elements(
            CASE WHEN jsonb_typeof(t.members_with_roles) = 'array' THEN t.members_with_roles ELSE '[]' END
        ) AS member
        WHERE member ->> 'user_id' = $1
          AND (member ->> 'role' = 'admin' OR '/spend/logs' = ANY (t.team_member_permissions))
        GROUP BY t.team_id
        "#,
    )
    .bind(user_id)
    .fetch_all(connection)
    .await?;
    Ok(Scope::Owned { user_id: Some(user_id.to_owned()), team_ids })
}
