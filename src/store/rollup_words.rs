//! The texts of the rollups' numbers, most of them kept between reads.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use sqlx::PgConnection;

/// Texts that are kept between reads at most.
const WORDS_KEPT: usize = 200_000;

/// Texts by number, kept between reads. A text is kept as a JSON literal, ready to be written.
#[derive(Clone, Debug, Default)]
pub struct WordCache {
    current: Arc<RwLock<KeptWords>>,
}

/// The texts of one table. When the rollups are removed and installed again, the numbers begin anew: the new table's
/// texts are kept apart, and a read that has begun goes on with those that it has.
pub type KeptWords = Arc<RwLock<Kept>>;

/// Texts and how far they were read.
#[derive(Debug, Default)]
pub struct Kept {
    texts: FxHashMap<i32, Arc<str>>,
    table: i64,
    last: i32,
    overflowed: bool,
}

impl WordCache {
    /// Reads the texts that came since the last call. Returns what is kept, and whether that is all there is: numbers
    /// are given in order and by one writer at a time, so none below the last read can come later.
    pub async fn refresh(&self, connection: &mut PgConnection) -> Result<(KeptWords, bool), sqlx::Error> {
        loop {
            let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
            let (table, last, overflowed) = {
                let kept = current.read().unwrap_or_else(PoisonError::into_inner);
                (kept.table, kept.last, kept.overflowed)
            };
            // The table's own number says whether it is still the one whose texts are kept.
            let found: Vec<(i64, Option<i32>, Option<String>)> = sqlx::query_as(
                "SELECT 'litespend.words'::regclass::oid::bigint, id, word
                 FROM (SELECT) AS one LEFT JOIN litespend.words ON id > $1 ORDER BY id LIMIT $2",
            )
            .bind(if overflowed { i32::MAX } else { last })
            .bind(i64::try_from(WORDS_KEPT).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
            let found_table = found.first().map_or(0, |(table, ..)| *table);
            if found_table != table {
                let next = Arc::new(RwLock::new(Kept { table: found_table, ..Kept::default() }));
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
                continue;
            }
            let words: Vec<_> = found.into_iter().filter_map(|(_, id, word)| Some((id?, word?))).collect();
            if overflowed || words.is_empty() {
                return Ok((current, !overflowed));
            }
            let mut kept = current.write().unwrap_or_else(PoisonError::into_inner);
            let complete = kept.texts.len() + words.len() < WORDS_KEPT;
            if complete {
                for (id, word) in words {
                    kept.last = kept.last.max(id);
                    kept.texts.insert(id, literal(&word));
                }
            } else {
                kept.overflowed = true;
                kept.texts = FxHashMap::default();
            }
            drop(kept);
            return Ok((current, complete));
        }
    }

    /// Forgets everything: the rollups were removed.
    pub fn clear(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = KeptWords::default();
    }
}

/// The texts of one read.
#[derive(Debug)]
pub struct Words {
    kept: KeptWords,
    /// Numbers given in this read to texts that have none yet: negative.
    local: HashMap<String, i32>,
    texts: FxHashMap<i32, Arc<str>>,
}

impl Words {
    /// With what earlier reads kept.
    pub fn new(kept: KeptWords) -> Self {
        Self { kept, local: HashMap::new(), texts: FxHashMap::from_iter([(0, Arc::from("null"))]) }
    }

    /// The number of a text: its own, or one of this read.
    pub(super) fn number(&mut self, id: Option<i32>, text: Option<String>) -> i32 {
        match (id, text) {
            (_, None) => 0,
            (Some(id), Some(_)) => id,
            (None, Some(text)) => {
                let next = -1 - i32::try_from(self.local.len()).unwrap_or(i32::MAX - 1);
                let texts = &mut self.texts;
                *self.local.entry(text).or_insert_with_key(|text| {
                    texts.insert(next, literal(text));
                    next
                })
            }
        }
    }

    /// Takes the texts of these numbers out of what earlier reads kept; returns the numbers that were not there.
    pub fn take_kept(&mut self, numbers: impl Iterator<Item = i32>) -> Vec<i32> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let mut missing = Vec::new();
        for number in numbers {
            if let Vacant(place) = self.texts.entry(number) {
                match kept.texts.get(&number) {
                    Some(text) => drop(place.insert(Arc::clone(text))),
                    None => missing.push(number),
                }
            }
        }
        missing
    }

    /// Reads the texts of these numbers.
    pub async fn fetch(&mut self, connection: &mut PgConnection, mut missing: Vec<i32>) -> Result<(), sqlx::Error> {
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let found: Vec<(i32, String)> = sqlx::query_as("SELECT id, word FROM litespend.words WHERE id = ANY ($1)")
            .bind(&missing)
            .fetch_all(connection)
            .await?;
        self.texts.extend(found.into_iter().map(|(id, word)| (id, literal(&word))));
        Ok(())
    }

    /// The text of a number as a JSON literal; `null` for none.
    pub fn json(&self, number: i32) -> &str {
        self.texts.get(&number).map_or("null", AsRef::as_ref)
    }

    /// As [`Words::json`], to be kept.
    pub fn shared(&self, number: i32) -> Arc<str> {
        self.texts.get(&number).map_or_else(|| Arc::from("null"), Arc::clone)
    }

    /// An empty set of texts on the same cache, to be filled elsewhere and joined.
    pub fn fork(&self) -> Self {
        Self { kept: Arc::clone(&self.kept), local: HashMap::new(), texts: FxHashMap::default() }
    }

    /// Takes the texts of a fork.
    pub fn join(&mut self, fork: Self) {
        self.texts.extend(fork.texts);
    }

    /// Lets go of texts once there are very many; those of this read's own numbers stay.
    pub fn trim(&mut self) {
        if self.texts.len() > WORDS_KEPT {
            self.texts.retain(|number, _| *number <= 0);
        }
    }
}

fn literal(text: &str) -> Arc<str> {
    Arc::from(serde_json::Value::from(text).to_string())
}
