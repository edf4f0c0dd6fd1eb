//! Names that nobody used before (models, customers, tags): each is a word of the rollups for ever, so that how many a
//! sender may bring is bounded by day. `litespend.booked_names` holds those of today and yesterday; older ones are words
//! by then.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;

/// Waits until no other booking counts the new names of these senders, which come in the order of their bytes.
pub async fn lock(connection: &mut PgConnection, senders: &[&str]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT pg_advisory_xact_lock(hashtextextended('litespend.booked_names ' || sender, 0))
         FROM unnest($1::text[]) AS sender",
    )
    .bind(senders)
    .execute(connection)
    .await?;
    Ok(())
}

/// Those of these names that nobody used before.
pub async fn new_ones(connection: &mut PgConnection, names: &[&str]) -> Result<HashSet<String>, sqlx::Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM unnest($1::text[]) AS name
         WHERE NOT EXISTS (SELECT FROM litespend.words w WHERE w.digest = litespend.digest(name))
           AND NOT EXISTS (SELECT FROM litespend.booked_names b WHERE b.digest = litespend.digest(name))",
    )
    .bind(names)
    .fetch_all(connection)
    .await?;
    Ok(names.into_iter().collect())
}

/// How many new names these senders have brought today.
pub async fn brought_today(
    connection: &mut PgConnection,
    senders: &[&str],
) -> Result<HashMap<String, i64>, sqlx::Error> {
    let counts: Vec<(String, i64)> = sqlx::query_as(
        "SELECT sender, count(*) FROM litespend.booked_names
         WHERE day = (now() AT TIME ZONE 'UTC')::date AND sender = ANY ($1) GROUP BY sender",
    )
    .bind(senders)
    .fetch_all(connection)
    .await?;
    Ok(counts.into_iter().collect())
}

/// Counts new names as brought today.
pub async fn add(connection: &mut PgConnection, names: &[(&str, &str)]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO litespend.booked_names (digest, day, sender)
         SELECT litespend.digest(new.name), (now() AT TIME ZONE 'UTC')::date, new.sender
         FROM unnest($1::text[], $2::text[]) AS new (name, sender)
         ORDER BY 1
         ON CONFLICT (digest) DO NOTHING",
    )
    .bind(names.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    .bind(names.iter().map(|(_, sender)| *sender).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets at most `most` names of days before yesterday; returns how many. Several servers may do it at once.
pub async fn forget_old(connection: &mut PgConnection, most: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM litespend.booked_names WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM litespend.booked_names WHERE day < (now() AT TIME ZONE 'UTC')::date - 1
             ORDER BY day LIMIT $1 FOR UPDATE SKIP LOCKED))",
    )
    .bind(most)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
