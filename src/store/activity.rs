//! Aggregated activity from LiteLLM's daily tables (user, team, tag). The database computes all sums, so the server
//! receives only a few rows per day. All queries of one response must run in one snapshot ([`begin_snapshot`]).

mod by_day;
pub mod daily;
pub mod figures;
mod filter;
pub mod global;
mod rankings;

pub use crate::store::activity::by_day::{DaySums, Dimension, day_sums};
pub use crate::store::activity::filter::{ActivityFilter, DailyTable};
pub use crate::store::activity::rankings::{
    KeySums, TopKey, UserSums, count_keys, count_users, key_page, keys_of_model, top_keys, user_page,
};

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Postgres, QueryBuilder};

use crate::store::activity::daily::DailyRow;
use crate::store::reading::Reading;
use crate::store::rollups::DAILY_COUNTED;
use crate::store::rollups::days::is_gone;

/// Value of `api_key` under which LiteLLM books flat costs of provisioned throughput. It is not a real key.
pub const FLAT_COST_KEY: &str = "__ptu_flat_cost__";

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
        Ok(summed) => {
            *filter = ActivityFilter { summed: summed.days, members_are_complete: summed.complete, ..filter.clone() }
        }
        Err(sqlx::Error::Database(error)) if is_gone(error.code().as_deref()) => {
            reading = begin(reading.without_snapshot().await?).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(reading)
}

/// The days with valid precomputed sums, in ascending order.
#[derive(Default)]
struct Summed {
    days: Vec<NaiveDate>,
    /// Whether the sums by user and key have all figures. Those of an older version do not.
    complete: bool,
}

/// The days of the filter that have valid precomputed sums, in ascending order.
async fn summed(connection: &mut PgConnection, filter: &ActivityFilter) -> Result<Summed, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regprocedure('litespend.activity_summed(text,text)') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Summed::default());
    }
    // Uses the sums only if they belong to the table in the search path, and not to a table of another schema.
    let statement = format!("SELECT days FROM litespend.activity_summed($1, $2) AS days WHERE {DAILY_COUNTED}");
    let days: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(&filter.start)
        .bind(&filter.end)
        .fetch_all(&mut *connection)
        .await?;
    let complete: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('litespend.activity_members')
                                                   AND attname = 'timed_requests')",
    )
    .fetch_one(connection)
    .await?;
    Ok(Summed { days: days.into_iter().filter_map(|day| day.parse().ok()).collect(), complete })
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

/// Number of keys of each user, team or tag. The name is empty for rows without one.
pub async fn entity_keys(
    connection: &mut PgConnection,
    filter: &ActivityFilter,
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT entity, count(*) FILTER (WHERE api_key <> ");
    query.push_bind(FLAT_COST_KEY);
    query.push(") FROM (");
    let mut separator = "";
    for source in filter.entity_sources() {
        query.push(separator).push("SELECT COALESCE(entity_id, '') AS entity, api_key");
        source.push(&mut query);
        query.push(" GROUP BY 1, 2");
        separator = " UNION ";
    }
    query.push(") AS pairs GROUP BY 1");
    query.build_query_as().persistent(false).fetch_all(connection).await
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
