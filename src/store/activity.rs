//! Aggregated activity out of LiteLLM's daily tables (user, team, tag): all sums are made by the database, and what
//! reaches the server is a few rows a day. An answer's queries belong into one snapshot ([`begin_snapshot`]).

pub mod daily;
pub mod figures;
pub mod global;

use chrono::{Days, NaiveDate};
use futures_util::stream::BoxStream;
use sqlx::{AssertSqlSafe, Executor, FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::activity::daily::{DailyRow, UNKNOWN_MODEL};
use crate::store::activity::figures::Figures;
use crate::store::reading::Reading;
use crate::store::rollups::DAILY_COUNTED;
use crate::store::rollups::days::is_gone;

/// The key under which LiteLLM keeps flat costs of provisioned throughput: no key of anybody.
pub const FLAT_COST_KEY: &str = "__ptu_flat_cost__";

/// Into how many spans of days a range is cut, about.
const PARTS: usize = 8;

/// Which daily table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DailyTable {
    /// `LiteLLM_DailyUserSpend`.
    User,
    /// `LiteLLM_DailyTeamSpend`.
    Team,
    /// `LiteLLM_DailyTagSpend`: a request with several tags counts once for each.
    Tag,
}

impl DailyTable {
    fn name(self) -> &'static str {
        match self {
            Self::User => r#""LiteLLM_DailyUserSpend""#,
            Self::Team => r#""LiteLLM_DailyTeamSpend""#,
            Self::Tag => r#""LiteLLM_DailyTagSpend""#,
        }
    }

    fn entity(self) -> &'static str {
        match self {
            Self::User => "user_id",
            Self::Team => "team_id",
            Self::Tag => "tag",
        }
    }
}

/// Which rows of a daily table. An empty list matches nothing.
#[derive(Clone, Debug)]
pub struct ActivityFilter {
    /// Table.
    pub table: DailyTable,
    /// First day, `YYYY-MM-DD`.
    pub start: String,
    /// Last day, included.
    pub end: String,
    /// Users, teams or tags, if limited.
    pub entities: Option<Vec<String>>,
    /// Users, teams or tags to leave out.
    pub excluded: Vec<String>,
    /// Hashes of keys, if limited.
    pub api_keys: Option<Vec<String>>,
    /// Model, if limited to one; [`UNKNOWN_MODEL`] also finds rows without one.
    pub model: Option<String>,
    /// Days that are read from the rollups' sums; [`begin_snapshot`] finds them.
    pub summed: Vec<NaiveDate>,
}

/// Columns of names that an older LiteLLM lacks, as part of the outer row of defaults.
const NEWER_NAMES: &str = "NULL::text AS endpoint, NULL::text AS mcp_namespaced_tool_name";

/// The names of groups of a row; `entity_id` goes before them, and the figures after.
const GROUPS: &str = "date, api_key, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint";

/// The name under which a row's model, group and so on stand in a report.
const NAMES: &str = r#"
    COALESCE(NULLIF(model, ''), 'unknown-model') AS model,
    COALESCE(NULLIF(model_group, ''), NULLIF(model, ''), 'unknown-model-group') AS model_group,
    COALESCE(NULLIF(custom_llm_provider, ''), 'unknown') AS provider,
    NULLIF(mcp_namespaced_tool_name, '') AS tool, NULLIF(endpoint, '') AS endpoint"#;

/// The order of keys by falling spend. Sums of binary fractions depend on their order in the last bits: rounding
/// lets what is equal in decimals be equal here, so that the name decides.
const BY_SPEND: &str = r#"
    round(sum(spend)::numeric, 9) DESC,
    CASE WHEN api_key = '' THEN 'unattributed'
         WHEN api_key = 'unattributed' OR api_key LIKE 'raw:%' THEN 'raw:' || api_key ELSE api_key END"#;

impl ActivityFilter {
    /// The same rows, of these days only.
    pub fn between(self, (start, end): (NaiveDate, NaiveDate)) -> Self {
        Self { start: start.to_string(), end: end.to_string(), ..self }
    }

    /// Whether all rows of users are meant, as the rollups have them.
    fn is_everybody(&self) -> bool {
        self.table == DailyTable::User
            && self.entities.is_none()
            && self.excluded.is_empty()
            && self.api_keys.is_none()
            && self.model.as_deref().is_none_or(str::is_empty)
    }

    /// The same rows in spans of days, so that the database can group several at a time; without days that are summed.
    fn parts(&self) -> Vec<Self> {
        let day = |text: &str| text.parse::<NaiveDate>().ok();
        let (Some(start), Some(end)) = (day(&self.start), day(&self.end)) else { return vec![self.clone()] };
        if !self.summed.is_empty() {
            let rest = Self { summed: Vec::new(), ..self.clone() };
            let mut parts = Vec::new();
            let mut first = start;
            for summed in self.summed.iter().chain(end.succ_opt().as_ref()) {
                if let Some(last) = summed.pred_opt().filter(|last| first <= *last) {
                    parts.extend(rest.clone().between((first, last)).parts());
                }
                first = summed.succ_opt().unwrap_or(NaiveDate::MAX);
            }
            return parts;
        }
        let length = Days::new(u64::try_from((end - start).num_days()).unwrap_or(0) / PARTS as u64);
        let mut parts = Vec::new();
        let mut first = start;
        while let Some(last) = first.checked_add_days(length).filter(|last| *last < end) {
            parts.push(self.clone().between((first, last)));
            let Some(next) = last.succ_opt() else { break };
            first = next;
        }
        parts.push(self.clone().between((first, end)));
        parts
    }

    /// ` FROM ... ` with the rows, the columns under LiteLLM's names and the entity as `entity_id`.
    fn push_rows(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" FROM (SELECT daily.* FROM (SELECT ").push(NEWER_NAMES).push(", ").push(figures::DEFAULTS.as_str());
        query.push(") AS defaults CROSS JOIN LATERAL (SELECT ").push(self.table.entity());
        query.push(" AS entity_id, id, ").push(GROUPS).push(", ").push(figures::OF_TABLE.as_str());
        query.push(" FROM ").push(self.table.name());
        query.push(" WHERE date >= ").push_bind(self.start.clone());
        query.push(" AND date <= ").push_bind(self.end.clone());
        if let Some(entities) = &self.entities {
            query.push(" AND ").push(self.table.entity()).push(" = ANY (").push_bind(entities.clone()).push(")");
        }
        if !self.excluded.is_empty() {
            query.push(" AND (").push(self.table.entity()).push(" IS NULL OR ").push(self.table.entity());
            query.push(" <> ALL (").push_bind(self.excluded.clone()).push("))");
        }
        if let Some(api_keys) = &self.api_keys {
            query.push(" AND api_key = ANY (").push_bind(api_keys.clone()).push(")");
        }
        match self.model.as_deref() {
            None | Some("") => {}
            Some(UNKNOWN_MODEL) => {
                query.push(" AND (model IS NULL OR model IN ('', ").push_bind(UNKNOWN_MODEL).push("))");
            }
            Some(model) => {
                query.push(" AND model = ").push_bind(model.to_owned());
            }
        }
        query.push(") AS daily) AS daily");
    }

    /// The days that are summed, as the tables have them.
    fn summed_days(&self) -> Vec<String> {
        self.summed.iter().map(NaiveDate::to_string).collect()
    }

    /// As [`ActivityFilter::push_rows`], but only `member` (`entity_id` or `api_key`) and sums of the figures of a list,
    /// several of a member; of summed days from their sums. In parts, so that the database can sum several at a time.
    fn push_members(&self, query: &mut QueryBuilder<Postgres>, member: &str) {
        if self.summed.is_empty() {
            return self.push_rows(query);
        }
        let days = self.summed_days();
        let mut separator = " FROM (";
        for part in days.chunks(days.len().div_ceil(PARTS)) {
            query.push(separator).push("SELECT ").push(member).push(", ").push(figures::LISTED_SUMS.as_str());
            query.push(" FROM (SELECT user_id AS entity_id, * FROM litespend.activity_members WHERE date = ANY (");
            query.push_bind(part.to_vec()).push(")) AS part GROUP BY 1");
            separator = " UNION ALL ";
        }
        for part in self.parts() {
            query.push(separator).push("SELECT ").push(member).push(", ").push(figures::LISTED_SUMS.as_str());
            part.push_rows(query);
            query.push(" GROUP BY 1");
        }
        query.push(") AS daily");
    }
}

/// Starts a snapshot: everything read from now on is of one moment. With `has_rollups`, looks which days of the filter
/// are summed there.
pub async fn begin_snapshot(
    reading: Reading,
    filter: &mut ActivityFilter,
    has_rollups: bool,
) -> Result<Reading, sqlx::Error> {
    let mut reading = begin(reading).await?;
    if !has_rollups || !filter.is_everybody() {
        return Ok(reading);
    }
    match summed(reading.connection(), filter).await {
        Ok(days) => filter.summed = days,
        Err(sqlx::Error::Database(error)) if is_gone(error.code().as_deref()) => {
            reading = begin(reading.without_snapshot().await?).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(reading)
}

/// The days of the filter whose sums stand, in order.
async fn summed(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<Vec<NaiveDate>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regprocedure('litespend.activity_summed(text,text)') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    // Of the table that the search path leads to, not of another schema's.
    let statement = format!("SELECT days FROM litespend.activity_summed($1, $2) AS days WHERE {DAILY_COUNTED}");
    let days: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(&filter.start)
        .bind(&filter.end)
        .fetch_all(connection)
        .await?;
    Ok(days.into_iter().filter_map(|day| day.parse().ok()).collect())
}

async fn begin(reading: Reading) -> Result<Reading, sqlx::Error> {
    let mut reading = reading.snapshot().await?;
    // Compiling a query of many sums takes longer than running it. The planner takes every tenth row for a group of
    // its own, and would sort them; they are few, and hashing them is several times faster.
    reading
        .connection()
        .execute(
            "SET LOCAL jit = off; SET LOCAL work_mem = '32MB'; SET LOCAL enable_sort = off;
             SET LOCAL enable_incremental_sort = off; SET LOCAL parallel_tuple_cost = 0",
        )
        .await?;
    Ok(reading)
}

/// A key among those with the largest spend.
#[derive(Clone, Debug, FromRow)]
pub struct TopKey {
    /// Hash of the key; empty where there was none.
    pub api_key: String,
    /// How many keys there are in all.
    pub keys: i64,
}

/// The `limit` keys with the largest spend.
pub async fn top_keys(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
    limit: i64,
) -> Result<Vec<TopKey>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT api_key, count(*) OVER () AS keys");
    filter.push_members(&mut query, "api_key");
    query.push(" WHERE api_key <> ").push_bind(FLAT_COST_KEY);
    query.push(" GROUP BY api_key ORDER BY ").push(BY_SPEND).push(" LIMIT ").push_bind(limit);
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// The first and the last day with rows, `YYYY-MM-DD`.
pub async fn first_and_last_day(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
) -> Result<(Option<String>, Option<String>), sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT (SELECT min(date)");
    filter.push_rows(&mut query);
    query.push("), (SELECT max(date)");
    filter.push_rows(&mut query);
    query.push(")");
    query.build_query_as().persistent(false).fetch_one(connection).await
}

/// What the rows of a sum have in common, besides their day and perhaps their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[repr(i32)]
pub enum Dimension {
    /// Nothing else.
    Day = 0,
    /// Model.
    Model = 1,
    /// Public model name.
    ModelGroup = 2,
    /// Provider.
    Provider = 3,
    /// MCP tool.
    Tool = 4,
    /// Endpoint.
    Endpoint = 5,
    /// User, team or tag.
    Entity = 6,
    /// One key's rows with the same model, public model name, provider, tool and endpoint.
    Key = 7,
}

/// Sums of one group of one day.
#[derive(Clone, Debug, FromRow)]
pub struct DaySums {
    /// Day, `YYYY-MM-DD`.
    pub date: String,
    /// What the group is.
    pub dimension: Dimension,
    /// The group's name; nothing for [`Dimension::Day`] and [`Dimension::Key`].
    pub name: Option<String>,
    /// The group's sums of one key, where it is set.
    pub api_key: Option<String>,
    /// For [`Dimension::Key`]: model, public model name, provider, tool and endpoint.
    pub names: Option<Vec<Option<String>>>,
    /// Sums.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// The name of a sum's group, by the bits of `GROUPING (model, model_group, provider, tool, endpoint)`.
const DIMENSIONS: &str = r#"
    CASE GROUPING (model, model_group, provider, tool, endpoint)
        WHEN 31 THEN 0 WHEN 15 THEN 1 WHEN 23 THEN 2 WHEN 27 THEN 3 WHEN 29 THEN 4 ELSE 5 END AS dimension,
    COALESCE(CASE WHEN GROUPING (model) = 0 THEN model END, CASE WHEN GROUPING (model_group) = 0 THEN model_group END,
             CASE WHEN GROUPING (provider) = 0 THEN provider END, tool, endpoint) AS name"#;

/// Leaves out rows without a tool or an endpoint, which are no group.
const NAMED: &str = "(GROUPING (tool) = 1 OR tool IS NOT NULL) AND (GROUPING (endpoint) = 1 OR endpoint IS NOT NULL)";

/// Sums by day and group, and sums of each of `api_keys` by all groups at once; newest day first. Within a day, the order is arbitrary.
/// `by_entity` adds the users, teams or tags.
pub fn day_sums<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &ActivityFilter,
    api_keys: &[String],
    by_entity: bool,
) -> BoxStream<'q, Result<DaySums, sqlx::Error>> {
    // The rows are read once for everybody, into groups that are few, and those are grouped again. A key's rows are
    // read apart, only for the keys that are asked for, and come once: each counts for several groups of the answer,
    // which is longer than they are.
    query.push("WITH groups AS MATERIALIZED (");
    let mut separator = "";
    if !filter.summed.is_empty() {
        query.push("SELECT date, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, ");
        query
            .push(figures::NAMES.as_str())
            .push(" FROM litespend.activity_groups WHERE date = ANY (")
            .push_bind(filter.summed_days());
        query.push(")");
        separator = " UNION ALL ";
    }
    for part in &filter.parts() {
        query.push(separator).push("(");
        separator = " UNION ALL ";
        query.push("SELECT date, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, ");
        query.push(figures::SUMS.as_str());
        part.push_rows(query);
        query.push(" GROUP BY 1, 2, 3, 4, 5, 6)");
    }
    query.push("), named AS (SELECT date, ").push(NAMES).push(", ").push(figures::NAMES.as_str()).push(" FROM groups");
    query.push(") SELECT date, NULL::text AS api_key, ").push(DIMENSIONS);
    query.push(", NULL::text[] AS names, ").push(figures::SUMS.as_str());
    query.push(
        " FROM named GROUP BY GROUPING SETS ((date), (date, model), (date, model_group), (date, provider),
          (date, tool), (date, endpoint)) HAVING ",
    );
    query.push(NAMED);
    query.push(" UNION ALL SELECT date, api_key, 7, NULL, ARRAY[model, model_group, provider, tool, endpoint], ");
    query
        .push(figures::NAMES.as_str())
        .push(" FROM (SELECT date, api_key, ")
        .push(NAMES)
        .push(", ")
        .push(figures::SUMS.as_str());
    let keyed = ActivityFilter { api_keys: Some(api_keys.to_vec()), summed: Vec::new(), ..filter.clone() };
    keyed.push_rows(query);
    query.push(" GROUP BY date, api_key, 3, 4, 5, 6, 7) AS keyed");
    if by_entity {
        query
            .push(" UNION ALL SELECT date, NULL::text, 6, COALESCE(entity_id, ''), NULL::text[], ")
            .push(figures::SUMS.as_str());
        filter.push_rows(query);
        query
            .push(" GROUP BY date, 4 UNION ALL SELECT date, api_key, 6, COALESCE(entity_id, ''), NULL::text[], ")
            .push(figures::SUMS.as_str());
        keyed.push_rows(query);
        query.push(" GROUP BY date, api_key, 4");
    }
    query.push(" ORDER BY 1 DESC");
    query.build_query_as().persistent(false).fetch(connection)
}

/// How many keys each user, team or tag has; the name is empty for rows without one.
pub async fn entity_keys(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT entity, count(*) FILTER (WHERE api_key <> ");
    query.push_bind(FLAT_COST_KEY);
    query.push(") FROM (SELECT COALESCE(entity_id, '') AS entity, api_key");
    filter.push_rows(&mut query);
    query.push(" GROUP BY 1, 2) AS pairs GROUP BY 1");
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// Sums of one key over the whole range.
#[derive(Clone, Debug, FromRow)]
pub struct KeySums {
    /// Hash of the key; empty where there was none.
    pub api_key: String,
    /// How many keys there are in all.
    pub members: i64,
    /// Sums.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// How many keys or users there are in all.
const MEMBERS: &str = ", count(*) OVER () AS members";

/// A page of the keys, largest spend first.
pub async fn key_page(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
    offset: i64,
    limit: i64,
) -> Result<Vec<KeySums>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT api_key, ");
    query.push(figures::LISTED_SUMS.as_str()).push(", ").push(figures::UNLISTED_ZEROS.as_str()).push(MEMBERS);
    filter.push_members(&mut query, "api_key");
    query.push(" WHERE api_key <> ").push_bind(FLAT_COST_KEY);
    query.push(" GROUP BY api_key ORDER BY ").push(BY_SPEND);
    query.push(" LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// How many keys there are.
pub async fn count_keys(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*) FROM (SELECT api_key");
    filter.push_rows(&mut query);
    query.push(" WHERE api_key <> ").push_bind(FLAT_COST_KEY).push(" GROUP BY api_key) AS keys");
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// The keys with the largest spend on one model, by its public name or its own.
pub async fn keys_of_model(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
    model: &str,
    by_group: bool,
    limit: i64,
) -> Result<Vec<KeySums>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT api_key, ");
    query.push(figures::LISTED_SUMS.as_str()).push(", ").push(figures::UNLISTED_ZEROS.as_str()).push(MEMBERS);
    filter.push_rows(&mut query);
    query.push(" WHERE api_key <> ").push_bind(FLAT_COST_KEY);
    query.push(if by_group {
        " AND COALESCE(NULLIF(model_group, ''), NULLIF(model, ''), 'unknown-model-group') = "
    } else {
        " AND COALESCE(NULLIF(model, ''), 'unknown-model') = "
    });
    query.push_bind(model.to_owned());
    query.push(" GROUP BY api_key ORDER BY ").push(BY_SPEND).push(" LIMIT ").push_bind(limit);
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// Sums of one user over the whole range.
#[derive(Clone, Debug, FromRow)]
pub struct UserSums {
    /// User; nothing for rows without one.
    pub user_id: Option<String>,
    /// How many users there are in all.
    pub members: i64,
    /// Sums.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// A page of the users, largest spend first.
pub async fn user_page(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
    offset: i64,
    limit: i64,
) -> Result<Vec<UserSums>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT NULLIF(entity_id, '') AS user_id, ");
    query.push(figures::LISTED_SUMS.as_str()).push(", ").push(figures::UNLISTED_ZEROS.as_str()).push(MEMBERS);
    filter.push_members(&mut query, "entity_id");
    query.push(" GROUP BY 1 ORDER BY round(sum(spend)::numeric, 9) DESC, 1 ASC NULLS LAST LIMIT ");
    query.push_bind(limit).push(" OFFSET ").push_bind(offset);
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// How many users there are; rows without one count as one.
pub async fn count_users(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*) FROM (SELECT NULLIF(entity_id, '')");
    filter.push_rows(&mut query);
    query.push(" GROUP BY 1) AS users");
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// How many rows match.
pub async fn count_rows(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*)");
    filter.push_rows(&mut query);
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// One page of rows as they are, newest day first, then by id.
pub async fn row_page(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
    offset: i64,
    limit: i64,
) -> Result<Vec<DailyRow>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT daily.*");
    filter.push_rows(&mut query);
    query.push(" ORDER BY date DESC, id OFFSET ").push_bind(offset).push(" LIMIT ").push_bind(limit);
    query.build_query_as().persistent(false).fetch_all(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_day_once() {
        for (start, end) in [
            ("2026-02-01", "2026-02-01"),
            ("2026-02-01", "2026-02-09"),
            ("2026-03-01", "2026-03-31"),
            ("0001-01-01", "9999-12-31"),
            ("2026-01-01", "2027-02-05"),
        ] {
            let filter = ActivityFilter {
                table: DailyTable::User,
                start: start.into(),
                end: end.into(),
                entities: None,
                excluded: Vec::new(),
                api_keys: None,
                model: None,
                summed: Vec::new(),
            };
            let parts = filter.parts();
            assert!(parts.len() <= 10, "{start} {end}: {}", parts.len());
            assert_eq!((parts[0].start.as_str(), parts[parts.len() - 1].end.as_str()), (start, end));
            for pair in parts.windows(2) {
                let next = pair[0].end.parse::<NaiveDate>().expect("a day").succ_opt().expect("a next day");
                assert_eq!(pair[1].start, next.to_string());
            }
        }
    }

    #[test]
    fn parts_leave_out_days_that_are_summed() {
        let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
        let parts = |summed: &[&str]| -> Vec<(String, String)> {
            let filter = ActivityFilter {
                table: DailyTable::User,
                start: "2026-02-01".into(),
                end: "2026-02-04".into(),
                entities: None,
                excluded: Vec::new(),
                api_keys: None,
                model: None,
                summed: summed.iter().map(|text| day(text)).collect(),
            };
            filter.parts().into_iter().map(|part| (part.start, part.end)).collect()
        };
        let days = |list: &[&str]| -> Vec<(String, String)> {
            list.iter().map(|day| ((*day).to_owned(), (*day).to_owned())).collect()
        };
        assert_eq!(parts(&["2026-02-01", "2026-02-02", "2026-02-03", "2026-02-04"]), []);
        assert_eq!(parts(&["2026-02-02", "2026-02-03"]), days(&["2026-02-01", "2026-02-04"]));
        assert_eq!(parts(&["2026-02-01", "2026-02-04"]), days(&["2026-02-02", "2026-02-03"]));
        assert_eq!(parts(&["2026-02-04"]), days(&["2026-02-01", "2026-02-02", "2026-02-03"]));
        assert_eq!(parts(&["2026-02-01"]), days(&["2026-02-02", "2026-02-03", "2026-02-04"]));
    }
}
