//! Limits new names (models, customers, tags). Each new name stays in the dictionary of the rollups, `litespend.words`,
//! for ever, so the number that a sender may introduce per day is bounded. `litespend.booked_names` holds the new names
//! of today and yesterday. Older ones are in the dictionary by then.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;

/// Waits until no other booking is counting new names of these senders. `senders` must be in the order of their bytes.
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

/// Those of these names that were never used before.
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

/// Number of new names that each of these senders introduced today.
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

/// Records new names, with their senders, as introduced today.
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

/// Deletes at most `most` names of days before yesterday, and returns how many it deleted. Several servers can run this
/// at once.
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
