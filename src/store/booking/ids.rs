//! The IDs of booked records, in `litespend.booked_ids`. Each ID belongs to a sender. The table stores the digest of
//! the record that was sent with the ID, and the log row that the ID stands for. In a database that litespend owns, the
//! table exists from the start. In LiteLLM's database, `litespend booking install` creates the table and permits
//! booking.

use std::collections::HashSet;

use sqlx::{Connection, Executor, FromRow, PgConnection};
use uuid::Uuid;

use crate::store::database;
use crate::store::database::DatabaseKind;

/// Whether usage may be booked into a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Yes: litespend owns the database.
    Own,
    /// Yes: LiteLLM owns the database, and `litespend booking install` was run for its schema.
    Installed,
    /// No: LiteLLM owns the database, and `litespend booking install` was not run for its schema.
    NotInstalled,
}

/// Finds out whether usage may be booked into the database.
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

/// The schema for which booking is installed, and the current schema of the search path. `None` if booking is not
/// installed.
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

/// Permits booking into the schema of the search path. The schema `litespend` must be up to date. Returns false if
/// booking is already installed for another schema.
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

/// Revokes the permission to book into the schema of the search path, and deletes all IDs and new names. The schema
/// `litespend` stays. Returns false, and changes nothing, if booking is installed for another schema.
pub async fn remove(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match installed_schema(connection).await? {
        None => return Ok(true),
        Some((installed, own)) if installed != own => return Ok(false),
        Some(_) => {}
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("DELETE FROM litespend.settings WHERE name = 'booking'").await?;
    transaction.execute("TRUNCATE litespend.booked_ids, litespend.booked_names").await?;
    transaction.commit().await?;
    Ok(true)
}

/// Whether booking is installed for any schema of this database.
pub async fn is_installed(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    Ok(installed_schema(connection).await?.is_some())
}

/// Number of stored IDs, as PostgreSQL last estimated it, and the size of the table in bytes.
pub async fn size(connection: &mut PgConnection) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(
        "SELECT GREATEST(reltuples, 0)::bigint, pg_total_relation_size(oid)
         FROM pg_class WHERE oid = 'litespend.booked_ids'::regclass",
    )
    .fetch_one(connection)
    .await
}

/// An ID that a booking wants to use.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// UUID that is derived from the sender and the sender's own ID.
    pub id: Uuid,
    /// Digest of the record that was sent.
    pub digest: &'a [u8],
    /// Request ID of the log row for which it will stand.
    pub request_id: &'a str,
    /// Spend in USD.
    pub spend: f64,
}

/// Inserts the IDs that are not taken yet, and returns them. `claims` must be in the order of their IDs, with each ID
/// once. If another transaction has taken an ID and not committed yet, this call waits for it.
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

/// A stored ID and the record that it stands for.
#[derive(Clone, Debug)]
pub struct Known {
    /// UUID that is derived from the sender and the sender's own ID.
    pub id: Uuid,
    /// Digest of the first record that was sent with this ID.
    pub digest: Vec<u8>,
    /// Request ID of the log row.
    pub request_id: String,
    /// Spend in USD, as booked.
    pub spend: f64,
    /// ID of the booking attempt that stored it.
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

/// Those of these IDs that are stored.
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

/// Those of these log rows for which another booking attempt has stored an ID.
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

/// Updates stored IDs with the log rows that they finally stand for, and with the spend of those rows.
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

/// Releases IDs that this transaction has taken.
pub async fn give_back(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM litespend.booked_ids WHERE id = ANY ($1::text[]::uuid[])")
        .bind(ids.iter().map(Uuid::to_string).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes at most `most` IDs that are older than `days` days, and returns how many it deleted. Several servers can run
/// this at once.
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
