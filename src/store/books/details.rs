//! What a closed day needs beside the day tables: digests of its request IDs, sums by user and model, the calls that started
//! at midnight, and the names of its keys.

use chrono::{NaiveDate, NaiveDateTime};
use sqlx::PgConnection;

/// Number of buckets for the IDs of a day.
pub fn buckets(rows: i64) -> i32 {
    i32::try_from(rows / 500 + 1).unwrap_or(i32::MAX).min(1 << 20)
}

/// The names that the first or the last row of a key on a day gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyNames {
    /// Start of the row's call.
    pub start_time: NaiveDateTime,
    /// Alias of the key.
    pub alias: Option<String>,
    /// Team ID.
    pub team: Option<String>,
    /// User ID of the owner.
    pub owner: Option<String>,
}

/// Names of a key: its hash, whether they are those of the day's first row that has any (or else of the last), and the
/// names.
pub type NamedKey = (String, bool, KeyNames);

/// The sums of a day's rows by user, model group and model ID.
#[derive(Clone, Copy, Debug)]
pub struct ActivityGroup<'a> {
    /// User ID.
    pub user: Option<&'a str>,
    /// Model group.
    pub model_group: Option<&'a str>,
    /// Model ID.
    pub model_id: Option<&'a str>,
    /// Number of requests.
    pub requests: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Prompt and completion tokens.
    pub total_tokens: i64,
}

/// Digests of the request IDs of a day that fall into one bucket, one after the other, as `litespend.id_bucket` and
/// `litespend.id_digest` say.
#[derive(Clone, Debug)]
pub struct BucketOfIds {
    /// Number of the bucket.
    pub bucket: i32,
    /// The digests, eight bytes each.
    pub digests: Vec<u8>,
}

/// What the rows of a day gave while they were exported.
#[derive(Debug)]
pub struct Details<'a> {
    /// The IDs. `None`: they are read from the log.
    pub ids: Option<Vec<BucketOfIds>>,
    /// The sums by user and model. `None`: they are read from the log.
    pub activity: Option<Vec<ActivityGroup<'a>>>,
    /// The names of keys.
    pub names: &'a [NamedKey],
}

/// Stores what a closed day needs beside the day tables. Belongs into the transaction of the export. Has no effect while
/// the day is not closed.
pub async fn store_details(
    connection: &mut PgConnection,
    day: NaiveDate,
    buckets: i32,
    details: &Details<'_>,
) -> Result<(), sqlx::Error> {
    delete_details(&mut *connection, day).await?;
    store_ids(connection, day, buckets, details.ids.as_deref()).await?;
    store_activity(connection, day, details.activity.as_deref()).await?;
    sqlx::query(
        r#"INSERT INTO litespend.closed_midnights
           SELECT $1, team_id, "user", api_key, model, end_user, count(*), sum(spend), sum(prompt_tokens),
                  sum(completion_tokens), sum(total_tokens)
           FROM "LiteLLM_SpendLogs" WHERE "startTime" = $1 GROUP BY 2, 3, 4, 5, 6"#,
    )
    .bind(day)
    .execute(&mut *connection)
    .await?;
    store_key_names(connection, day, details.names).await
}

async fn store_ids(
    connection: &mut PgConnection,
    day: NaiveDate,
    buckets: i32,
    ids: Option<&[BucketOfIds]>,
) -> Result<(), sqlx::Error> {
    let Some(ids) = ids else {
        sqlx::query(
            r#"INSERT INTO litespend.closed_ids (day, bucket, digests)
               SELECT $1, litespend.id_bucket(digest, $2), string_agg(digest, '')
               FROM (SELECT substring(sha256(convert_to(request_id, 'UTF8')) FOR 8) AS digest FROM "LiteLLM_SpendLogs"
                     WHERE "startTime" >= $1 AND "startTime" < $1 + 1) AS ids
               GROUP BY 2"#,
        )
        .bind(day)
        .bind(buckets)
        .execute(connection)
        .await?;
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO litespend.closed_ids (day, bucket, digests) SELECT $1, ids.* FROM unnest($2::int[], $3::bytea[]) AS ids",
    )
    .bind(day)
    .bind(ids.iter().map(|ids| ids.bucket).collect::<Vec<_>>())
    .bind(ids.iter().map(|ids| ids.digests.as_slice()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn store_activity(
    connection: &mut PgConnection,
    day: NaiveDate,
    groups: Option<&[ActivityGroup<'_>]>,
) -> Result<(), sqlx::Error> {
    let Some(groups) = groups else {
        sqlx::query(
            r#"INSERT INTO litespend.closed_activity (day, user_id, model_group, model_id, requests, spend, total_tokens)
               SELECT $1, log."user", log.model_group, log.model_id, count(*), sum(log.spend), sum(log.total_tokens)
               FROM (SELECT NULL::text AS model_id) AS defaults
               CROSS JOIN LATERAL (SELECT "user", model_group, model_id, spend, total_tokens FROM "LiteLLM_SpendLogs"
                                   WHERE "startTime" >= $1 AND "startTime" < $1 + 1) AS log
               GROUP BY 2, 3, 4"#,
        )
        .bind(day)
        .execute(connection)
        .await?;
        return Ok(());
    };
    macro_rules! column {
        ($field:ident) => {
            groups.iter().map(|group| group.$field).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "INSERT INTO litespend.closed_activity (day, user_id, model_group, model_id, requests, spend, total_tokens)
         SELECT $1, groups.*
         FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::float8[], $7::bigint[]) AS groups",
    )
    .bind(day)
    .bind(column!(user))
    .bind(column!(model_group))
    .bind(column!(model_id))
    .bind(column!(requests))
    .bind(column!(spend))
    .bind(column!(total_tokens))
    .execute(connection)
    .await?;
    Ok(())
}

async fn store_key_names(connection: &mut PgConnection, day: NaiveDate, names: &[NamedKey]) -> Result<(), sqlx::Error> {
    macro_rules! column {
        ($take:expr) => {
            names.iter().map($take).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        r#"INSERT INTO litespend.closed_key_names (day, api_key, is_first, "startTime", alias, team, owner)
           SELECT $1, names.* FROM unnest($2::text[], $3::bool[], $4::timestamp[], $5::text[], $6::text[], $7::text[]) AS names"#,
    )
    .bind(day)
    .bind(column!(|(key, ..)| key.as_str()))
    .bind(column!(|(_, is_first, _)| *is_first))
    .bind(column!(|(.., names)| names.start_time))
    .bind(column!(|(.., names)| names.alias.as_deref()))
    .bind(column!(|(.., names)| names.team.as_deref()))
    .bind(column!(|(.., names)| names.owner.as_deref()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes what is stored of a day beside the day tables.
pub(super) async fn delete_details(connection: &mut PgConnection, day: NaiveDate) -> Result<(), sqlx::Error> {
    for statement in [
        "DELETE FROM litespend.closed_ids WHERE day = $1",
        "DELETE FROM litespend.late_ids WHERE day = $1",
        "DELETE FROM litespend.moved_ids WHERE day = $1",
        "DELETE FROM litespend.closed_activity WHERE day = $1",
        "DELETE FROM litespend.closed_midnights WHERE day = $1",
        "DELETE FROM litespend.closed_key_names WHERE day = $1",
        "DELETE FROM litespend.adjustments WHERE day = $1",
        "DELETE FROM litespend.incomplete_days WHERE day = $1",
    ] {
        sqlx::query(statement).bind(day).execute(&mut *connection).await?;
    }
    Ok(())
}
