//! Creates and lists teams.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

use crate::store::accounts::{Conflict, Row, all_shown, shown, text};

/// A member of a team to create.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// User ID.
    pub user_id: String,
    /// E-mail address; `None` for the user's own.
    pub user_email: Option<String>,
    /// Role in the team: `admin` or `user`.
    pub role: String,
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
    /// Members, each of them once. Users who do not exist are created.
    pub members: Vec<NewMember>,
    /// Models that it is meant for.
    pub models: Vec<String>,
    /// Intended budget in USD.
    pub max_budget: Option<f64>,
    /// Further metadata.
    pub metadata: Row,
    /// Whether it is blocked from the start.
    pub blocked: bool,
}

pub(super) async fn exists_team(connection: &mut PgConnection, team_id: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_TeamTable" WHERE team_id = $1)"#)
        .bind(team_id)
        .fetch_one(connection)
        .await
}

/// A member as a team's row lists it.
pub(super) fn listed(user_id: &str, user_email: Option<&str>, role: &str) -> Value {
    serde_json::json!({"user_id": user_id, "user_email": user_email, "role": role})
}

/// The members as the team's row lists them, with the addresses of users who exist.
async fn roster(connection: &mut PgConnection, members: &[NewMember]) -> Result<Vec<Value>, sqlx::Error> {
    let ids: Vec<&str> = members.iter().map(|member| member.user_id.as_str()).collect();
    let known: Vec<(String, String)> = sqlx::query_as(
        r#"SELECT user_id, user_email FROM "LiteLLM_UserTable" WHERE user_id = ANY ($1) AND user_email IS NOT NULL"#,
    )
    .bind(&ids)
    .fetch_all(connection)
    .await?;
    let known: HashMap<String, String> = known.into_iter().collect();
    let entry = |member: &NewMember| {
        let email = member.user_email.as_ref().or_else(|| known.get(&member.user_id));
        listed(&member.user_id, email.map(String::as_str), &member.role)
    };
    Ok(members.iter().map(entry).collect())
}

/// Creates a team with its members. Returns its row, or the reason why it was not created.
pub async fn create_team(connection: &mut PgConnection, team: &NewTeam) -> Result<Result<Row, Conflict>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let roster = roster(&mut transaction, &team.members).await?;
    let row: Option<Json<Row>> = sqlx::query_scalar(
        r#"
        INSERT INTO "LiteLLM_TeamTable" AS t (team_id, team_alias, organization_id, members_with_roles, models, max_budget,
            metadata, blocked, members, admins)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, '{}', '{}') ON CONFLICT (team_id) DO NOTHING RETURNING to_jsonb(t)
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
    let users: Vec<&str> = team.members.iter().map(|member| member.user_id.as_str()).collect();
    for statement in [
        r#"INSERT INTO "LiteLLM_UserTable" AS t (user_id, teams, user_role, models)
           SELECT DISTINCT new.id, ARRAY[$2::text], 'internal_user'::text, '{}'::text[]
           FROM unnest($1::text[]) AS new (id) ORDER BY new.id
           ON CONFLICT (user_id) DO UPDATE SET updated_at = now() AT TIME ZONE 'UTC',
               teams = CASE WHEN $2 = ANY (t.teams) THEN t.teams ELSE array_append(t.teams, $2) END"#,
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

fn by_team(rows: Vec<Row>) -> HashMap<String, Vec<Value>> {
    let mut teams: HashMap<String, Vec<Value>> = HashMap::new();
    for row in rows {
        teams.entry(text(&row, "team_id").to_owned()).or_default().push(Value::Object(row));
    }
    teams
}
