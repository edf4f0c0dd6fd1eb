//! Lists of users, keys and teams for the dashboard: paged, filtered and sorted. Lists of keys leave out the keys of
//! dashboard sessions.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::store::accounts::{Row, all_shown, shown, text};
use crate::store::log::search::push_contains_in_any_case;

/// Which rows to list. `None` in a field means no restriction.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A user ID. In the list of users, a substring of it.
    pub user_id: Option<String>,
    /// Only these user IDs.
    pub user_ids: Option<Vec<String>>,
    /// A substring of the e-mail address.
    pub user_email: Option<String>,
    /// Role of the user.
    pub user_role: Option<String>,
    /// Team ID.
    pub team_id: Option<String>,
    /// A substring of the team's alias or ID.
    pub team_alias: Option<String>,
    /// Organisation ID.
    pub organization_id: Option<String>,
    /// A substring of the key's alias.
    pub key_alias: Option<String>,
    /// SHA-256 of a key.
    pub token: Option<String>,
    /// Only rows that this user may see: their own keys, their own teams, and the keys of teams in which they are an
    /// admin.
    pub only_of_user: Option<String>,
}

/// Which page of a list to return.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Number of rows to skip.
    pub offset: i64,
    /// Maximum number of rows.
    pub limit: i64,
}

/// Sort order. Without a column, rows are sorted by the time when they were created.
#[derive(Clone, Copy, Debug)]
pub struct Sort<'a> {
    /// Name of the column.
    pub by: Option<&'a str>,
    /// Whether the largest value comes first.
    pub descending: bool,
}

/// SQL condition that excludes the keys of dashboard sessions, which all belong to one team.
const NO_SESSIONS: &str = " AND t.team_id IS DISTINCT FROM 'litellm-dashboard'";

impl Sort<'_> {
    /// Pushes the ORDER BY clause. A column that is not in `columns` is ignored.
    fn push(self, query: &mut QueryBuilder<Postgres>, columns: &[&'static str], key: &'static str) {
        let column = columns.iter().find(|column| Some(**column) == self.by).unwrap_or(&"created_at");
        query.push(" ORDER BY t.").push(*column);
        query.push(if self.descending { " DESC NULLS LAST, t." } else { " ASC NULLS LAST, t." }).push(key);
    }
}

fn push_equal(query: &mut QueryBuilder<Postgres>, clause: &'static str, value: Option<&String>) {
    if let Some(value) = value {
        query.push(clause).push_bind(value.clone());
    }
}

fn push_part(query: &mut QueryBuilder<Postgres>, column: &'static str, value: Option<&String>) {
    if let Some(value) = value {
        query.push(" AND ");
        push_contains_in_any_case(query, column, value);
    }
}

/// The rows of one page, and the total number of rows.
async fn list(
    connection: &mut PgConnection,
    table: &'static str,
    condition: impl Fn(&mut QueryBuilder<Postgres>),
    order: impl FnOnce(&mut QueryBuilder<Postgres>),
    page: Page,
) -> Result<(Vec<Row>, i64), sqlx::Error> {
    let mut count = QueryBuilder::new("SELECT count(*) FROM ");
    count.push(table).push(" AS t WHERE true");
    condition(&mut count);
    let total = count.build_query_scalar().fetch_one(&mut *connection).await?;
    let mut query = QueryBuilder::new("SELECT to_jsonb(t) FROM ");
    query.push(table).push(" AS t WHERE true");
    condition(&mut query);
    order(&mut query);
    query.push(" LIMIT ").push_bind(page.limit).push(" OFFSET ").push_bind(page.offset);
    let rows: Vec<Json<Row>> = query.build_query_scalar().fetch_all(connection).await?;
    Ok((all_shown(rows), total))
}

/// One page of users, each with the number of their keys. Also returns the total number of users.
pub async fn users(
    connection: &mut PgConnection,
    filter: &Filter,
    sort: Sort<'_>,
    page: Page,
) -> Result<(Vec<Row>, i64), sqlx::Error> {
    let condition = |query: &mut QueryBuilder<Postgres>| {
        push_part(query, "t.user_id", filter.user_id.as_ref());
        push_part(query, "t.user_email", filter.user_email.as_ref());
        push_equal(query, " AND t.user_role = ", filter.user_role.as_ref());
        if let Some(ids) = &filter.user_ids {
            query.push(" AND t.user_id = ANY (").push_bind(ids.clone()).push(")");
        }
        if let Some(team) = &filter.team_id {
            query.push(" AND ").push_bind(team.clone()).push(" = ANY (t.teams)");
        }
    };
    let columns = ["user_id", "user_email", "created_at", "spend", "user_alias", "user_role"];
    let order = |query: &mut QueryBuilder<Postgres>| sort.push(query, &columns, "user_id");
    let (mut users, total) = list(connection, "\"LiteLLM_UserTable\"", condition, order, page).await?;
    let ids: Vec<String> = users.iter().map(|user| text(user, "user_id").to_owned()).collect();
    let counts: Vec<(String, i64)> = sqlx::query_as(
        r#"SELECT user_id, count(*) FROM "LiteLLM_VerificationToken" AS t
           WHERE user_id = ANY ($1) AND t.team_id IS DISTINCT FROM 'litellm-dashboard' GROUP BY user_id"#,
    )
    .bind(&ids)
    .fetch_all(connection)
    .await?;
    for user in &mut users {
        let count = counts.iter().find(|(id, _)| id == text(user, "user_id")).map_or(0, |(_, count)| *count);
        user.insert("organization_memberships".into(), Value::Null);
        user.insert("object_permission".into(), Value::Null);
        user.insert("key_count".into(), count.into());
    }
    Ok((users, total))
}

/// Number of users, and number of teams.
pub async fn counts(connection: &mut PgConnection) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(r#"SELECT (SELECT count(*) FROM "LiteLLM_UserTable"), (SELECT count(*) FROM "LiteLLM_TeamTable")"#)
        .fetch_one(connection)
        .await
}

fn push_key_filter(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    query.push(NO_SESSIONS);
    push_equal(query, " AND t.user_id = ", filter.user_id.as_ref());
    push_equal(query, " AND t.team_id = ", filter.team_id.as_ref());
    push_equal(query, " AND t.organization_id = ", filter.organization_id.as_ref());
    push_equal(query, " AND t.token = ", filter.token.as_ref());
    push_part(query, "t.key_alias", filter.key_alias.as_ref());
    if let Some(user) = &filter.only_of_user {
        // The empty string stands for no user, who owns nothing: not even the keys without a user.
        query.push(" AND (t.user_id = NULLIF(").push_bind(user.clone()).push("::text, '')");
        query
            .push(
                r#" OR EXISTS (SELECT FROM "LiteLLM_TeamTable" AS team
                   CROSS JOIN LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(team.members_with_roles) = 'array'
                       THEN team.members_with_roles ELSE '[]' END) AS member
                   WHERE team.team_id = t.team_id AND member ->> 'role' = 'admin' AND member ->> 'user_id' = "#,
            )
            .push_bind(user.clone())
            .push("))");
    }
}

/// One page of keys, each with its user and its team's alias. Also returns the total number of keys.
pub async fn keys(
    connection: &mut PgConnection,
    filter: &Filter,
    sort: Sort<'_>,
    page: Page,
) -> Result<(Vec<Row>, i64), sqlx::Error> {
    let columns = ["spend", "max_budget", "created_at", "updated_at", "expires", "key_alias", "user_id", "team_id"];
    let condition = |query: &mut QueryBuilder<Postgres>| push_key_filter(query, filter);
    let order = |query: &mut QueryBuilder<Postgres>| sort.push(query, &columns, "token");
    let (mut keys, total) = list(connection, "\"LiteLLM_VerificationToken\"", condition, order, page).await?;
    let named = |name: &str| -> Vec<String> { keys.iter().map(|key| text(key, name).to_owned()).collect() };
    let (user_ids, team_ids) = (named("user_id"), named("team_id"));
    let users: Vec<Json<Row>> =
        sqlx::query_scalar(r#"SELECT to_jsonb(t) FROM "LiteLLM_UserTable" AS t WHERE user_id = ANY ($1)"#)
            .bind(&user_ids)
            .fetch_all(&mut *connection)
            .await?;
    let users = all_shown(users);
    let aliases: Vec<(String, Option<String>)> =
        sqlx::query_as(r#"SELECT team_id, team_alias FROM "LiteLLM_TeamTable" WHERE team_id = ANY ($1)"#)
            .bind(&team_ids)
            .fetch_all(connection)
            .await?;
    for key in &mut keys {
        let user = users.iter().find(|user| text(user, "user_id") == text(key, "user_id")).cloned();
        let alias = aliases.iter().find(|(id, _)| id == text(key, "team_id")).and_then(|(_, alias)| alias.clone());
        for name in ["user_email", "user_alias", "user_role"] {
            key.insert(name.into(), user.as_ref().and_then(|user| user.get(name).cloned()).unwrap_or_default());
        }
        key.insert("team_alias".into(), alias.into());
        key.insert("user".into(), user.map_or(Value::Null, Value::Object));
    }
    Ok((keys, total))
}

/// One page of deleted keys, the most recently deleted first. Also returns their total number.
pub async fn deleted_keys(
    connection: &mut PgConnection,
    filter: &Filter,
    page: Page,
) -> Result<(Vec<Row>, i64), sqlx::Error> {
    let condition = |query: &mut QueryBuilder<Postgres>| push_key_filter(query, filter);
    let order = |query: &mut QueryBuilder<Postgres>| {
        query.push(" ORDER BY t.deleted_at DESC NULLS LAST, t.id");
    };
    list(connection, "\"LiteLLM_DeletedVerificationToken\"", condition, order, page).await
}

/// Pushes a condition for the teams that the user's row lists.
fn push_own_teams(query: &mut QueryBuilder<Postgres>, user: Option<&String>) {
    if let Some(user) = user {
        query.push(r#" AND t.team_id = ANY (SELECT unnest(teams) FROM "LiteLLM_UserTable" WHERE user_id = NULLIF("#);
        query.push_bind(user.clone()).push("::text, ''))");
    }
}

/// One page of teams, each with the number of its members and keys. Also returns the total number of teams.
pub async fn teams(
    connection: &mut PgConnection,
    filter: &Filter,
    sort: Sort<'_>,
    page: Page,
) -> Result<(Vec<Row>, i64), sqlx::Error> {
    let condition = |query: &mut QueryBuilder<Postgres>| {
        push_own_teams(query, filter.only_of_user.as_ref());
        push_own_teams(query, filter.user_id.as_ref());
        push_equal(query, " AND t.organization_id = ", filter.organization_id.as_ref());
        push_equal(query, " AND t.team_id = ", filter.team_id.as_ref());
        if let Some(part) = &filter.team_alias {
            query.push(" AND (");
            push_contains_in_any_case(query, "t.team_alias", part);
            query.push(" OR ");
            push_contains_in_any_case(query, "t.team_id", part);
            query.push(")");
        }
    };
    let columns = ["team_alias", "team_id", "created_at", "spend", "max_budget"];
    let order = |query: &mut QueryBuilder<Postgres>| sort.push(query, &columns, "team_id");
    let (mut teams, total) = list(connection, "\"LiteLLM_TeamTable\"", condition, order, page).await?;
    let ids: Vec<String> = teams.iter().map(|team| text(team, "team_id").to_owned()).collect();
    let counts: Vec<(String, i64)> = sqlx::query_as(
        r#"SELECT team_id, count(*) FROM "LiteLLM_VerificationToken" WHERE team_id = ANY ($1) GROUP BY team_id"#,
    )
    .bind(&ids)
    .fetch_all(connection)
    .await?;
    for team in &mut teams {
        let count = counts.iter().find(|(id, _)| id == text(team, "team_id")).map_or(0, |(_, count)| *count);
        let members = team.get("members_with_roles").and_then(Value::as_array).map_or(0, Vec::len);
        team.insert("members_count".into(), members.into());
        team.insert("keys_count".into(), count.into());
        team.insert("caller_membership".into(), Value::Null);
    }
    Ok((teams, total))
}

/// A team with its `keys` and `team_memberships`, at most 1,000 of each. With `of_user`, the user must be in the team,
/// and only that user's keys and memberships are included. `None` if there is no such team.
pub async fn team(
    connection: &mut PgConnection,
    team_id: &str,
    of_user: Option<&str>,
) -> Result<Option<Row>, sqlx::Error> {
    let row: Option<Json<Row>> = sqlx::query_scalar(
        r#"SELECT to_jsonb(t) FROM "LiteLLM_TeamTable" AS t WHERE team_id = $1 AND ($2::text IS NULL
               OR team_id = ANY (SELECT unnest(teams) FROM "LiteLLM_UserTable" WHERE user_id = NULLIF($2, '')))"#,
    )
    .bind(team_id)
    .bind(of_user)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let mut team = shown(row);
    for (name, statement) in [
        (
            "keys",
            r#"SELECT to_jsonb(t) FROM "LiteLLM_VerificationToken" AS t
               WHERE team_id = $1 AND ($2::text IS NULL OR user_id = NULLIF($2, '')) ORDER BY token LIMIT 1000"#,
        ),
        (
            "team_memberships",
            r#"SELECT to_jsonb(t) FROM "LiteLLM_TeamMembership" AS t
               WHERE team_id = $1 AND ($2::text IS NULL OR user_id = NULLIF($2, '')) ORDER BY user_id LIMIT 1000"#,
        ),
    ] {
        let rows: Vec<Json<Row>> =
            sqlx::query_scalar(statement).bind(team_id).bind(of_user).fetch_all(&mut *connection).await?;
        team.insert(name.into(), all_shown(rows).into_iter().map(Value::Object).collect());
    }
    Ok(Some(team))
}

/// Number of calls on one day to one route.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RouteCalls {
    /// Day, `YYYY-MM-DD`.
    pub date: String,
    /// Route; empty if it is not known.
    pub route: String,
    /// Number of calls that succeeded.
    pub successful: i64,
    /// Number of calls that failed.
    pub failed: i64,
}

/// Calls by day and route, from LiteLLM's daily rows; only of one user if `user_id` is given.
pub async fn calls(
    connection: &mut PgConnection,
    start: &str,
    end: &str,
    user_id: Option<&str>,
) -> Result<Vec<RouteCalls>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT log.date, COALESCE(log.endpoint, '') AS route, sum(log.successful_requests)::bigint AS successful,
                  sum(log.failed_requests)::bigint AS failed
           FROM (SELECT NULL::text AS endpoint) AS defaults
           CROSS JOIN LATERAL (SELECT date, endpoint, successful_requests, failed_requests FROM "LiteLLM_DailyUserSpend"
                               WHERE date BETWEEN $1 AND $2 AND ($3::text IS NULL OR user_id = NULLIF($3, ''))) AS log
           GROUP BY 1, 2 ORDER BY 1, 2"#,
    )
    .bind(start)
    .bind(end)
    .bind(user_id)
    .fetch_all(connection)
    .await
}
