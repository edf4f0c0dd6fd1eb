//! The sums of a day as the rollups have them, for a comparison outside the database.

use chrono::NaiveDate;
use sqlx::PgConnection;

use crate::store::copying::{CopiedRows, Fields, literal};

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

    /// The columns and the table of its groups: the words that name a group, its requests, its spend, and the tokens that
    /// it has.
    fn groups(self) -> &'static str {
        match self {
            Self::Usage => {
                "team_id, user_id, api_key, model, requests, spend, total_tokens, prompt_tokens, completion_tokens
                 FROM litespend.day_usage"
            }
            Self::Customer => {
                "end_user, team_id, api_key, model, requests, spend, total_tokens FROM litespend.day_customer"
            }
            Self::Tag => "tag, log_count, spend FROM litespend.day_tag",
            Self::TagOwner => "tag, team_id, user_id, log_count, spend FROM litespend.day_tag_owner",
        }
    }

    /// Number of words that name a group.
    fn words(self) -> usize {
        match self {
            Self::Usage | Self::Customer => 4,
            Self::Tag => 1,
            Self::TagOwner => 3,
        }
    }

    /// Number of columns of [`groups`](Self::groups).
    fn columns(self) -> u16 {
        match self {
            Self::Usage => 9,
            Self::Customer => 7,
            Self::Tag => 3,
            Self::TagOwner => 5,
        }
    }
}

/// The sums of one group of a rollup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Group {
    /// IDs of the words that name the group, in the order that [`Rollup`] says. No word has the ID 0: it stands for null,
    /// and fills the places that the rollup does not have.
    pub words: [i32; 4],
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

/// The groups of a day that have requests, without what is not folded yet. `None` if they are more than `most`. Belongs into
/// a transaction.
pub async fn groups(
    connection: &mut PgConnection,
    rollup: Rollup,
    day: NaiveDate,
    most: usize,
) -> Result<Option<Vec<Group>>, sqlx::Error> {
    let select = format!("SELECT {} WHERE day = {}", rollup.groups(), literal(day));
    let mut rows = CopiedRows::start(connection, &select).await?;
    let mut found = Vec::new();
    while found.len() <= most
        && let Some(row) = rows.next().await?
    {
        let Some(group) = group(rollup, &row) else {
            rows.skip_rest().await?;
            return Err(sqlx::Error::Protocol("COPY: not a group of the rollup".into()));
        };
        if group.requests != 0 {
            found.push(group);
        }
    }
    rows.skip_rest().await?;
    Ok((found.len() <= most).then_some(found))
}

fn group(rollup: Rollup, row: &[u8]) -> Option<Group> {
    let mut fields = Fields::of(row, rollup.columns())?;
    let mut group = Group::default();
    for word in group.words.iter_mut().take(rollup.words()) {
        *word = fields.int()??;
    }
    group.requests = fields.long()??;
    group.spend = fields.float()??;
    if matches!(rollup, Rollup::Usage | Rollup::Customer) {
        group.total_tokens = fields.long()??;
    }
    if rollup == Rollup::Usage {
        group.prompt_tokens = fields.long()??;
        group.completion_tokens = fields.long()??;
    }
    fields.is_at_end().then_some(group)
}

/// The words with these IDs.
pub async fn words(connection: &mut PgConnection, ids: &[i32]) -> Result<Vec<(i32, String)>, sqlx::Error> {
    sqlx::query_as("SELECT id, word FROM litespend.words WHERE id = ANY ($1)").bind(ids).fetch_all(connection).await
}
