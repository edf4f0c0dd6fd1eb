//! Creates, blocks, deletes and reads keys.

use chrono::NaiveDateTime;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

use crate::store::accounts::teams::exists_team;
use crate::store::accounts::{Conflict, Row, all_shown, shown};

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
    /// Type, by LiteLLM's name for it. Not stored if the table has no column for it.
    pub key_type: Option<String>,
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

/// Creates a key. Returns its row, or the reason why it was not created.
pub async fn create_key(connection: &mut PgConnection, key: &NewKey) -> Result<Result<Row, Conflict>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    if let Some(alias) = &key.key_alias
        && is_taken(&mut transaction, alias).await?
    {
        return Ok(Err(Conflict::Alias));
    }
    if let Some(team_id) = &key.team_id
        && !exists_team(&mut transaction, team_id).await?
    {
        return Ok(Err(Conflict::NoTeam));
    }
    let row = insert_key(&mut transaction, key).await?;
    transaction.commit().await?;
    Ok(row.ok_or(Conflict::Token))
}

/// Whether a key has this alias. Until the transaction ends, no other transaction gets an answer for the same alias, so
/// two concurrent requests cannot both find it free.
async fn is_taken(transaction: &mut PgConnection, alias: &str) -> Result<bool, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(alias).execute(&mut *transaction).await?;
    sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_VerificationToken" WHERE key_alias = $1)"#)
        .bind(alias)
        .fetch_one(transaction)
        .await
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
    .fetch_optional(&mut *connection)
    .await?;
    let Some(Json(row)) = row else { return Ok(None) };
    if key.key_type.is_none() || !row.contains_key("key_type") {
        return Ok(Some(shown(Json(row))));
    }
    // A statement of its own, because the table of an older LiteLLM does not have this column.
    sqlx::query_scalar(
        r#"UPDATE "LiteLLM_VerificationToken" AS t SET key_type = $2 WHERE token = $1 RETURNING to_jsonb(t)"#,
    )
    .bind(&key.token)
    .bind(&key.key_type)
    .fetch_optional(connection)
    .await
    .map(|row| row.map(shown))
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
) -> Result<Option<Row>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    if blocked {
        end_sessions(&mut transaction, &[token.to_owned()]).await?;
    }
    let mut row: Option<Json<Row>> = sqlx::query_scalar(
        r#"UPDATE "LiteLLM_VerificationToken" AS t SET blocked = $2, updated_at = now() AT TIME ZONE 'UTC'
           WHERE token = $1 RETURNING to_jsonb(t)"#,
    )
    .bind(token)
    .bind(blocked)
    .fetch_optional(&mut *transaction)
    .await?;
    if row.as_ref().is_some_and(|Json(row)| row.contains_key("settings_updated_at")) {
        // A statement of its own, because the table of an older LiteLLM does not have this column.
        row = sqlx::query_scalar(
            r#"UPDATE "LiteLLM_VerificationToken" AS t SET settings_updated_at = now() AT TIME ZONE 'UTC'
               WHERE token = $1 RETURNING to_jsonb(t)"#,
        )
        .bind(token)
        .fetch_optional(&mut *transaction)
        .await?;
    }
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

/// Who deletes keys: the name of the user, and the hash of the key that was used, if it was one.
#[derive(Clone, Copy, Debug)]
pub struct DeletedBy<'a> {
    /// User ID, or another name.
    pub user: &'a str,
    /// SHA-256 of the key, or the master key's alias.
    pub key: Option<&'a str>,
}

/// Moves keys to the table of deleted keys, with all that is known of them and has a column there. If one of the keys
/// does not exist, moves none. Returns whether the keys were deleted.
pub async fn delete_keys(
    connection: &mut PgConnection,
    tokens: &[String],
    by: DeletedBy<'_>,
) -> Result<bool, sqlx::Error> {
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
    // Which columns the two tables have depends on LiteLLM's version. The first object is for columns that must not be
    // NULL: a key may have a JSON null in them, or its table may not have them.
    sqlx::query(
        r#"
        WITH gone AS (DELETE FROM "LiteLLM_VerificationToken" WHERE token = ANY ($1) RETURNING *)
        INSERT INTO "LiteLLM_DeletedVerificationToken"
        SELECT deleted.*
        FROM gone
        CROSS JOIN LATERAL jsonb_populate_record(
            NULL::"LiteLLM_DeletedVerificationToken",
            '{"soft_budget_cooldown": false, "spend": 0, "total_spend": 0, "aliases": {}, "config": {}, "permissions": {},
              "metadata": {}, "model_spend": {}, "model_max_budget": {}, "budget_fallbacks": {}}'::jsonb
            || (SELECT jsonb_object_agg(part.key, part.value) FROM jsonb_each(to_jsonb(gone)) AS part
                WHERE part.value <> 'null'::jsonb)
            || jsonb_build_object('id', gen_random_uuid()::text, 'deleted_at', now() AT TIME ZONE 'UTC',
                                  'deleted_by', $2::text, 'deleted_by_api_key', $3::text)
        ) AS deleted
        "#,
    )
    .bind(tokens)
    .bind(by.user)
    .bind(by.key)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}
