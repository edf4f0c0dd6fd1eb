//! Keys and users by spend, with their sums over the whole range of days.

use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::activity::FLAT_COST_KEY;
use crate::store::activity::figures::{self, Figures};
use crate::store::activity::filter::ActivityFilter;

/// Sort order of keys: descending spend, then name. The last bits of a floating-point sum depend on the order of
/// addition. The rounding makes equal decimal amounts compare as equal, so that the name decides.
const BY_SPEND: &str = r#"
    round(sum(spend)::numeric, 9) DESC,
    CASE WHEN api_key = '' THEN 'unattributed'
         WHEN api_key = 'unattributed' OR api_key LIKE 'raw:%' THEN 'raw:' || api_key ELSE api_key END"#;

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
