//! Reads of `LiteLLM_VerificationToken`, with the key's user and team, for authentication.

use chrono::NaiveDateTime;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::identity::Link;
use crate::identity::{KeyRecord, ParentRecord, Scope, SessionRecord};

#[derive(FromRow)]
struct KeyRow {
    token: String,
    key_name: Option<String>,
    user_id: Option<String>,
    team_id: Option<String>,
    expires: Option<NaiveDateTime>,
    blocked: Option<bool>,
    routes: Option<Vec<Option<String>>>,
    granted: Option<Json<Value>>,
    link: Option<Json<Value>>,
    user_exists: bool,
    user_role: Option<String>,
    user_deactivated: Option<bool>,
    team_blocked: Option<bool>,
    parent_token: Option<String>,
    parent_user_id: Option<String>,
    parent_team_id: Option<String>,
    parent_expires: Option<NaiveDateTime>,
    parent_blocked: Option<bool>,
    parent_routes: Option<Vec<Option<String>>>,
    parent_granted: Option<Json<Value>>,
    parent_is_session: Option<bool>,
    parent_team_blocked: Option<bool>,
}

/// The key with this SHA-256. If it is the key of a dashboard session, the result includes the key that opened the
/// session.
pub async fn find_key(connection: &mut PgConnection, hash: &str) -> Result<Option<KeyRecord>, sqlx::Error> {
    let row: Option<KeyRow> = sqlx::query_as(
        r#"
        SELECT k.*, u.user_id IS NOT NULL AS user_exists, u.user_role,
               (u.metadata ->> 'scim_active') = 'false' AS user_deactivated, t.blocked AS team_blocked,
               parent.*, pt.blocked AS parent_team_blocked
        FROM (SELECT NULL::text[] AS allowed_routes, '{}'::jsonb AS permissions) AS defaults
        CROSS JOIN LATERAL (
            SELECT token, key_name, user_id, team_id, expires::timestamp AS expires, blocked, allowed_routes AS routes, permissions AS granted,
                   CASE WHEN jsonb_typeof(metadata) = 'object' THEN metadata -> 'litespend_session' END AS link
            FROM "LiteLLM_VerificationToken" WHERE token = $1
        ) AS k
        LEFT JOIN LATERAL (
            SELECT token AS parent_token, user_id AS parent_user_id, team_id AS parent_team_id,
                   expires::timestamp AS parent_expires, blocked AS parent_blocked, allowed_routes AS parent_routes,
                   permissions AS parent_granted, metadata ? 'litespend_session' AS parent_is_session
            FROM "LiteLLM_VerificationToken" WHERE token = k.link ->> 'parent'
        ) AS parent ON true
        LEFT JOIN "LiteLLM_UserTable" u ON u.user_id = k.user_id
        LEFT JOIN "LiteLLM_TeamTable" t ON t.team_id = k.team_id
        LEFT JOIN "LiteLLM_TeamTable" pt ON pt.team_id = parent.parent_team_id
        "#,
    )
    .bind(hash)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(record))
}

fn record(row: KeyRow) -> KeyRecord {
    let parent = row.parent_token.map(|token| ParentRecord {
        token,
        user_id: row.parent_user_id,
        team_id: row.parent_team_id,
        expires: row.parent_expires,
        blocked: row.parent_blocked.unwrap_or(false),
        allowed_routes: routes(row.parent_routes),
        permissions: permissions(row.parent_granted),
        is_session: row.parent_is_session.unwrap_or(false),
        team_blocked: row.parent_team_blocked.unwrap_or(false),
    });
    KeyRecord {
        token: row.token,
        key_name: row.key_name,
        user_id: row.user_id,
        team_id: row.team_id,
        expires: row.expires,
        blocked: row.blocked.unwrap_or(false),
        allowed_routes: routes(row.routes),
        permissions: permissions(row.granted),
        user_exists: row.user_exists,
        user_role: row.user_role,
        user_deactivated: row.user_deactivated.unwrap_or(false),
        team_blocked: row.team_blocked.unwrap_or(false),
        session: row.link.map(|Json(link)| SessionRecord { link: Link::read(&link), parent }),
    }
}

/// Converts a stored list of allowed routes. A NULL in the list becomes the empty pattern, which matches no route: a
/// list that names no route still restricts the key.
fn routes(stored: Option<Vec<Option<String>>>) -> Vec<String> {
    stored.unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect()
}

/// The granted permissions: those whose value is `true`.
fn permissions(stored: Option<Json<Value>>) -> Vec<String> {
    match stored {
        Some(Json(Value::Object(fields))) => {
            fields.into_iter().filter(|(_, value)| *value == Value::Bool(true)).map(|(name, _)| name).collect()
        }
        _ => Vec::new(),
    }
}

/// The rows that a user may see: their own rows, and those of some teams in the user's list. These are the teams in
/// which the user is an admin, or is a member and the team's permissions allow members to read `/spend/logs`.
pub async fn owned_scope(connection: &mut PgConnection, user_id: Option<&str>) -> Result<Scope, sqlx::Error> {
    // A key without a user sees no rows, and in particular not the rows without a user.
    let Some(user_id) = user_id.filter(|user_id| !user_id.is_empty()) else {
        return Ok(Scope::Owned { user_id: None, team_ids: Vec::new() });
    };
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
        WHERE member ->> 'user_id' = $1 AND t.team_id <> ''
          AND (member ->> 'role' = 'admin' OR '/spend/logs' = ANY (t.team_member_permissions))
        GROUP BY t.team_id
        "#,
    )
    .bind(user_id)
    .fetch_all(connection)
    .await?;
    Ok(Scope::Owned { user_id: Some(user_id.to_owned()), team_ids })
}
