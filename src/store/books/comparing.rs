//! The sums of a day as the rollups have them, for a comparison outside the database.

use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use sqlx::{FromRow, PgConnection};

/// A rollup of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollup {
    /// By team, user, key and model.
    Usage,
    /// By customer, team, key and model.
    Customer,
    /// By tag.
    Tag,
    /// By tag, team and user.
    TagOwner,
}

impl Rollup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Usage, Self::Customer, Self::Tag, Self::TagOwner];

    fn statement(self) -> &'static str {
        match self {
            Self::Usage => {
                "SELECT ARRAY[team_id, user_id, api_key, model] AS words, requests, spend, prompt_tokens,
                        completion_tokens, total_tokens
                 FROM litespend.day_usage WHERE day = $1"
            }
            Self::Customer => {
                "SELECT ARRAY[end_user, team_id, api_key, model] AS words, requests, spend, 0::bigint AS prompt_tokens,
                        0::bigint AS completion_tokens, total_tokens
                 FROM litespend.day_customer WHERE day = $1"
            }
            Self::Tag => {
                "SELECT ARRAY[tag] AS words, log_count AS requests, spend, 0::bigint AS prompt_tokens,
                        0::bigint AS completion_tokens, 0::bigint AS total_tokens
                 FROM litespend.day_tag WHERE day = $1"
            }
            Self::TagOwner => {
                "SELECT ARRAY[tag, team_id, user_id] AS words, log_count AS requests, spend, 0::bigint AS prompt_tokens,
                        0::bigint AS completion_tokens, 0::bigint AS total_tokens
                 FROM litespend.day_tag_owner WHERE day = $1"
            }
        }
    }
}

/// The sums of one group of a rollup.
#[derive(Clone, Debug, FromRow)]
pub struct Group {
    /// IDs of the words that name the group, in the order that [`Rollup`] says. No word has the ID of null.
    pub words: Vec<i32>,
    /// Number of requests.
    pub requests: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Prompt tokens. 0 where the rollup has none.
    pub prompt_tokens: i64,
    /// Completion tokens. 0 where the rollup has none.
    pub completion_tokens: i64,
    /// Prompt and completion tokens. 0 where the rollup has none.
    pub total_tokens: i64,
}

/// Streams the groups of a day, without what is not folded yet.
pub fn groups(
    connection: &mut PgConnection,
    rollup: Rollup,
    day: NaiveDate,
) -> BoxStream<'_, Result<Group, sqlx::Error>> {
    sqlx::query_as(rollup.statement()).bind(day).fetch(connection)
}

/// The words with these IDs.
pub async fn words(connection: &mut PgConnection, ids: &[i32]) -> Result<Vec<(i32, String)>, sqlx::Error> {
    sqlx::query_as("SELECT id, word FROM litespend.words WHERE id = ANY ($1)").bind(ids).fetch_all(connection).await
}
