//! Compares the rollups with the log.

use chrono::NaiveDate;
use sqlx::{Connection, Executor, FromRow, PgConnection};

use crate::store::books;
use crate::store::rollups::Attempts;

/// A difference between the rollups and the log.
#[derive(Clone, Debug, FromRow)]
pub struct Difference {
    /// Name of the rollup.
    pub rollup: String,
    /// Day, UTC.
    pub day: NaiveDate,
    /// The entry, as readable text.
    pub entry: String,
    /// The figures in the rollup, as text.
    pub counted: String,
    /// The figures in the log, as text.
    pub logged: String,
}

/// The first difference between the rollups, including unfolded deltas, and the log on one day. Everything is read in
/// one snapshot. Returns `None` for a dirty day and for a
/// closed one. Spend values count as equal within 1e-9, relative or absolute.
pub async fn verify_day(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<Difference>, sqlx::Error> {
    let mut attempts = Attempts::default();
    loop {
        let result = compare_day(connection, day).await;
        if let Some(found) = attempts.again(result).await? {
            return Ok(found);
        }
    }
}

async fn compare_day(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<Difference>, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    transaction.execute("SET LOCAL statement_timeout = '30min'").await?;
    let dirty: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND (day = $1 OR day IS NULL))")
            .bind(day)
            .fetch_one(&mut *transaction)
            .await?;
    if dirty || is_closed(&mut transaction, day).await? {
        return Ok(None);
    }
    let mut found = None;
    for statement in VERIFY_LOG.into_iter().chain(VERIFY_DAILY_ROWS) {
        found = sqlx::query_as(statement).bind(day).fetch_optional(&mut *transaction).await?;
        if found.is_some() {
            break;
        }
    }
    transaction.commit().await?;
    Ok(found)
}

/// Whether the day is closed. The log may have lost its rows.
async fn is_closed(connection: &mut PgConnection, day: NaiveDate) -> Result<bool, sqlx::Error> {
    if !books::is_possible(connection).await? {
        return Ok(false);
    }
    Ok(books::closed_day(connection, day).await?.is_some())
}

/// Each statement compares one rollup of the log with the log on the day `$1`, column by column. Counts and tokens must be
/// equal exactly.
pub(in crate::store) const VERIFY_LOG: [&str; 4] = [
    include_str!("verify/usage.sql"),
    include_str!("verify/customer.sql"),
    include_str!("verify/tag.sql"),
    include_str!("verify/tag_owner.sql"),
];

/// The same for the sums of LiteLLM's daily rows.
const VERIFY_DAILY_ROWS: [&str; 2] =
    [include_str!("verify/activity_groups.sql"), include_str!("verify/activity_members.sql")];
