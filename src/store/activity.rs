//! Aggregated activity from LiteLLM's daily tables (user, team, tag). The database computes all sums, so the server
//! receives only a few rows per day. All queries of one response must run in one snapshot ([`begin_snapshot`]).

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

/// Value of `api_key` under which LiteLLM books flat costs of provisioned throughput. It is not a real key.
pub const FLAT_COST_KEY: &str = "__ptu_flat_cost__";

/// Approximate number of parts into which a range of days is split.
const PARTS: usize = 8;

/// One of LiteLLM's daily tables.
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

/// Which rows of a daily table to read. An empty list in a field matches nothing.
#[derive(Clone, Debug)]
pub struct ActivityFilter {
    /// The table to read.
    pub table: DailyTable,
    /// First day, `YYYY-MM-DD`.
    pub start: String,
    /// Last day, included.
    pub end: String,
    /// Only these users, teams or tags; `None` for all.
    pub entities: Option<Vec<String>>,
    /// Users, teams or tags to leave out.
    pub excluded: Vec<String>,
    /// Only keys with these hashes; `None` for all.
    pub api_keys: Option<Vec<String>>,
    /// Only this model; `None` or the empty string for all. [`UNKNOWN_MODEL`] also matches rows without a model.
    pub model: Option<String>,
    /// Days that are read from the precomputed sums of the rollups. [`begin_snapshot`] fills this field.
    pub summed: Vec<NaiveDate>,
}

/// Defaults of the name columns that an older LiteLLM lacks: part of the outer row of defaults.
const NEWER_NAMES: &str = "NULL::text AS endpoint, NULL::text AS mcp_namespaced_tool_name";

/// The columns by which rows are grouped. In a statement, `entity_id` comes before them, and the figures come after
/// them.
const GROUPS: &str = "date, api_key, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint";

/// The names of a row's groups (model, public model name and so on) as a report shows them.
const NAMES: &str = r#"
    COALESCE(NULLIF(model, ''), 'unknown-model') AS model,
    COALESCE(NULLIF(model_group, ''), NULLIF(model, ''), 'unknown-model-group') AS model_group,
    COALESCE(NULLIF(custom_llm_provider, ''), 'unknown') AS provider,
    NULLIF(mcp_namespaced_tool_name, '') AS tool, NULLIF(endpoint, '') AS endpoint"#;

/// Sort order of keys: descending spend, then name. The last bits of a floating-point sum depend on the order of
/// addition. The rounding makes equal decimal amounts compare as equal, so that the name decides.
const BY_SPEND: &str = r#"
    round(sum(spend)::numeric, 9) DESC,
    CASE WHEN api_key = '' THEN 'unattributed'
         WHEN api_key = 'unattributed' OR api_key LIKE 'raw:%' THEN 'raw:' || api_key ELSE api_key END"#;

impl ActivityFilter {
    /// The same filter, limited to these days.
    pub fn between(self, (start, end): (NaiveDate, NaiveDate)) -> Self {
        Self { start: start.to_string(), end: end.to_string(), ..self }
    }

    /// Whether the filter selects all rows of all users, as the precomputed sums do.
    fn is_everybody(&self) -> bool {
        self.table == DailyTable::User
            && self.entities.is_none()
            && self.excluded.is_empty()
            && self.api_keys.is_none()
            && self.model.as_deref().is_none_or(str::is_empty)
    }

    /// Splits the filter into spans of days, so that the database can aggregate several spans in parallel. Days with
    /// precomputed sums are left out.
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

    /// Pushes ` FROM ... ` with the matching rows as `daily`. Columns have LiteLLM's names, except that the entity is
    /// `entity_id`.
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

    /// The days with precomputed sums, formatted as in the tables.
    fn summed_days(&self) -> Vec<String> {
        self.summed.iter().map(NaiveDate::to_string).collect()
    }

    /// Like [`ActivityFilter::push_rows`], but with only the column `member` (`entity_id` or `api_key`) and sums of the
    /// figures that lists show. A member can have several rows. Days with precomputed sums are read from those sums.
    /// The statement consists of parts, so that the database can sum several in parallel.
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

/// Starts a snapshot. All later statements see the same state of the database. With `has_rollups`, also finds the days
/// of the filter that have precomputed sums.
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

/// The days of the filter that have valid precomputed sums, in ascending order.
async fn summed(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<Vec<NaiveDate>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regprocedure('litespend.activity_summed(text,text)') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    // Uses the sums only if they belong to the table in the search path, and not to a table of another schema.
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
    // JIT compilation of a query with many sums takes longer than running it. The planner assumes that there is one
    // group for every ten rows, so it would sort them. In fact there are few groups, and hashing is several times
    // faster.
    reading
        .connection()
        .execute(
            "SET LOCAL jit = off; SET LOCAL work_mem = '32MB'; SET LOCAL enable_sort = off;
             SET LOCAL enable_incremental_sort = off; SET LOCAL parallel_tuple_cost = 0",
        )
        .await?;
    Ok(reading)
}

/// One of the keys with the largest spend.
#[derive(Clone, Debug, FromRow)]
pub struct TopKey {
    /// SHA-256 of the key; empty for usage without a key.
    pub api_key: String,
    /// Total number of keys.
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

/// The dimension by which the rows of a sum are grouped, in addition to the day and possibly the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[repr(i32)]
pub enum Dimension {
    /// No further dimension: the sum of the day.
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
    /// Rows of one key that have the same model, public model name, provider, tool and endpoint.
    Key = 7,
}

/// Sums of one group on one day.
#[derive(Clone, Debug, FromRow)]
pub struct DaySums {
    /// Day, `YYYY-MM-DD`.
    pub date: String,
    /// Dimension of the group.
    pub dimension: Dimension,
    /// Name of the group; `None` for [`Dimension::Day`] and [`Dimension::Key`].
    pub name: Option<String>,
    /// If set, the sums cover only this key.
    pub api_key: Option<String>,
    /// For [`Dimension::Key`]: model, public model name, provider, tool and endpoint.
    pub names: Option<Vec<Option<String>>>,
    /// Sums of the figures.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// Dimension and name of a sum's group, derived from the bits of `GROUPING (model, model_group, provider, tool,
/// endpoint)`.
const DIMENSIONS: &str = r#"
    CASE GROUPING (model, model_group, provider, tool, endpoint)
        WHEN 31 THEN 0 WHEN 15 THEN 1 WHEN 23 THEN 2 WHEN 27 THEN 3 WHEN 29 THEN 4 ELSE 5 END AS dimension,
    COALESCE(CASE WHEN GROUPING (model) = 0 THEN model END, CASE WHEN GROUPING (model_group) = 0 THEN model_group END,
             CASE WHEN GROUPING (provider) = 0 THEN provider END, tool, endpoint) AS name"#;

/// Condition that excludes the groups of rows without a tool or without an endpoint. These do not count as groups.
const NAMED: &str = "(GROUPING (tool) = 1 OR tool IS NOT NULL) AND (GROUPING (endpoint) = 1 OR endpoint IS NOT NULL)";

/// Streams the sums by day and group, and for each key of `api_keys` the sums by all group columns together. The newest
/// day comes first; the order within a day is arbitrary. `by_entity` adds sums by user, team or tag.
pub fn day_sums<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &ActivityFilter,
    api_keys: &[String],
    by_entity: bool,
) -> BoxStream<'q, Result<DaySums, sqlx::Error>> {
    // The statement aggregates all rows once into a small number of groups, and then groups these again. It reads the
    // rows of the listed keys separately, and returns each of their sums once. One such sum counts for several groups
    // of the response, so the response is longer than the rows are.
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

/// Number of keys of each user, team or tag. The name is empty for rows without one.
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

/// Sums of one key over the whole range of days.
#[derive(Clone, Debug, FromRow)]
pub struct KeySums {
    /// SHA-256 of the key; empty for usage without a key.
    pub api_key: String,
    /// Total number of keys.
    pub members: i64,
    /// Sums of the figures.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// SQL column for the total number of keys or users.
const MEMBERS: &str = ", count(*) OVER () AS members";

/// One page of the keys, largest spend first.
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

/// Number of keys.
pub async fn count_keys(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*) FROM (SELECT api_key");
    filter.push_rows(&mut query);
    query.push(" WHERE api_key <> ").push_bind(FLAT_COST_KEY).push(" GROUP BY api_key) AS keys");
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// The keys with the largest spend on one model. With `by_group`, `model` is the public model name, otherwise the
/// model's own name.
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

/// Sums of one user over the whole range of days.
#[derive(Clone, Debug, FromRow)]
pub struct UserSums {
    /// User ID; `None` for rows without a user.
    pub user_id: Option<String>,
    /// Total number of users.
    pub members: i64,
    /// Sums of the figures.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// One page of the users, largest spend first.
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

/// Number of users. All rows without a user together count as one.
pub async fn count_users(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*) FROM (SELECT NULLIF(entity_id, '')");
    filter.push_rows(&mut query);
    query.push(" GROUP BY 1) AS users");
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// Number of matching rows.
pub async fn count_rows(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*)");
    filter.push_rows(&mut query);
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// One page of unaggregated rows, newest day first, then by ID.
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
