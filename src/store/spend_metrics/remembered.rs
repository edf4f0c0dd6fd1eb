//! Series that are remembered between scrapes: only those that changed are read again.
//!
//! A version of a row that one snapshot sees and an earlier one did not was written by a transaction that the earlier one
//! did not see the end of: its `xmin` is not before the oldest transaction that ran when the earlier snapshot began. A row
//! that is gone shows in the number of rows. All series are read again once an hour: a PostgreSQL that recovers from a crash
//! of one of its processes, with `synchronous_commit` off, may give the numbers of lost transactions to others.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use sqlx::{FromRow, PgConnection};

use crate::store::reading::CopyMark;
use crate::store::spend_metrics::{Folded, Sums, chosen, folded, words};

/// Maximum number of series that are remembered. More are read at each scrape.
const MOST_SERIES: i64 = 250_000;

/// Maximum number of words that are remembered.
const MOST_WORDS: usize = 250_000;

/// After so many transactions, everything is read again: numbers of transactions have 32 bits in a row.
const MOST_TRANSACTIONS: i64 = 1 << 30;

/// How long series are remembered.
const READ_AGAIN: Duration = Duration::from_secs(3600);

/// The tables that were read. A table that is created again or rewritten, another database and a restarted PostgreSQL
/// (perhaps with a restored backup) are others.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
struct Tables {
    series: i64,
    file_of_series: i64,
    words: i64,
    database: i64,
    started: String,
}

/// All series, and the words of those that were listed.
#[derive(Debug)]
pub struct RememberedSeries {
    /// Maximum number of series that are remembered.
    most: i64,
    tables: Option<Tables>,
    /// When all of them were read.
    read_at: Option<Instant>,
    /// The oldest transaction that ran when the series were read.
    oldest: i64,
    /// In the order of their numbers.
    series: Vec<Folded>,
    words: FxHashMap<i32, String>,
}

impl Default for RememberedSeries {
    fn default() -> Self {
        Self::at_most(MOST_SERIES)
    }
}

impl RememberedSeries {
    /// No series yet. If the database has more than `most` of them, none are remembered.
    pub fn at_most(most: i64) -> Self {
        Self { most, tables: None, read_at: None, oldest: 0, series: Vec::new(), words: FxHashMap::default() }
    }

    /// Forgets all series.
    fn forget(&mut self) {
        *self = Self::at_most(self.most);
    }

    /// Reads what has changed. The connection must be in a snapshot that is later than all that were read before it.
    /// Returns whether all series are remembered: there may be too many.
    pub async fn refresh(
        &mut self,
        connection: (&mut PgConnection, &CopyMark),
        sums: Sums,
    ) -> Result<bool, sqlx::Error> {
        let (connection, mark) = connection;
        let tables: Tables = sqlx::query_as(
            "SELECT c.oid::bigint AS series, pg_relation_filenode(c.oid)::bigint AS file_of_series,
                    'litespend.words'::regclass::oid::bigint AS words, d.oid::bigint AS database,
                    pg_postmaster_start_time()::text AS started
             FROM pg_class AS c, pg_database AS d
             WHERE c.oid = $1::regclass AND d.datname = current_database()",
        )
        .bind(sums.table())
        .fetch_one(&mut *connection)
        .await?;
        let oldest: i64 = sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
            .fetch_one(&mut *connection)
            .await?;
        if self.tables.as_ref() != Some(&tables) {
            self.forget();
        }
        let age = oldest - self.oldest;
        let is_recent = self.read_at.is_some_and(|read_at| read_at.elapsed() < READ_AGAIN);
        if !is_recent || !(0..MOST_TRANSACTIONS).contains(&age) {
            return self.read_all((connection, mark), sums, tables, oldest).await;
        }
        let changed = format!("age(xmin) <= age('{}'::xid)", self.oldest & 0xFFFF_FFFF);
        let (count, newer): (i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT count(*), count(*) FILTER (WHERE {changed})
             FROM (SELECT xmin FROM {} LIMIT $1 + 1) AS series",
            sums.table()
        )))
        .bind(self.most)
        .fetch_one(&mut *connection)
        .await?;
        if count > self.most {
            self.forget();
            return Ok(false);
        }
        if newer > 0 {
            let read = chosen((&mut *connection, mark), sums, &changed).await?;
            self.replace(read);
        }
        if i64::try_from(self.series.len()) != Ok(count) {
            return self.read_all((connection, mark), sums, tables, oldest).await;
        }
        self.oldest = oldest;
        Ok(true)
    }

    /// Reads all series, if they are not too many.
    async fn read_all(
        &mut self,
        (connection, mark): (&mut PgConnection, &CopyMark),
        sums: Sums,
        tables: Tables,
        oldest: i64,
    ) -> Result<bool, sqlx::Error> {
        self.forget();
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT count(*) FROM (SELECT FROM {} LIMIT $1 + 1) AS series",
            sums.table()
        )))
        .bind(self.most)
        .fetch_one(&mut *connection)
        .await?;
        if count > self.most {
            return Ok(false);
        }
        let mut series = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
        let mut after = i64::MIN;
        loop {
            let page = folded((&mut *connection, mark), sums, after).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            series.extend(page);
        }
        *self =
            Self { tables: Some(tables), read_at: Some(Instant::now()), oldest, series, ..Self::at_most(self.most) };
        Ok(true)
    }

    /// Puts series in their places.
    fn replace(&mut self, read: Vec<Folded>) {
        let known = self.series.len();
        for series in read {
            let place =
                self.series.get(..known).unwrap_or_default().binary_search_by_key(&series.number, |known| known.number);
            match place.ok().and_then(|place| self.series.get_mut(place)) {
                Some(known) => *known = series,
                None => self.series.push(series),
            }
        }
        self.series.sort_by_key(|series| series.number);
    }

    /// All series in the order of their numbers.
    pub fn series(&self) -> &[Folded] {
        &self.series
    }

    /// The words with these IDs. Those that are not remembered are read.
    pub async fn words(
        &mut self,
        connection: &mut PgConnection,
        ids: &[i32],
    ) -> Result<&FxHashMap<i32, String>, sqlx::Error> {
        let is_missing = |known: &FxHashMap<_, _>| ids.iter().copied().filter(|id| !known.contains_key(id)).collect();
        let mut missing: Vec<i32> = is_missing(&self.words);
        if self.words.len() + missing.len() > MOST_WORDS {
            self.words.clear();
            missing = is_missing(&self.words);
        }
        if !missing.is_empty() {
            self.words.extend(words(connection, &missing).await?);
        }
        Ok(&self.words)
    }
}
