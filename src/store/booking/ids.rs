//! The ids of booked records, `litespend.booked_ids`: whose they are, what was sent under them, and which row of the log
//! they stand for. A database of our own has the table from the start; LiteLLM's gets it, and the leave to use it, by
//! `litespend booking install`.

use std::collections::HashSet;

use sqlx::{Connection, Executor, FromRow, PgConnection};
use uuid::Uuid;

use crate::store::database;
use crate::store::database::DatabaseKind;

/// Whether and how a database can be booked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is ours.
    Own,
    /// It is LiteLLM's, and `litespend booking install` was run for its schema.
    Installed,
    /// It is LiteLLM's, and nobody said that it may be booked into.
    NotInstalled,
}

/// Whether the database can be booked into.
pub async fn access(connection: &mut PgConnection) -> Result<Access, sqlx::Error> {
    if database::kind(connection).await? == DatabaseKind::Own {
        return Ok(Access::Own);
    }
    Ok(if installed_schema(connection).await?.is_some_and(|(installed, own)| installed == own) {
        Access::Installed
    } else {
        Access::NotInstalled
    })
}

/// The schema of the LiteLLM that may be booked into, with that of the search path.
async fn installed_schema(connection: &mut PgConnection) -> Result<Option<(String, String)>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar(
        "SELECT to_regclass('litespend.settings') IS NOT NULL AND to_regclass('litespend.booked_ids') IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_as("SELECT value ->> 'schema', current_schema()::text FROM litespend.settings WHERE name = 'booking'")
        .fetch_optional(connection)
        .await
}

/// Lets the search path's schema be booked into; the schema `litespend` is up to date. False where it is another schema's.
pub async fn install(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "WITH made AS (
             INSERT INTO litespend.settings (name, value)
             VALUES ('booking', jsonb_build_object('schema', current_schema()))
             ON CONFLICT (name) DO UPDATE SET value = settings.value
             RETURNING value ->> 'schema' AS schema)
         SELECT schema = current_schema() FROM made",
    )
    .fetch_one(connection)
    .await
}

/// Ends booking and forgets all ids; where nothing else of ours is left in the database, the schema goes as well.
pub async fn remove(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    if installed_schema(connection).await?.is_none() {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("DELETE FROM litespend.settings WHERE name = 'booking'").await?;
    transaction.execute("TRUNCATE litespend.booked_ids, litespend.booked_names").await?;
    transaction.commit().await
}

/// Whether booking is installed for any schema of this database.
pub async fn is_installed(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    Ok(installed_schema(connection).await?.is_some())
}

/// How many ids are remembered, as far as PostgreSQL has counted them, and the bytes that they take.
pub async fn size(connection: &mut PgConnection) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(
        "SELECT GREATEST(reltuples, 0)::bigint, pg_total_relation_size(oid)
         FROM pg_class WHERE oid = 'litespend.booked_ids'::regclass",
    )
    .fetch_one(connection)
    .await
}

/// An id to be booked under.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// Of sender and id.
    pub id: Uuid,
    /// Of what was sent.
    pub digest: &'a [u8],
    /// The row that it shall stand for.
    pub request_id: &'a str,
    /// USD.
    pub spend: f64,
}

/// Takes the ids that are free, and returns them. `claims` come in the order of their ids, each once; one that another
/// transaction has taken and not yet committed is waited for.
pub async fn claim(
    connection: &mut PgConnection,
    claims: &[Claim<'_>],
    booking: Uuid,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let taken: Vec<String> = sqlx::query_scalar(
        "INSERT INTO litespend.booked_ids AS b (id, booked_on, digest, request_id, spend, booking)
         SELECT new.id::uuid, (now() AT TIME ZONE 'UTC')::date, new.digest, new.request_id, new.spend, $5::text::uuid
         FROM unnest($1::text[], $2::bytea[], $3::text[], $4::float8[]) AS new (id, digest, request_id, spend)
         ON CONFLICT (id) DO NOTHING
         RETURNING b.id::text",
    )
    .bind(claims.iter().map(|claim| claim.id.to_string()).collect::<Vec<_>>())
    .bind(claims.iter().map(|claim| claim.digest).collect::<Vec<_>>())
    .bind(claims.iter().map(|claim| claim.request_id).collect::<Vec<_>>())
    .bind(claims.iter().map(|claim| claim.spend).collect::<Vec<_>>())
    .bind(booking.to_string())
    .fetch_all(connection)
    .await?;
    Ok(taken.iter().filter_map(|id| id.parse().ok()).collect())
}

/// What an id stands for.
#[derive(Clone, Debug)]
pub struct Known {
    /// Of sender and id.
    pub id: Uuid,
    /// Of what was sent under it first.
    pub digest: Vec<u8>,
    /// The row of the log.
    pub request_id: String,
    /// USD as booked.
    pub spend: f64,
    /// The attempt that booked it.
    pub booking: Uuid,
}

#[derive(FromRow)]
struct KnownRow {
    id: String,
    digest: Vec<u8>,
    request_id: String,
    spend: f64,
    booking: String,
}

/// The ids among these that stand for something.
pub async fn known(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Known>, sqlx::Error> {
    let rows: Vec<KnownRow> = sqlx::query_as(
        "SELECT id::text, digest, request_id, spend, booking::text FROM litespend.booked_ids
         WHERE id = ANY ($1::text[]::uuid[])",
    )
    .bind(ids.iter().map(Uuid::to_string).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let known = |row: KnownRow| {
        let (id, booking) = (row.id.parse().ok()?, row.booking.parse().ok()?);
        Some(Known { id, digest: row.digest, request_id: row.request_id, spend: row.spend, booking })
    };
    Ok(rows.into_iter().filter_map(known).collect())
}

/// Those of these rows of the log that were booked under an id by another attempt than this one.
pub async fn booked_by_others(
    connection: &mut PgConnection,
    request_ids: &[&str],
    booking: Uuid,
) -> Result<HashSet<String>, sqlx::Error> {
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT request_id FROM litespend.booked_ids WHERE request_id = ANY ($1) AND booking <> $2::text::uuid",
    )
    .bind(request_ids)
    .bind(booking.to_string())
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Says which rows ids stand for after all, and what those cost.
pub async fn settle(connection: &mut PgConnection, settled: &[(Uuid, &str, f64)]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE litespend.booked_ids AS b SET request_id = new.request_id, spend = new.spend
         FROM unnest($1::text[], $2::text[], $3::float8[]) AS new (id, request_id, spend) WHERE b.id = new.id::uuid",
    )
    .bind(settled.iter().map(|(id, ..)| id.to_string()).collect::<Vec<_>>())
    .bind(settled.iter().map(|(_, request_id, _)| *request_id).collect::<Vec<_>>())
    .bind(settled.iter().map(|(.., spend)| *spend).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives ids back that this transaction has taken.
pub async fn give_back(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM litespend.booked_ids WHERE id = ANY ($1::text[]::uuid[])")
        .bind(ids.iter().map(Uuid::to_string).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

/// Forgets at most `most` ids that are older than so many days; returns how many. Several servers may do it at once.
pub async fn forget_old(connection: &mut PgConnection, days: u32, most: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM litespend.booked_ids WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM litespend.booked_ids WHERE booked_on < (now() AT TIME ZONE 'UTC')::date - $1::int
             ORDER BY booked_on LIMIT $2 FOR UPDATE SKIP LOCKED))",
    )
    .bind(i32::try_from(days).unwrap_or(i32::MAX))
    .bind(most)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
