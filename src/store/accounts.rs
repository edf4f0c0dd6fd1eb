//! Creates, blocks, deletes and shows keys, teams and users. Rows are shown as JSON with all their columns, so that
//! columns of another LiteLLM version are included. Timestamps are UTC and end in `Z`. Passwords are left out.

pub mod lists;
pub mod tables;

use chrono::NaiveDateTime;
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

/// A row as a JSON object, by column.
pub type Row = Map<String, Value>;

/// Names of columns that hold timestamps.
const TIMES: [&str; 11] = [
    "created_at",
    "updated_at",
    "expires",
    "budget_reset_at",
    "last_active",
    "deleted_at",
    "settings_updated_at",
    "last_rotation_at",
    "key_rotation_at",
    "last_breach_check_at",
    "last_run_at",
];

/// Names of columns that hold lists. LiteLLM shows a NULL in them as an empty list.
const LISTS: [&str; 9] = [
    "models",
    "admins",
    "members",
    "teams",
    "policies",
    "access_group_ids",
    "allowed_routes",
    "allowed_cache_controls",
    "team_member_permissions",
];

pub(super) fn shown(Json(mut row): Json<Row>) -> Row {
    row.remove("password");
    for name in TIMES {
        if let Some(Value::String(text)) = row.get_mut(name) {
            text.push('Z');
        }
    }
    for name in LISTS {
        if let Some(value) = row.get_mut(name).filter(|value| value.is_null()) {
            *value = Value::Array(Vec::new());
        }
    }
    // A team that was created without members has an object here and not a list.
    if let Some(value) = row.get_mut("members_with_roles").filter(|value| !value.is_array()) {
        *value = Value::Array(Vec::new());
    }
    row
}

pub(super) fn all_shown(rows: Vec<Json<Row>>) -> Vec<Row> {
    rows.into_iter().map(shown).collect()
}

/// A key to create.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// SHA-256 of the raw key.
    pub token: String,
    /// Shortened key, for display.
    pub key_name: String,
    /// Alias; must be unique if given.
    pub key_alias: Option<String>,
    /// User ID of the owner.
    pub user_id: Option<String>,
    /// Team ID.
    pub team_id: Option<String>,
    /// Organisation ID.
    pub organization_id: Option<String>,
    /// Expiry time, UTC; `None` for no expiry.
    pub expires: Option<NaiveDateTime>,
    /// Models that it is meant for.
    pub models: Vec<String>,
    /// Routes to which the key is restricted; empty for no restriction.
    pub allowed_routes: Vec<String>,
    /// Intended budget in USD.
    pub max_budget: Option<f64>,
    /// Further metadata.
    pub metadata: Row,
    /// Permissions by name, for example `get_spend_routes`.
    pub permissions: Row,
    /// Whether it is blocked from the start.
    pub blocked: Option<bool>,
    /// Who creates the key.
    pub created_by: String,
}

/// Why a row was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The key exists already.
    Token,
    /// Another key has the alias.
    Alias,
    /// The team does not exist.
    NoTeam,
    /// The ID of the team or user is taken.
    Id,
    /// Another user has the e-mail address.
    Email,
}

/// Creates a key. Returns its row, or the reason why it was not created.
pub async fn create_key(connection: &mut PgConnection, key: &NewKey) -> Result<Result<Row, Conflict>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    if let Some(team_id) = &key.team_id
        && !exists_team(&mut transaction, team_id).await?
    {
        return Ok(Err(Conflict::NoTeam));
    }
    if let Some(alias) = &key.key_alias {
        // The lock prevents two concurrent requests from both finding the alias free.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(alias)
            .execute(&mut *transaction)
            .await?;
        let taken: bool =
            sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_VerificationToken" WHERE key_alias = $1)"#)
                .bind(alias)
                .fetch_one(&mut *transaction)
                .await?;
        if taken {
            return Ok(Err(Conflict::Alias));
        }
    }
    let row = insert_key(&mut transaction, key).await?;
    transaction.commit().await?;
    Ok(row.ok_or(Conflict::Token))
}

async fn insert_key(connection: &mut PgConnection, key: &NewKey) -> Result<Option<Row>, sqlx::Error> {
    let row: Option<Json<Row>> = sqlx::query_scalar(
        r#"
        INSERT INTO "LiteLLM_VerificationToken" AS t (token, key_name, key_alias, user_id, team_id, organization_id, expires,
            models, allowed_routes, max_budget, metadata, permissions, blocked, created_by, updated_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)
        ON CONFLICT (token) DO NOTHING RETURNING to_jsonb(t)
        "#,
    )
    .bind(&key.token)
    .bind(&key.key_name)
    .bind(&key.key_alias)
    .bind(&key.user_id)
    .bind(&key.team_id)
    .bind(&key.organization_id)
    .bind(key.expires)
    .bind(&key.models)
    .bind(&key.allowed_routes)
    .bind(key.max_budget)
    .bind(Json(&key.metadata))
    .bind(Json(&key.permissions))
    .bind(key.blocked)
    .bind(&key.created_by)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(shown))
}

/// Creates the key of a dashboard session. Its team need not exist.
pub async fn create_session_key(connection: &mut PgConnection, key: &NewKey) -> Result<(), sqlx::Error> {
    insert_key(connection, key).await.map(|_| ())
}

#[derive(sqlx::FromRow)]
struct LimitsRow {
    models: Option<Vec<String>>,
    routes: Option<Vec<Option<String>>>,
    granted: Option<Json<Value>>,
    max_budget: Option<f64>,
}

/// The limits that a session inherits from the key that opens it, as they are now: models, routes, permissions and
/// budget. `None` if the key does not exist.
pub async fn find_limits(connection: &mut PgConnection, token: &str) -> Result<Option<NewKey>, sqlx::Error> {
    let row: Option<LimitsRow> = sqlx::query_as(
        r#"SELECT k.* FROM (SELECT NULL::text[] AS allowed_routes, '{}'::jsonb AS permissions) AS defaults
           CROSS JOIN LATERAL (SELECT models, allowed_routes AS routes, permissions AS granted, max_budget
                               FROM "LiteLLM_VerificationToken" WHERE token = $1) AS k"#,
    )
    .bind(token)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| NewKey {
        models: row.models.unwrap_or_default(),
        allowed_routes: row.routes.unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect(),
        permissions: match row.granted {
            Some(Json(Value::Object(permissions))) => permissions,
            _ => Row::new(),
        },
        max_budget: row.max_budget,
        ..NewKey::default()
    }))
}

/// Deletes the expired keys of a team, and returns their number.
pub async fn delete_expired_keys(
    connection: &mut PgConnection,
    team_id: &str,
    now: NaiveDateTime,
) -> Result<u64, sqlx::Error> {
    sqlx::query(r#"DELETE FROM "LiteLLM_VerificationToken" WHERE team_id = $1 AND expires < $2"#)
        .bind(team_id)
        .bind(now)
        .execute(connection)
        .await
        .map(|result| result.rows_affected())
}

/// Whether a key with this hash exists.
pub async fn exists_key(connection: &mut PgConnection, token: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_VerificationToken" WHERE token = $1)"#)
        .bind(token)
        .fetch_one(connection)
        .await
}

/// The row of a key, or else of a deleted key, which has `deleted_at`.
pub async fn find_key(connection: &mut PgConnection, token: &str) -> Result<Option<Row>, sqlx::Error> {
    let row: Option<Json<Row>> =
        sqlx::query_scalar(r#"SELECT to_jsonb(t) FROM "LiteLLM_VerificationToken" AS t WHERE token = $1"#)
            .bind(token)
            .fetch_optional(&mut *connection)
            .await?;
    if row.is_some() {
        return Ok(row.map(shown));
    }
    let deleted: Option<Json<Row>> = sqlx::query_scalar(
        r#"SELECT to_jsonb(t) FROM "LiteLLM_DeletedVerificationToken" AS t WHERE token = $1
           ORDER BY deleted_at DESC LIMIT 1"#,
    )
    .bind(token)
    .fetch_optional(connection)
    .await?;
    Ok(deleted.map(shown))
}

/// The newest `limit` keys.
pub async fn list_keys(connection: &mut PgConnection, limit: i64) -> Result<Vec<Row>, sqlx::Error> {
    let rows = sqlx::query_scalar(
        r#"SELECT to_jsonb(t) FROM "LiteLLM_VerificationToken" AS t ORDER BY created_at DESC NULLS LAST, token LIMIT $1"#,
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(all_shown(rows))
}

/// Hashes of the keys with these aliases.
pub async fn tokens_of_aliases(connection: &mut PgConnection, aliases: &[String]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT token FROM "LiteLLM_VerificationToken" WHERE key_alias = ANY ($1)"#)
        .bind(aliases)
        .fetch_all(connection)
        .await
}

/// Blocks or unblocks a key. Returns its row, or `None` if the key does not exist. A block also ends the sessions that
/// the key opened.
pub async fn set_blocked(
    connection: &mut PgConnection,
    token: &str,
    blocked: bool,
    by: &str,
) -> Result<Option<Row>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    if blocked {
        end_sessions(&mut transaction, &[token.to_owned()]).await?;
    }
    let row: Option<Json<Row>> = sqlx::query_scalar(
        r#"UPDATE "LiteLLM_VerificationToken" AS t
           SET blocked = $2, updated_at = now() AT TIME ZONE 'UTC', updated_by = $3
           WHERE token = $1 RETURNING to_jsonb(t)"#,
    )
    .bind(token)
    .bind(blocked)
    .bind(by)
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(row.map(shown))
}

/// Deletes the sessions that these keys opened. So the sessions do not come back if the key is unblocked, or if a key
/// with the same hash is created again.
async fn end_sessions(connection: &mut PgConnection, tokens: &[String]) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"DELETE FROM "LiteLLM_VerificationToken"
           WHERE team_id = 'litellm-dashboard' AND metadata -> 'litespend_session' ->> 'parent' = ANY ($1)"#,
    )
    .bind(tokens)
    .execute(connection)
    .await
    .map(|_| ())
}

/// Moves keys to the table of deleted keys, where their alias and owner stay known. If one of the keys does not exist,
/// moves none. Returns whether the keys were deleted.
pub async fn delete_keys(connection: &mut PgConnection, tokens: &[String], by: &str) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let found: Vec<String> = sqlx::query_scalar(
        r#"SELECT token FROM "LiteLLM_VerificationToken" WHERE token = ANY ($1) ORDER BY token COLLATE "C" FOR UPDATE"#,
    )
    .bind(tokens)
    .fetch_all(&mut *transaction)
    .await?;
    if tokens.iter().any(|token| !found.contains(token)) {
        return Ok(false);
    }
    end_sessions(&mut transaction, tokens).await?;
    sqlx::query(
        r#"
        WITH gone AS (DELETE FROM "LiteLLM_VerificationToken" WHERE token = ANY ($1) RETURNING *)
        INSERT INTO "LiteLLM_DeletedVerificationToken" (id, token, key_name, key_alias, spend, expires, models, aliases,
            config, user_id, team_id, permissions, metadata, blocked, max_budget, budget_duration, organization_id,
            allowed_routes, created_at, created_by, updated_at, updated_by, last_active, total_spend, deleted_at, deleted_by)
        SELECT gen_random_uuid()::text, token, key_name, key_alias, spend, expires, models, aliases, config, user_id,
               team_id, permissions, metadata, blocked, max_budget, budget_duration, organization_id, allowed_routes,
               created_at, created_by, updated_at, updated_by, last_active, total_spend, now() AT TIME ZONE 'UTC', $2
        FROM gone
        "#,
    )
    .bind(tokens)
    .bind(by)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// A team to create.
#[derive(Clone, Debug, Default)]
pub struct NewTeam {
    /// ID; must not be taken.
    pub team_id: String,
    /// Alias: the display name.
    pub team_alias: Option<String>,
    /// Organisation ID.
    pub organization_id: Option<String>,
    /// Members, as user ID and role (`admin` or `user`). Users who do not exist are created.
    pub members: Vec<(String, String)>,
    /// Models that it is meant for.
    pub models: Vec<String>,
    /// Intended budget in USD.
    pub max_budget: Option<f64>,
    /// Further metadata.
    pub metadata: Row,
    /// Whether it is blocked from the start.
    pub blocked: bool,
}

async fn exists_team(connection: &mut PgConnection, team_id: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_TeamTable" WHERE team_id = $1)"#)
        .bind(team_id)
        .fetch_one(connection)
        .await
}

/// Creates a team with its members. Returns its row, or the reason why it was not created.
pub async fn create_team(connection: &mut PgConnection, team: &NewTeam) -> Result<Result<Row, Conflict>, sqlx::Error> {
    let roster: Vec<Value> =
        team.members.iter().map(|(user, role)| serde_json::json!({"user_id": user, "role": role})).collect();
    let mut transaction = connection.begin().await?;
    let row: Option<Json<Row>> = sqlx::query_scalar(
        r#"
        INSERT INTO "LiteLLM_TeamTable" AS t (team_id, team_alias, organization_id, members_with_roles, models, max_budget,
            metadata, blocked)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (team_id) DO NOTHING RETURNING to_jsonb(t)
        "#,
    )
    .bind(&team.team_id)
    .bind(&team.team_alias)
    .bind(&team.organization_id)
    .bind(Json(roster))
    .bind(&team.models)
    .bind(team.max_budget)
    .bind(Json(&team.metadata))
    .bind(team.blocked)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return Ok(Err(Conflict::Id)) };
    let users: Vec<&str> = team.members.iter().map(|(user, _)| user.as_str()).collect();
    for statement in [
        r#"INSERT INTO "LiteLLM_UserTable" AS t (user_id, teams)
           SELECT DISTINCT new.id, ARRAY[$2] FROM unnest($1::text[]) AS new (id) ORDER BY new.id
           ON CONFLICT (user_id) DO UPDATE SET teams = array_append(t.teams, $2)
           WHERE NOT COALESCE($2 = ANY (t.teams), false)"#,
        r#"INSERT INTO "LiteLLM_TeamMembership" (user_id, team_id)
           SELECT DISTINCT new.id, $2 FROM unnest($1::text[]) AS new (id) ORDER BY new.id
           ON CONFLICT (user_id, team_id) DO NOTHING"#,
    ] {
        sqlx::query(statement).bind(&users).bind(&team.team_id).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(Ok(shown(row)))
}

/// Whose teams to list.
#[derive(Clone, Copy, Debug)]
pub enum TeamsOf<'a> {
    /// All teams.
    Everybody,
    /// Teams that list the user as a member.
    Member(&'a str),
    /// Teams that list the user as a member, and teams that the user's own row lists.
    User(&'a str),
}

/// The newest `limit` teams, each with its `keys` and `team_memberships`. If the teams of one user are listed,
/// `team_memberships` contains only that user's memberships.
pub async fn list_teams(
    connection: &mut PgConnection,
    whose: TeamsOf<'_>,
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    let (user_id, by_user_too) = match whose {
        TeamsOf::Everybody => (None, false),
        TeamsOf::Member(user_id) => (Some(user_id), false),
        TeamsOf::User(user_id) => (Some(user_id), true),
    };
    let mut teams: Vec<Row> = all_shown(
        sqlx::query_scalar(
            r#"SELECT to_jsonb(t) FROM "LiteLLM_TeamTable" AS t
               WHERE $1::text IS NULL OR members_with_roles @> jsonb_build_array(jsonb_build_object('user_id', $1::text))
                  OR ($2 AND t.team_id = ANY (SELECT unnest(teams) FROM "LiteLLM_UserTable" WHERE user_id = $1))
               ORDER BY created_at DESC, team_id LIMIT $3"#,
        )
        .bind(user_id)
        .bind(by_user_too)
        .bind(limit)
        .fetch_all(&mut *connection)
        .await?,
    );
    let ids: Vec<String> = teams.iter().map(|team| text(team, "team_id").to_owned()).collect();
    let keys: Vec<Row> = all_shown(
        sqlx::query_scalar(
            r#"SELECT to_jsonb(t) FROM "LiteLLM_VerificationToken" AS t WHERE team_id = ANY ($1) ORDER BY token"#,
        )
        .bind(&ids)
        .fetch_all(&mut *connection)
        .await?,
    );
    let members: Vec<Row> = all_shown(
        sqlx::query_scalar(
            r#"SELECT to_jsonb(t) FROM "LiteLLM_TeamMembership" AS t
               WHERE team_id = ANY ($1) AND ($2::text IS NULL OR user_id = $2) ORDER BY user_id"#,
        )
        .bind(&ids)
        .bind(user_id)
        .fetch_all(connection)
        .await?,
    );
    let mut keys = by_team(keys);
    let mut members = by_team(members);
    for (team, id) in teams.iter_mut().zip(&ids) {
        team.insert("team_memberships".into(), members.remove(id).unwrap_or_default().into());
        team.insert("keys".into(), keys.remove(id).unwrap_or_default().into());
    }
    Ok(teams)
}

pub(super) fn by_team(rows: Vec<Row>) -> std::collections::HashMap<String, Vec<Value>> {
    let mut teams: std::collections::HashMap<String, Vec<Value>> = std::collections::HashMap::new();
    for row in rows {
        teams.entry(text(&row, "team_id").to_owned()).or_default().push(Value::Object(row));
    }
    teams
}

/// A string of a row; empty if the column is absent or not a string.
pub fn text<'a>(row: &'a Row, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

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
               SET members_with_roles = CASE WHEN jsonb_typeof(members_with_roles) = 'array' THEN members_with_roles
                                             ELSE '[]' END || jsonb_build_array(jsonb_build_object('user_id', $2::text, 'role', 'user'))
               WHERE team_id = $1"#,
        )
        .bind(team_id)
        .bind(&user.user_id)
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

/// The oldest `limit` keys of a user. Without `user_id`, the oldest keys of all users, without the keys of dashboard
/// sessions.
pub async fn keys_of(
    connection: &mut PgConnection,
    user_id: Option<&str>,
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    let rows = sqlx::query_scalar(
        r#"SELECT to_jsonb(t) FROM "LiteLLM_VerificationToken" AS t
           WHERE CASE WHEN $1::text IS NULL THEN team_id IS DISTINCT FROM 'litellm-dashboard' ELSE user_id = $1 END
           ORDER BY created_at, token LIMIT $2"#,
    )
    .bind(user_id)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(all_shown(rows))
}
