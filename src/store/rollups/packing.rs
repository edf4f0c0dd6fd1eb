//! Packs days and months, and sums LiteLLM's daily rows. [`crate::store::rollups::packed`] has the form of packed days.

use chrono::NaiveDate;
use sqlx::{Connection, Executor, PgConnection};

/// Name of the rollup of usage by month.
pub const MONTHS: &str = "usage_month";

/// Name of the sums of LiteLLM's daily rows.
pub const DAILY_ROWS: &str = "activity";

/// The rollups that are packed or summed by day or by month.
pub const PACKED: [&str; 4] = ["usage", "customer", MONTHS, DAILY_ROWS];

/// Packs the newest queued day before `before` that is not in `but`, whether or not it is due. Returns the day. Returns
/// `None` if no such day is queued, or if another server holds the lock.
pub async fn pack(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, Some(but)).await
}

/// Packs the newest queued month of usage that ended before `before` and is not in `but`, whether or not it is due.
/// Returns the first day of the month. Returns `None` if no such month is queued, or if another server holds the lock.
pub async fn pack_month(
    connection: &mut PgConnection,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, MONTHS, before, Some(but)).await
}

/// First deletes the sums of days whose daily rows have changed since. Then sums the newest queued day of LiteLLM's
/// daily rows that is before `before` and not in `but`, and returns it. Returns `None` if no such day is queued, or if
/// another server holds the lock.
pub async fn sum_activity(
    connection: &mut PgConnection,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, DAILY_ROWS, before, Some(but)).await
}

/// Packs or sums the newest due day or month of one of [`PACKED`], and returns it. If a change discards a packed or
/// summed day, that day becomes due again five minutes later.
pub async fn pack_due(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, None).await
}

/// Like [`pack_due`], but ignores whether the day or month is due.
pub async fn pack_any(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, Some(&[])).await
}

async fn pack_one(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
    but: Option<&[NaiveDate]>,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    let but: Option<Vec<String>> = but.map(|but| but.iter().map(NaiveDate::to_string).collect());
    let statement = match rollup {
        MONTHS => "SELECT litespend.pack_month($2::date, $3::text[]::date[])::text WHERE $1 <> ''",
        DAILY_ROWS => "SELECT litespend.sum_activity($2::date::text, $3::text[]) WHERE $1 <> ''",
        _ => "SELECT litespend.pack($1, $2::date, $3::text[]::date[])::text",
    };
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL statement_timeout = '10min'").await?;
    let day: Option<String> =
        sqlx::query_scalar(statement).bind(rollup).bind(before).bind(but).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(day.and_then(|day| day.parse().ok()))
}

/// Whether days and months can be packed and summed in this database. The rollups of an older version have no queues
/// for that.
pub async fn can_pack(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('litespend.activity_to_sum') IS NOT NULL").fetch_one(connection).await
}
