//! What was ever logged, and budgets, for Prometheus. Reads no row of the log.

mod budgets;
mod names;
pub mod remembered;

pub use crate::store::spend_metrics::budgets::{Budget, Budgets, Holder, budgets};
pub use crate::store::spend_metrics::names::{Names, key_aliases, organization_aliases, team_aliases, user_emails};

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::store::copying::{Fields, RowDecoder};
use crate::store::reading::CopyMark;

/// What a series of calls has logged: never less than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromRow)]
pub struct Logged {
    /// Number of rows.
    pub requests: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Input tokens.
    pub prompt_tokens: i64,
    /// Output tokens.
    pub completion_tokens: i64,
    /// All tokens.
    pub total_tokens: i64,
    /// What `spend` lacks because it was rounded.
    #[sqlx(default)]
    pub rounded_off: f64,
}

impl Logged {
    /// Adds what another series has logged. The order does not matter: a counter that falls by its last digit has started
    /// again for Prometheus.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        // Knuth's TwoSum: the sum and what its rounding took from it.
        let sum = self.spend + other.spend;
        let added = sum - self.spend;
        self.rounded_off += (self.spend - (sum - added)) + (other.spend - added) + other.rounded_off;
        self.spend = sum;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
    }

    /// Spend in USD, rounded once.
    pub fn total_spend(&self) -> f64 {
        self.spend + self.rounded_off
    }
}

/// Number of columns that name a series.
pub const COLUMNS: usize = 9;

/// The columns that name a series, in the sums and in `litespend.deltas`.
static NAMES: [&str; COLUMNS] = [
    "team_id",
    "user_id",
    "api_key",
    "model",
    "end_user",
    "custom_llm_provider",
    "organization_id",
    "model_group",
    "model_id",
];

/// The sums of what was ever logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// By team, user, key and model.
    Usage,
    /// By customer, provider, organisation, model group and deployment as well: many more series.
    Detail,
}

impl Sums {
    /// The table that has them.
    fn table(self) -> &'static str {
        match self {
            Self::Usage => "litespend.lifetime_usage",
            Self::Detail => "litespend.lifetime_detail",
        }
    }

    /// The columns that name their series.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Usage => NAMES.get(..4).unwrap_or_default(),
            Self::Detail => &NAMES,
        }
    }

    /// Each of [`NAMES`] as `known` writes it, or as `missing` where the sums do not have it.
    fn each_name(self, known: impl Fn(&str) -> String, missing: impl Fn(&str) -> String) -> String {
        let has = |name: &&str| self.columns().contains(name);
        NAMES.iter().map(|name| if has(name) { known(name) } else { missing(name) }).collect::<Vec<_>>().join(", ")
    }

    /// Each of its columns as `write` writes it, with `between` between them.
    fn each_column(self, write: impl Fn(&str) -> String, between: &str) -> String {
        self.columns().iter().map(|column| write(column)).collect::<Vec<_>>().join(between)
    }
}

/// A series in the order in which they came.
#[derive(Clone, Copy, Debug)]
pub struct Folded {
    /// Its place in the order.
    pub number: i64,
    /// IDs of its words: team, user, key (its SHA-256 in hex, or an alias of the master key), model, customer, provider,
    /// organisation, model group and deployment; 0 for none, and for those that its sums do not have.
    pub words: [i32; COLUMNS],
    /// What it has logged.
    pub logged: Logged,
}

/// A series that is not folded yet: it has no place in the order.
#[derive(Clone, Debug, FromRow)]
pub struct Unfolded {
    team_id: Option<String>,
    user_id: Option<String>,
    api_key: Option<String>,
    model: Option<String>,
    end_user: Option<String>,
    custom_llm_provider: Option<String>,
    organization_id: Option<String>,
    model_group: Option<String>,
    model_id: Option<String>,
    /// What it has logged.
    #[sqlx(flatten)]
    pub logged: Logged,
}

impl Unfolded {
    /// A series with these words, in the order of those of [`Folded`].
    pub fn new(words: [Option<&str>; COLUMNS], logged: Logged) -> Self {
        let [team_id, user_id, api_key, model, end_user, custom_llm_provider, organization_id, model_group, model_id] =
            words.map(|word| word.map(str::to_owned));
        Self {
            team_id,
            user_id,
            api_key,
            model,
            end_user,
            custom_llm_provider,
            organization_id,
            model_group,
            model_id,
            logged,
        }
    }

    /// Its words, in the order of those of [`Folded`].
    pub fn words(&self) -> [Option<&str>; COLUMNS] {
        [
            &self.team_id,
            &self.user_id,
            &self.api_key,
            &self.model,
            &self.end_user,
            &self.custom_llm_provider,
            &self.organization_id,
            &self.model_group,
            &self.model_id,
        ]
        .map(Option::as_deref)
    }
}

/// The sums that are wanted, if this database has them and the role of the session may read them. The rollups of an older
/// version have no [`Sums::Detail`], or none at all. There are no counters then: others would fall when the sums appear.
pub async fn kept(connection: &mut PgConnection, wanted: Sums) -> Result<Option<Sums>, sqlx::Error> {
    let (usage, detail): (bool, bool) = sqlx::query_as(
        "SELECT COALESCE(has_table_privilege(to_regclass('litespend.lifetime_usage')::oid, 'SELECT'), false),
                COALESCE(has_table_privilege(to_regclass('litespend.lifetime_detail')::oid, 'SELECT'), false)",
    )
    .fetch_one(connection)
    .await?;
    Ok(match wanted {
        Sums::Detail => detail.then_some(Sums::Detail),
        Sums::Usage => usage.then_some(Sums::Usage),
    })
}

/// Series read at once.
const PAGE: usize = 25_000;

/// What was ever logged by the series after the one with this number, at most 25,000 of them, without what is not folded.
/// The words of a page can be read before the next page is.
pub async fn folded(
    connection: (&mut PgConnection, &CopyMark),
    sums: Sums,
    after: i64,
) -> Result<Vec<Folded>, sqlx::Error> {
    chosen(connection, sums, &format!("number > {after} ORDER BY number LIMIT {PAGE}")).await
}

/// What was ever logged by the series that this condition chooses.
async fn chosen(
    (connection, mark): (&mut PgConnection, &CopyMark),
    sums: Sums,
    condition: &str,
) -> Result<Vec<Folded>, sqlx::Error> {
    let (names, table) = (sums.each_name(str::to_owned, |_| "0".to_owned()), sums.table());
    let statement = format!(
        "COPY (SELECT number, {names}, GREATEST(most_requests, requests), GREATEST(most_spend, spend)::float8,
                      GREATEST(most_prompt_tokens, prompt_tokens), GREATEST(most_completion_tokens, completion_tokens),
                      GREATEST(most_total_tokens, total_tokens)
               FROM {table} WHERE {condition}) TO STDOUT (FORMAT binary)"
    );
    let mut messages = mark.copy_out(connection, &statement).await?;
    let (mut series, mut decoder) = (Vec::new(), RowDecoder::new(FIELDS, "a series"));
    while let Some(message) = messages.try_next().await? {
        decoder.decode(&message, &mut series, row)?;
    }
    Ok(series)
}

/// Number of fields of a row: its number, its words and what it has logged.
const FIELDS: u16 = 15;

/// The series in a row. `None` if the fields are not those of a series.
fn row(fields: &mut Fields<'_>) -> Option<Folded> {
    let number = fields.long()??;
    let mut words = [0; COLUMNS];
    for word in &mut words {
        *word = fields.int()??;
    }
    Some(Folded {
        number,
        words,
        logged: Logged {
            requests: fields.long()??,
            spend: fields.float()??,
            prompt_tokens: fields.long()??,
            completion_tokens: fields.long()??,
            total_tokens: fields.long()??,
            ..Logged::default()
        },
    })
}

/// The beginning of a statement: `n` is what is not folded, by series, with the IDs of their words: what came, and that with what updates
/// changed in it. The larger of both counts, as in `litespend.add_lifetime`, so that no update makes a counter fall. A word
/// that has no ID yet (-1) belongs to a new series. The IDs are known before the join with the series: else an index might be
/// read for the team and user alone. Each is looked up by itself: with joins, the planner would expect many more rows.
fn unfolded_of(sums: Sums) -> String {
    let words = sums.each_column(|column| format!("{column} AS word_{column}"), ", ");
    let groups = sums.each_column(str::to_owned, ", ");
    let ids = sums.each_column(
        |column| {
            format!(
                "CASE WHEN word_{column} IS NULL THEN 0
                      ELSE COALESCE((SELECT id FROM litespend.words WHERE digest = litespend.digest(word_{column})), -1)
                 END AS {column}"
            )
        },
        ", ",
    );
    format!(
        "WITH unfolded AS MATERIALIZED (
             SELECT {words},
                    COALESCE(sum(sign) FILTER (WHERE is_update IS NOT TRUE), 0)::bigint AS came_requests,
                    COALESCE(sum(litespend.finite(spend)::numeric) FILTER (WHERE is_update IS NOT TRUE), 0) AS came_spend,
                    COALESCE(sum(prompt_tokens) FILTER (WHERE is_update IS NOT TRUE), 0)::bigint AS came_prompt_tokens,
                    COALESCE(sum(completion_tokens) FILTER (WHERE is_update IS NOT TRUE), 0)::bigint
                        AS came_completion_tokens,
                    COALESCE(sum(total_tokens) FILTER (WHERE is_update IS NOT TRUE), 0)::bigint AS came_total_tokens,
                    sum(sign)::bigint AS requests, COALESCE(sum(litespend.finite(spend)::numeric), 0) AS spend,
                    COALESCE(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
                    COALESCE(sum(completion_tokens), 0)::bigint AS completion_tokens,
                    COALESCE(sum(total_tokens), 0)::bigint AS total_tokens
             FROM litespend.deltas WHERE sign > 0 OR is_update GROUP BY {groups}),
         n AS MATERIALIZED (SELECT {ids}, unfolded.* FROM unfolded) "
    )
}

/// What folded series have logged with what is not folded yet, by the number of the series. Only series that have such.
pub async fn changed(connection: &mut PgConnection, sums: Sums) -> Result<FxHashMap<i64, Logged>, sqlx::Error> {
    #[derive(FromRow)]
    struct Changed {
        number: i64,
        #[sqlx(flatten)]
        logged: Logged,
    }
    let statement = format!(
        "{} SELECT l.number, GREATEST(l.most_requests, l.requests + GREATEST(n.came_requests, n.requests)) AS requests,
                GREATEST(l.most_spend, l.spend + GREATEST(n.came_spend, n.spend))::float8 AS spend,
                GREATEST(l.most_prompt_tokens, l.prompt_tokens + GREATEST(n.came_prompt_tokens, n.prompt_tokens))
                    AS prompt_tokens,
                GREATEST(l.most_completion_tokens, l.completion_tokens + GREATEST(n.came_completion_tokens, n.completion_tokens))
                    AS completion_tokens,
                GREATEST(l.most_total_tokens, l.total_tokens + GREATEST(n.came_total_tokens, n.total_tokens))
                    AS total_tokens
         FROM n JOIN {} AS l USING ({})",
        unfolded_of(sums),
        sums.table(),
        sums.each_column(str::to_owned, ", "),
    );
    let mut changed = FxHashMap::default();
    let mut rows = sqlx::query_as::<_, Changed>(AssertSqlSafe(statement)).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        changed.insert(row.number, row.logged);
    }
    Ok(changed)
}

/// What series have logged that are not folded yet. Names are cut after [`NAME_LENGTH`] characters. `each` gets every row.
pub async fn unfolded(
    connection: &mut PgConnection,
    sums: Sums,
    mut each: impl FnMut(Unfolded),
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "{} SELECT {}, GREATEST(came_requests, requests) AS requests, GREATEST(came_spend, spend)::float8 AS spend,
                GREATEST(came_prompt_tokens, prompt_tokens) AS prompt_tokens,
                GREATEST(came_completion_tokens, completion_tokens) AS completion_tokens,
                GREATEST(came_total_tokens, total_tokens) AS total_tokens
         FROM n WHERE NOT EXISTS (SELECT FROM {} AS l WHERE ({}) = ({}))",
        unfolded_of(sums),
        sums.each_name(|name| format!("left(word_{name}, $1) AS {name}"), |name| format!("NULL::text AS {name}")),
        sums.table(),
        sums.each_column(|column| format!("l.{column}"), ", "),
        sums.each_column(|column| format!("n.{column}"), ", "),
    );
    let mut rows = sqlx::query_as::<_, Unfolded>(AssertSqlSafe(statement)).bind(NAME_LENGTH).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        each(row);
    }
    Ok(())
}

/// Words by their IDs, cut after [`NAME_LENGTH`] characters.
pub async fn words(connection: &mut PgConnection, ids: &[i32]) -> Result<Vec<(i32, String)>, sqlx::Error> {
    sqlx::query_as("SELECT id, left(word, $2) FROM litespend.words WHERE id = ANY ($1)")
        .bind(ids)
        .bind(NAME_LENGTH)
        .fetch_all(connection)
        .await
}

/// The most characters of a name. Longer ones are cut: every series is in memory while metrics are written.
pub const NAME_LENGTH: i32 = 128;

/// Whether all of these tables exist.
async fn exist(connection: &mut PgConnection, tables: &[&str]) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name")
        .bind(tables)
        .fetch_one(connection)
        .await
}
