//! Adds to the `spend` counters of keys, users, teams, organisations, end users and team members.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::booking::UsageRow;
use crate::store::booking::tables::Tables;

/// Spend in USD by ID, in the order of the bytes of the IDs.
type Amounts<'a> = BTreeMap<&'a str, f64>;

/// The amounts that a set of rows adds to the counters. A row that has no owner of some kind adds nothing to the
/// counters of that kind.
#[derive(Debug, Default)]
pub struct Totals<'a> {
    keys: Amounts<'a>,
    users: Amounts<'a>,
    teams: Amounts<'a>,
    organizations: Amounts<'a>,
    end_users: Amounts<'a>,
    /// Keyed by team and user.
    members: BTreeMap<(&'a str, &'a str), f64>,
}

impl<'a> Totals<'a> {
    /// Sums up the spend of the rows.
    pub fn of(rows: impl IntoIterator<Item = &'a UsageRow>) -> Self {
        let mut totals = Self::default();
        for row in rows {
            let add = |amounts: &mut Amounts<'a>, id: &'a str| {
                if !id.is_empty() {
                    *amounts.entry(id).or_default() += row.spend;
                }
            };
            add(&mut totals.keys, &row.api_key);
            add(&mut totals.users, &row.user);
            add(&mut totals.teams, &row.team_id);
            add(&mut totals.organizations, &row.organization_id);
            add(&mut totals.end_users, &row.end_user);
            if !row.team_id.is_empty() && !row.user.is_empty() {
                *totals.members.entry((&row.team_id, &row.user)).or_default() += row.spend;
            }
        }
        totals
    }
}

/// Locks the rows in the order of the IDs before the update. `UPDATE` alone would lock rows in whatever order it finds
/// them.
macro_rules! add_to {
    ($table:literal, $id:literal, $set:literal) => {
        concat!(
            "WITH locked AS MATERIALIZED (SELECT ",
            $id,
            " AS id FROM \"",
            $table,
            "\" WHERE ",
            $id,
            " = ANY ($1) ",
            "ORDER BY ",
            $id,
            " COLLATE \"C\" FOR NO KEY UPDATE) ",
            "UPDATE \"",
            $table,
            "\" AS t SET ",
            $set,
            " ",
            "FROM locked JOIN unnest($1::text[], $2::float8[]) AS new (id, spend) USING (id) WHERE t.",
            $id,
            " = locked.id"
        )
    };
}

/// Adds the sums to the counters. Owners that do not exist are skipped, with two exceptions. A missing end user is
/// created, as LiteLLM does. A team member who is on the team's roster but has no membership row gets one.
pub async fn add(connection: &mut PgConnection, tables: &Tables, totals: &Totals<'_>) -> Result<(), sqlx::Error> {
    let statements = [
        (
            &totals.keys,
            add_to!(
                "LiteLLM_VerificationToken",
                "token",
                "«total_spend:total_spend = t.total_spend + new.spend, »«last_active:last_active = now() AT TIME ZONE 'UTC', »spend = t.spend + new.spend"
            ),
        ),
        (&totals.users, add_to!("LiteLLM_UserTable", "user_id", "spend = t.spend + new.spend")),
        (&totals.teams, add_to!("LiteLLM_TeamTable", "team_id", "spend = t.spend + new.spend")),
        (&totals.organizations, add_to!("LiteLLM_OrganizationTable", "organization_id", "spend = t.spend + new.spend")),
    ];
    for (amounts, statement) in statements {
        if !amounts.is_empty() {
            let (ids, sums): (Vec<&str>, Vec<f64>) = amounts.iter().unzip();
            let statement = AssertSqlSafe(tables.fit("LiteLLM_VerificationToken", statement));
            sqlx::query(statement).bind(ids).bind(sums).execute(&mut *connection).await?;
        }
    }
    if !totals.end_users.is_empty() {
        let (ids, sums): (Vec<&str>, Vec<f64>) = totals.end_users.iter().unzip();
        sqlx::query(
            r#"INSERT INTO "LiteLLM_EndUserTable" AS t (user_id, spend, blocked)
               SELECT new.id, new.spend, false FROM unnest($1::text[], $2::float8[]) AS new (id, spend)
               ON CONFLICT (user_id) DO UPDATE SET spend = t.spend + EXCLUDED.spend"#,
        )
        .bind(ids)
        .bind(sums)
        .execute(&mut *connection)
        .await?;
    }
    add_to_members(connection, tables, totals).await
}

async fn add_to_members(
    connection: &mut PgConnection,
    tables: &Tables,
    totals: &Totals<'_>,
) -> Result<(), sqlx::Error> {
    if totals.members.is_empty() {
        return Ok(());
    }
    let teams: Vec<&str> = totals.members.keys().map(|(team, _)| *team).collect();
    let users: Vec<&str> = totals.members.keys().map(|(_, user)| *user).collect();
    let sums: Vec<f64> = totals.members.values().copied().collect();
    let statement = tables.fit(
        "LiteLLM_TeamMembership",
        r#"
        INSERT INTO "LiteLLM_TeamMembership" AS t (user_id, team_id, spend«total_spend:, total_spend»)
        SELECT new.user_id, new.team_id, new.spend«total_spend:, new.spend»
        FROM unnest($1::text[], $2::text[], $3::float8[]) WITH ORDINALITY AS new (team_id, user_id, spend, position)
        WHERE EXISTS (SELECT FROM "LiteLLM_TeamMembership" m WHERE m.user_id = new.user_id AND m.team_id = new.team_id)
           OR EXISTS (SELECT FROM "LiteLLM_TeamTable" r WHERE r.team_id = new.team_id
                      AND r.members_with_roles @> jsonb_build_array(jsonb_build_object('user_id', new.user_id)))
        ORDER BY new.position
        ON CONFLICT (user_id, team_id) DO UPDATE
        SET «total_spend:total_spend = GREATEST(t.total_spend, t.spend) + EXCLUDED.total_spend, »spend = t.spend + EXCLUDED.spend
        "#,
    );
    sqlx::query(AssertSqlSafe(statement)).bind(teams).bind(users).bind(sums).execute(connection).await?;
    Ok(())
}
