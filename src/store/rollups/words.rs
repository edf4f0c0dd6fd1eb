//! The texts of the rollups' numbers, most of them kept between reads.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::FxHashMap;
use sqlx::PgConnection;
use tokio::sync::MutexGuard;

/// Texts that are kept between reads at most.
const WORDS_KEPT: usize = 200_000;

/// Their bytes at most; a text may be longer than one expects of a name.
const BYTES_KEPT: i64 = 32 << 20;

/// Bytes of the texts that one read keeps while it goes on, beside those that it is about to write.
const BYTES_KEPT_BY_READ: usize = 8 << 20;

/// Texts fetched by one statement.
const FETCHED_AT_ONCE: usize = 10_000;

/// The table's own number, and of a text its number, itself where it is short enough, and the bytes up to it.
type Row = (i64, Option<i32>, Option<String>, Option<i64>);

/// Texts by number, kept between reads. A text is kept as a JSON literal, ready to be written.
#[derive(Debug, Default)]
pub struct WordCache {
    current: Arc<RwLock<KeptWords>>,
    /// A turn for the read that brings all texts, so that several at the start do not each hold them.
    first: tokio::sync::Mutex<()>,
    /// A turn for reads of days whose texts are more than are kept.
    large: tokio::sync::Mutex<()>,
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
    bytes: i64,
    overflowed: bool,
}

impl WordCache {
    /// Reads the texts that came since the last call. Returns what is kept, and whether that is all there is: numbers
    /// are given in order and by one writer at a time, so none below the last read can come later.
    pub async fn refresh(&self, connection: &mut PgConnection) -> Result<(KeptWords, bool), sqlx::Error> {
        let first = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let is_first = first.read().unwrap_or_else(PoisonError::into_inner).last == 0;
        let _turn = if is_first { Some(self.first.lock().await) } else { None };
        loop {
            let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
            let (table, last, bytes, overflowed) = {
                let kept = current.read().unwrap_or_else(PoisonError::into_inner);
                (kept.table, kept.last, kept.bytes, kept.overflowed)
            };
            // The table's own number says whether it is still the one whose texts are kept. Texts that would be too
            // many or too long are not even sent.
            let found: Vec<Row> = sqlx::query_as(
                "SELECT 'litespend.words'::regclass::oid::bigint, id, CASE WHEN bytes <= $3 THEN word END, bytes
                 FROM (SELECT) AS one LEFT JOIN (
                     SELECT id, word, sum(octet_length(word)) OVER (ORDER BY id) AS bytes
                     FROM (SELECT id, word FROM litespend.words WHERE id > $1 ORDER BY id LIMIT $2) AS next
                 ) AS summed ON true ORDER BY id",
            )
            .bind(if overflowed { i32::MAX } else { last })
            .bind(i64::try_from(WORDS_KEPT).unwrap_or(i64::MAX))
            .bind(BYTES_KEPT - bytes)
            .fetch_all(&mut *connection)
            .await?;
            let found_table = found.first().map_or(0, |(table, ..)| *table);
            if found_table != table {
                let next = Arc::new(RwLock::new(Kept { table: found_table, ..Kept::default() }));
                self.replace(next);
                continue;
            }
            let read = found.last().and_then(|(_, _, _, bytes)| *bytes).unwrap_or(0);
            let words: Vec<_> = found.into_iter().filter_map(|(_, id, word, _)| Some((id?, word))).collect();
            if overflowed || words.is_empty() {
                return Ok((current, !overflowed));
            }
            let mut kept = current.write().unwrap_or_else(PoisonError::into_inner);
            if kept.texts.len() + words.len() >= WORDS_KEPT || bytes + read > BYTES_KEPT {
                drop(kept);
                // Reads that have begun with what is kept go on with it: it is left to them as it is.
                let next = Arc::new(RwLock::new(Kept { table, overflowed: true, ..Kept::default() }));
                self.replace(Arc::clone(&next));
                return Ok((next, false));
            }
            for (id, word) in words {
                // Two reads may bring the same texts.
                let Some(word) = word else { continue };
                kept.last = kept.last.max(id);
                if let Vacant(place) = kept.texts.entry(id) {
                    let text = literal(&word);
                    let length = i64::try_from(word.len()).unwrap_or(i64::MAX);
                    place.insert(text);
                    kept.bytes = kept.bytes.saturating_add(length);
                }
            }
            drop(kept);
            return Ok((current, true));
        }
    }

    /// A turn for a read whose texts are not kept, to be held while it holds them itself.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.large.lock().await
    }

    fn replace(&self, next: KeptWords) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
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
    /// Bytes of the texts that only this read has.
    bytes: usize,
    /// Numbers whose texts are still to be written, whatever is let go.
    held: [i32; 3],
}

impl Words {
    /// With what earlier reads kept.
    pub fn new(kept: KeptWords) -> Self {
        let texts = FxHashMap::from_iter([(0, Arc::from("null"))]);
        Self { kept, local: HashMap::new(), texts, bytes: 0, held: [0; 3] }
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
        for some in missing.chunks(FETCHED_AT_ONCE) {
            let found: Vec<(i32, String)> = sqlx::query_as("SELECT id, word FROM litespend.words WHERE id = ANY ($1)")
                .bind(some)
                .fetch_all(&mut *connection)
                .await?;
            for (id, word) in found {
                self.bytes += word.len();
                self.texts.insert(id, literal(&word));
            }
        }
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
        Self {
            kept: Arc::clone(&self.kept),
            local: HashMap::new(),
            texts: FxHashMap::default(),
            bytes: 0,
            held: [0; 3],
        }
    }

    /// Takes the texts of a fork.
    pub fn join(&mut self, fork: Self) {
        self.bytes += fork.bytes;
        self.texts.extend(fork.texts);
    }

    /// Keeps the texts of these numbers until others are held.
    pub fn hold(&mut self, numbers: [i32; 3]) {
        self.held = numbers;
    }

    /// Lets go of texts once there are very many; those of this read's own numbers stay, and those that are held.
    pub fn trim(&mut self) {
        if self.texts.len() > WORDS_KEPT || self.bytes > BYTES_KEPT_BY_READ {
            let held = self.held;
            self.texts.retain(|number, _| *number <= 0 || held.contains(number));
            self.texts.shrink_to_fit();
            self.bytes = 0;
        }
    }
}

fn literal(text: &str) -> Arc<str> {
    Arc::from(serde_json::Value::from(text).to_string())
}
