//! Metadata of the keys in a response: alias, team, user and e-mail address. Some keys were deleted, and LiteLLM booked
//! some under another hash. Their metadata is recovered as LiteLLM recovers it, in this order: from the key table, the
//! deleted keys, command-line sessions, keys that were hashed twice, the spend log, and the daily table.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDateTime;
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::books;

/// Metadata of a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, FromRow, utoipa::ToSchema)]
pub struct KeyMetadata {
    /// Alias of the key: its display name.
    pub key_alias: Option<String>,
    /// Team ID.
    pub team_id: Option<String>,
    /// User ID of the owner.
    pub user_id: Option<String>,
    /// E-mail address of the owner.
    pub user_email: Option<String>,
    /// Whether the key exists now; null if nothing is known about it.
    pub key_exists: Option<bool>,
}

#[derive(FromRow)]
struct Found {
    key: String,
    key_alias: Option<String>,
    team_id: Option<String>,
    user_id: Option<String>,
    key_exists: bool,
}

/// Prefix of the keys under which LiteLLM books its command-line sessions. The user ID follows the prefix.
const SESSION_PREFIX: &str = "cli-session-";

/// The metadata of each of `keys`. The result lacks keys about which nothing is known. `window` is the time range of
/// the spend log in which to look for keys that no table contains.
pub async fn find(
    connection: &mut PgConnection,
    keys: &BTreeSet<String>,
    window: Option<(NaiveDateTime, NaiveDateTime)>,
) -> Result<BTreeMap<String, KeyMetadata>, sqlx::Error> {
    let mut known = BTreeMap::new();
    if keys.is_empty() {
        return Ok(known);
    }
    let all: Vec<String> = keys.iter().cloned().collect();
    let with_deleted = has_deleted_keys(connection).await?;
    keep(&mut known, registered(connection, &all, with_deleted).await?);
    let missing = unknown(keys, &known, |key| key.starts_with(SESSION_PREFIX) && key.len() > SESSION_PREFIX.len());
    keep(&mut known, sessions(connection, &missing).await?);
    let missing = unknown(keys, &known, is_sha256);
    keep(&mut known, hashed_twice(connection, &missing, with_deleted).await?);
    if let Some((from, until)) = window {
        let missing = unknown(keys, &known, |key| is_sha256(key.strip_prefix("hashed-jwt-").unwrap_or(key)));
        keep(&mut known, named_in_log(connection, &missing, from, until).await?);
    }
    add_owners(connection, keys, &mut known).await?;
    add_user_details(connection, &mut known).await?;
    Ok(known)
}

fn keep(known: &mut BTreeMap<String, KeyMetadata>, found: Vec<Found>) {
    for row in found {
        known.insert(
            row.key,
            KeyMetadata {
                key_alias: row.key_alias,
                team_id: row.team_id,
                user_id: row.user_id,
                user_email: None,
                key_exists: Some(row.key_exists),
            },
        );
    }
}

fn unknown(
    keys: &BTreeSet<String>,
    known: &BTreeMap<String, KeyMetadata>,
    eligible: impl Fn(&str) -> bool,
) -> Vec<String> {
    keys.iter().filter(|key| !known.contains_key(*key) && eligible(key)).cloned().collect()
}

fn is_sha256(key: &str) -> bool {
    key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the table of deleted keys exists. A LiteLLM before 1.80 has none.
async fn has_deleted_keys(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT to_regclass('"LiteLLM_DeletedVerificationToken"') IS NOT NULL"#)
        .fetch_one(connection)
        .await
}

async fn registered(
    connection: &mut PgConnection,
    keys: &[String],
    with_deleted: bool,
) -> Result<Vec<Found>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        r#"SELECT DISTINCT ON (key) key, key_alias, team_id, user_id, key_exists FROM (
               SELECT token AS key, key_alias, team_id, user_id, true AS key_exists, NULL::timestamp AS deleted_at
               FROM "LiteLLM_VerificationToken" WHERE token = ANY ("#,
    );
    query.push_bind(keys).push(")");
    if with_deleted {
        query.push(
            r#" UNION ALL SELECT token, key_alias, team_id, user_id, false, deleted_at
                FROM "LiteLLM_DeletedVerificationToken" WHERE token = ANY ("#,
        );
        query.push_bind(keys).push(")");
    }
    query.push(") AS keys ORDER BY key, key_exists DESC, deleted_at DESC");
    query.build_query_as().fetch_all(connection).await
}

async fn sessions(connection: &mut PgConnection, keys: &[String]) -> Result<Vec<Found>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        r#"SELECT key, key AS key_alias, NULL AS team_id, user_id, false AS key_exists
           FROM unnest($1::text[]) AS key JOIN "LiteLLM_UserTable" ON user_id = substr(key, length($2) + 1)"#,
    )
    .bind(keys)
    .bind(SESSION_PREFIX)
    .fetch_all(connection)
    .await
}

async fn hashed_twice(
    connection: &mut PgConnection,
    keys: &[String],
    with_deleted: bool,
) -> Result<Vec<Found>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::<Postgres>::new(
        r#"SELECT DISTINCT ON (key) key, key_alias, team_id, user_id, false AS key_exists FROM (
               SELECT encode(sha256(convert_to(token, 'UTF8')), 'hex') AS key, key_alias, team_id, user_id,
                      'infinity'::timestamp AS deleted_at
               FROM "LiteLLM_VerificationToken""#,
    );
    if with_deleted {
        query.push(
            r#" UNION ALL
               SELECT encode(sha256(convert_to(token, 'UTF8')), 'hex'), key_alias, team_id, user_id, deleted_at
               FROM "LiteLLM_DeletedVerificationToken""#,
        );
    }
    query.push(") AS keys WHERE key = ANY (").push_bind(keys).push(") ORDER BY key, deleted_at DESC");
    query.build_query_as().fetch_all(connection).await
}

/// Metadata from the log's own rows. Reads the first hundred and the last hundred rows of each key, and takes the first
/// and the last row that names the key. A value on which these two rows disagree stays unknown. What such rows of closed
/// days said is stored beside the log.
async fn named_in_log(
    connection: &mut PgConnection,
    keys: &[String],
    from: NaiveDateTime,
    until: NaiveDateTime,
) -> Result<Vec<Found>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let closed = if books::is_any_closed(connection).await? {
        r#"UNION ALL
            SELECT api_key, is_first, alias, team, owner, "startTime"
            FROM litespend.closed_key_names JOIN litespend.closed_days USING (day)
            WHERE api_key = ANY ($1) AND day >= $2::date AND day < $3::date"#
    } else {
        ""
    };
    let statement = format!(
        r#"
        WITH edges AS (
            SELECT keys.key, edge.ascending, named.*
            FROM unnest($1::text[]) AS keys(key)
            CROSS JOIN (VALUES (true), (false)) AS edge(ascending)
            CROSS JOIN LATERAL (
                SELECT NULLIF(CASE WHEN jsonb_typeof(alias) NOT IN ('array', 'object') THEN alias #>> '{{}}' END, '') AS alias,
                       COALESCE(NULLIF(team_id, ''), NULLIF(CASE WHEN jsonb_typeof(team) NOT IN ('array', 'object')
                                                                 THEN team #>> '{{}}' END, '')) AS team,
                       COALESCE(NULLIF("user", ''), NULLIF(CASE WHEN jsonb_typeof(owner) NOT IN ('array', 'object')
                                                                THEN owner #>> '{{}}' END, '')) AS owner,
                       "startTime"
                FROM (
                    SELECT metadata -> 'user_api_key_alias' AS alias, metadata -> 'user_api_key_team_id' AS team,
                           metadata -> 'user_api_key_user_id' AS owner, team_id, "user", "startTime"
                    FROM (
                        (SELECT metadata, team_id, "user", "startTime" FROM "LiteLLM_SpendLogs"
                         WHERE edge.ascending AND api_key = keys.key AND "startTime" >= $2 AND "startTime" < $3
                         ORDER BY "startTime" LIMIT 100)
                        UNION ALL
                        (SELECT metadata, team_id, "user", "startTime" FROM "LiteLLM_SpendLogs"
                         WHERE NOT edge.ascending AND api_key = keys.key AND "startTime" >= $2 AND "startTime" < $3
                         ORDER BY "startTime" DESC LIMIT 100)
                    ) AS rows
                    OFFSET 0
                ) AS rows
            ) AS named
            WHERE COALESCE(named.alias, named.team, named.owner) IS NOT NULL
            {closed}
        ), first AS (
            SELECT DISTINCT ON (key) key, alias, team, owner FROM edges WHERE ascending ORDER BY key, "startTime"
        ), last AS (
            SELECT DISTINCT ON (key) key, alias, team, owner FROM edges WHERE NOT ascending
            ORDER BY key, "startTime" DESC
        )
        SELECT key, key_alias, team_id, user_id, false AS key_exists FROM (
            SELECT first.key,
                   CASE WHEN first.alias IS NULL OR last.alias IS NULL OR first.alias = last.alias
                        THEN COALESCE(first.alias, last.alias) END AS key_alias,
                   CASE WHEN first.team IS NULL OR last.team IS NULL OR first.team = last.team
                        THEN COALESCE(first.team, last.team) END AS team_id,
                   CASE WHEN first.owner IS NULL OR last.owner IS NULL OR first.owner = last.owner
                        THEN COALESCE(first.owner, last.owner) END AS user_id
            FROM first JOIN last USING (key)
        ) AS names WHERE COALESCE(key_alias, team_id, user_id) IS NOT NULL
        "#
    );
    sqlx::query_as(AssertSqlSafe(statement)).bind(keys).bind(from).bind(until).fetch_all(connection).await
}

/// Adds the owners of keys that do not exist and whose owner is still unknown. An owner comes from the daily table, if
/// all rows of the key agree on it.
async fn add_owners(
    connection: &mut PgConnection,
    keys: &BTreeSet<String>,
    known: &mut BTreeMap<String, KeyMetadata>,
) -> Result<(), sqlx::Error> {
    let ownerless: Vec<String> = keys
        .iter()
        .filter(|key| {
            known.get(*key).is_none_or(|found| {
                found.user_id.as_deref().unwrap_or_default().is_empty() && found.key_exists != Some(true)
            })
        })
        .cloned()
        .collect();
    if ownerless.is_empty() {
        return Ok(());
    }
    let owners: Vec<(String, String)> = sqlx::query_as(
        r#"SELECT api_key, min(user_id) FROM "LiteLLM_DailyUserSpend"
           WHERE api_key = ANY ($1) AND user_id IS NOT NULL AND user_id <> ''
           GROUP BY api_key HAVING min(user_id) = max(user_id)"#,
    )
    .bind(&ownerless)
    .fetch_all(connection)
    .await?;
    for (key, owner) in owners {
        let entry = known.entry(key).or_insert_with(|| KeyMetadata { key_exists: Some(false), ..Default::default() });
        entry.user_id = Some(owner);
    }
    Ok(())
}

/// Adds the e-mail addresses of the owners. For a command-line session, also adds the team if the user has exactly one.
async fn add_user_details(
    connection: &mut PgConnection,
    known: &mut BTreeMap<String, KeyMetadata>,
) -> Result<(), sqlx::Error> {
    let users: BTreeSet<String> =
        known.values().filter_map(|found| found.user_id.clone()).filter(|user| !user.is_empty()).collect();
    if users.is_empty() {
        return Ok(());
    }
    let details: Vec<(String, Option<String>, Option<Vec<String>>)> =
        sqlx::query_as(r#"SELECT user_id, user_email, teams FROM "LiteLLM_UserTable" WHERE user_id = ANY ($1)"#)
            .bind(users.into_iter().collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
    let details: BTreeMap<_, _> = details.into_iter().map(|(user, email, teams)| (user, (email, teams))).collect();
    for (key, found) in known.iter_mut() {
        let Some((email, teams)) = found.user_id.as_ref().and_then(|user| details.get(user)) else { continue };
        found.user_email = email.clone().filter(|email| !email.is_empty());
        if let (true, None, Some([team])) = (key.starts_with(SESSION_PREFIX), &found.team_id, teams.as_deref()) {
            found.team_id = Some(team.clone());
        }
    }
    Ok(())
}
