//! Whether a day can be closed, how it is recorded as closed, and what is recorded afterwards of its archive and its late
//! rows.

use chrono::NaiveDate;
use sqlx::{Connection, Executor, PgConnection};

use crate::store::books::Totals;
use crate::store::rollups::verify::VERIFY_LOG;
use crate::store::rollups::{Difference, partitions};

/// Why a day can't be closed at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// Changes of the day are not folded yet.
    Unfolded,
    /// The day has to be counted again from the log.
    Dirty,
    /// Partitions of the log came or went and are not counted yet.
    Partitions,
}

/// Whether the rollups have the day as the log has it, as far as they know.
pub async fn readiness(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<NotReady>, sqlx::Error> {
    let (dirty, waiting): (bool, bool) = sqlx::query_as(
        "SELECT COALESCE(bool_or(sign = 0), false), COALESCE(bool_or(sign <> 0), false)
         FROM litespend.deltas WHERE day = $1 OR day IS NULL",
    )
    .bind(day)
    .fetch_one(&mut *connection)
    .await?;
    if dirty {
        return Ok(Some(NotReady::Dirty));
    }
    if waiting {
        return Ok(Some(NotReady::Unfolded));
    }
    Ok((!partitions::are_counted(connection).await?).then_some(NotReady::Partitions))
}

/// The figures that the rollups have of a day, with what is not folded yet.
pub async fn totals(connection: &mut PgConnection, day: NaiveDate) -> Result<Totals, sqlx::Error> {
    sqlx::query_as(
        "SELECT COALESCE(sum(requests), 0)::bigint AS requests, COALESCE(sum(spend), 0)::float8 AS spend,
                COALESCE(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
                COALESCE(sum(completion_tokens), 0)::bigint AS completion_tokens,
                COALESCE(sum(total_tokens), 0)::bigint AS total_tokens
         FROM (SELECT requests, spend, prompt_tokens, completion_tokens, total_tokens FROM litespend.day_usage
               WHERE day = $1
               UNION ALL
               SELECT sign, spend, prompt_tokens, completion_tokens, total_tokens FROM litespend.deltas
               WHERE day = $1 AND sign <> 0) AS parts",
    )
    .bind(day)
    .fetch_one(connection)
    .await
}

/// A hash of the day's sums by team, user, key and model, and of the transactions that wrote them last: it changes with every
/// change of these columns that is folded, also if the sums stay the same.
pub async fn fingerprint(connection: &mut PgConnection, day: NaiveDate) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT COALESCE(sum(hashtextextended(d::text || d.xmin::text, 0)::numeric), 0)::text
         FROM litespend.day_usage AS d WHERE day = $1",
    )
    .bind(day)
    .fetch_one(connection)
    .await
}

/// The first difference between the rollups and the log on a day, within the caller's transaction.
pub async fn difference(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<Difference>, sqlx::Error> {
    for statement in VERIFY_LOG {
        let found = sqlx::query_as(statement).bind(day).fetch_optional(&mut *connection).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What is recorded of a day that is closed.
#[derive(Clone, Debug)]
pub struct Closing {
    /// Day, UTC.
    pub day: NaiveDate,
    /// Its figures in the rollups, the log and the archive.
    pub totals: Totals,
    /// The [`fingerprint`] of its rollups when it was exported.
    pub fingerprint: String,
    /// Revision of its manifest.
    pub revision: u32,
    /// The figures of the rows in the archive.
    pub archived: Totals,
    /// Number of buckets of its IDs.
    pub buckets: i32,
}

/// Records the day as closed. Returns false, and changes nothing, if the log changed after it was exported. Waits at most
/// two seconds for the writers of the log; when the wait is over, the error is 55P03.
pub async fn close(connection: &mut PgConnection, closing: &Closing) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '2s'").await?;
    // Whoever counts or folds at this moment is waited for, or begins again and sees the closed day.
    transaction.execute("UPDATE litespend.turn SET taken = taken + 1").await?;
    // Every writer that began before has its deltas committed now, and every later one sees the closed day.
    transaction.execute(r#"LOCK TABLE "LiteLLM_SpendLogs" IN SHARE MODE"#).await?;
    if readiness(&mut transaction, closing.day).await?.is_some()
        || !totals(&mut transaction, closing.day).await?.agrees_with(&closing.totals)
        || fingerprint(&mut transaction, closing.day).await? != closing.fingerprint
    {
        return Ok(false);
    }
    let Closing { day, totals, revision, archived, buckets, .. } = closing;
    sqlx::query("DELETE FROM litespend.incomplete_days WHERE day = $1").bind(day).execute(&mut *transaction).await?;
    sqlx::query(
        "INSERT INTO litespend.closed_days (day, requests, spend, prompt_tokens, completion_tokens, total_tokens,
             revision, archived_rows, archived_spend, archived_prompt_tokens, archived_completion_tokens,
             archived_total_tokens, buckets)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(day)
    .bind(totals.requests)
    .bind(totals.spend)
    .bind(totals.prompt_tokens)
    .bind(totals.completion_tokens)
    .bind(totals.total_tokens)
    .bind(i32::try_from(*revision).unwrap_or(i32::MAX))
    .bind(archived.requests)
    .bind(archived.spend)
    .bind(archived.prompt_tokens)
    .bind(archived.completion_tokens)
    .bind(archived.total_tokens)
    .bind(buckets)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Digests of the IDs of rows that arrived after the day was closed and are not recorded as archived, without those that
/// the log lost.
pub async fn late_ids(connection: &mut PgConnection, day: NaiveDate) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    sqlx::query_scalar("SELECT digest FROM litespend.late_ids WHERE day = $1 AND NOT is_lost")
        .bind(day)
        .fetch_all(connection)
        .await
}

/// Records that the log has lost late rows before they were archived. They go on counting. The archive does not have them:
/// should the log have them again, they are not removed from it.
pub async fn record_lost_rows(
    connection: &mut PgConnection,
    day: NaiveDate,
    digests: &[Vec<u8>],
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE litespend.late_ids SET is_lost = true WHERE day = $1 AND digest = ANY ($2)")
        .bind(day)
        .bind(digests)
        .execute(connection)
        .await
        .map(|_| ())
}

/// Finds lost late rows that the log has again, as when their partition is attached again. They are archived next.
pub async fn find_lost_rows(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"UPDATE litespend.late_ids AS late SET is_lost = false
           WHERE is_lost AND EXISTS (SELECT FROM "LiteLLM_SpendLogs" AS log
                                     WHERE log."startTime" >= late.day AND log."startTime" < late.day + 1
                                       AND substring(sha256(convert_to(log.request_id, 'UTF8')) FOR 8) = late.digest)"#,
    )
    .execute(connection)
    .await
    .map(|_| ())
}

/// Digests of the IDs of all rows that arrived after the day was closed and are not recorded as archived.
pub async fn unarchived_ids(connection: &mut PgConnection, day: NaiveDate) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    sqlx::query_scalar("SELECT digest FROM litespend.late_ids WHERE day = $1").bind(day).fetch_all(connection).await
}

/// Records that late rows of a closed day are in the archive: the revision that has them, the figures of all its rows, and
/// the digests of the late rows' IDs.
pub async fn record_late_rows(
    connection: &mut PgConnection,
    day: NaiveDate,
    revision: u32,
    archived: &Totals,
    digests: &[Vec<u8>],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query(
        "INSERT INTO litespend.closed_ids AS ids (day, bucket, digests)
         SELECT $1, litespend.id_bucket(digest, buckets), string_agg(digest, '')
         FROM unnest($2::bytea[]) AS digest, litespend.closed_days WHERE day = $1
         GROUP BY 2
         ON CONFLICT (day, bucket) DO UPDATE SET digests = ids.digests || EXCLUDED.digests",
    )
    .bind(day)
    .bind(digests)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("DELETE FROM litespend.late_ids WHERE day = $1 AND digest = ANY ($2)")
        .bind(day)
        .bind(digests)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "UPDATE litespend.closed_days SET revision = $2, archived_rows = $3, archived_spend = $4, archived_prompt_tokens = $5,
             archived_completion_tokens = $6, archived_total_tokens = $7, verified_at = now()
         WHERE day = $1",
    )
    .bind(day)
    .bind(i32::try_from(revision).unwrap_or(i32::MAX))
    .bind(archived.requests)
    .bind(archived.spend)
    .bind(archived.prompt_tokens)
    .bind(archived.completion_tokens)
    .bind(archived.total_tokens)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// Records that the archive of a day was read back and compared.
pub async fn record_verified(connection: &mut PgConnection, day: NaiveDate) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE litespend.closed_days SET verified_at = now() WHERE day = $1")
        .bind(day)
        .execute(connection)
        .await
        .map(|_| ())
}

/// The closed days with rows that arrived later and are not recorded as archived, ascending; without those of which the log
/// has lost all these rows.
pub async fn days_with_late_rows(connection: &mut PgConnection) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT DISTINCT day FROM litespend.late_ids JOIN litespend.closed_days USING (day) WHERE NOT is_lost ORDER BY day",
    )
    .fetch_all(connection)
    .await
}
