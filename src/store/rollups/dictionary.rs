//! The string dictionary of the rollups. The day tables store strings (keys, users, teams, models, customers, tags) as
//! integers; `litespend.words` maps each integer, the string's ID, to the string. Most of the dictionary is cached
//! between reads.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use sqlx::PgConnection;
use tokio::sync::MutexGuard;

/// Maximum number of strings that are cached between reads.
const MAX_CACHED_STRINGS: usize = 200_000;

/// Maximum number of bytes of these strings. The limit is needed because a string can be much longer than a typical
/// name.
const MAX_CACHED_BYTES: i64 = 32 << 20;

/// Number of strings, and of their bytes, that a read adds to the cache while others may do the same.
const FEW_STRINGS: usize = 1_000;
const FEW_BYTES: i64 = 1 << 20;

/// Maximum number of bytes of strings that one read keeps while it runs, in addition to the strings that it is about to
/// write.
const MAX_BYTES_OF_READ: usize = 8 << 20;

/// Number of strings fetched by one statement.
const FETCHED_AT_ONCE: usize = 10_000;

/// A row of the query in [`DictionaryCache::refresh`]: the table's OID, the string's ID, the string itself if it fits into
/// the remaining byte budget, and the cumulative number of bytes up to and including it.
type Row = (i64, Option<i32>, Option<String>, Option<i64>);

/// Dictionary cache: strings by ID, cached between reads. Each string is stored as a JSON literal, ready to be written.
#[derive(Debug, Default)]
pub struct DictionaryCache {
    current: Arc<RwLock<SharedStrings>>,
    /// Serializes loads of many strings, so that several reads do not each hold a copy: at the start, or after a bulk load.
    filling: tokio::sync::Mutex<()>,
    /// Serializes reads that need more strings than the cache keeps.
    large: tokio::sync::Mutex<()>,
}

/// The cached strings of one `litespend.words` table. If the rollups are removed and installed again, a new table
/// assigns IDs from the start. The strings of the new table are cached separately, and a read that has already started
/// keeps using the old ones.
pub type SharedStrings = Arc<RwLock<CachedStrings>>;

/// Cached strings, and the last ID that was read.
#[derive(Debug, Default)]
pub struct CachedStrings {
    texts: FxHashMap<i32, Arc<str>>,
    table: i64,
    last: i32,
    bytes: i64,
    overflowed: bool,
}

impl DictionaryCache {
    /// Reads the strings that were added since the last call. Returns the cached strings, and whether they are the
    /// complete dictionary. IDs are assigned in ascending order and by one writer at a time, so no ID below the last
    /// one read can appear later.
    pub async fn refresh(&self, connection: &mut PgConnection) -> Result<(SharedStrings, bool), sqlx::Error> {
        let mut filling = None;
        loop {
            let current = Arc::clone(&self.current.read());
            let (table, last, bytes, overflowed) = {
                let cached = current.read();
                (cached.table, cached.last, cached.bytes, cached.overflowed)
            };
            let room = MAX_CACHED_BYTES - bytes;
            let (most, room) =
                if filling.is_some() { (MAX_CACHED_STRINGS, room) } else { (FEW_STRINGS, room.min(FEW_BYTES)) };
            // The table's OID shows whether it is still the table whose strings are cached. Strings beyond the limits
            // on number and bytes are not even sent.
            let found: Vec<Row> = sqlx::query_as(
                "SELECT 'litespend.words'::regclass::oid::bigint, id, CASE WHEN bytes <= $3 THEN word END, bytes
                 FROM (SELECT) AS one LEFT JOIN (
                     SELECT id, word, sum(octet_length(word)) OVER (ORDER BY id) AS bytes
                     FROM (SELECT id, word FROM litespend.words WHERE id > $1 ORDER BY id LIMIT $2) AS next
                 ) AS summed ON true ORDER BY id",
            )
            .bind(if overflowed { i32::MAX } else { last })
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .bind(room)
            .fetch_all(&mut *connection)
            .await?;
            let found_table = found.first().map_or(0, |(table, ..)| *table);
            if found_table != table {
                let next = Arc::new(RwLock::new(CachedStrings { table: found_table, ..CachedStrings::default() }));
                self.replace(next);
                continue;
            }
            let read = found.last().and_then(|(_, _, _, bytes)| *bytes).unwrap_or(0);
            let words: Vec<_> = found.into_iter().filter_map(|(_, id, word, _)| Some((id?, word))).collect();
            if overflowed || words.is_empty() {
                return Ok((current, !overflowed));
            }
            if filling.is_none() && (words.len() >= most || words.iter().any(|(_, word)| word.is_none())) {
                filling = Some(self.filling.lock().await);
                continue;
            }
            let mut cached = current.write();
            if cached.texts.len() + words.len() >= MAX_CACHED_STRINGS || bytes + read > MAX_CACHED_BYTES {
                drop(cached);
                // Reads that already use the current cache continue with it, so it is replaced and not changed.
                let next = Arc::new(RwLock::new(CachedStrings { table, overflowed: true, ..CachedStrings::default() }));
                self.replace(Arc::clone(&next));
                return Ok((next, false));
            }
            for (id, word) in words {
                // Two concurrent reads may fetch the same strings.
                let Some(word) = word else { continue };
                cached.last = cached.last.max(id);
                if let Vacant(slot) = cached.texts.entry(id) {
                    let text = literal(&word);
                    let length = i64::try_from(word.len()).unwrap_or(i64::MAX);
                    slot.insert(text);
                    cached.bytes = cached.bytes.saturating_add(length);
                }
            }
            drop(cached);
            return Ok((current, true));
        }
    }

    /// Lock for a read whose strings are not all cached. The read must hold the lock while it holds its own strings.
    pub async fn lock_large(&self) -> MutexGuard<'_, ()> {
        self.large.lock().await
    }

    fn replace(&self, next: SharedStrings) {
        *self.current.write() = next;
    }

    /// Empties the cache. Called after the rollups were removed.
    pub fn clear(&self) {
        *self.current.write() = SharedStrings::default();
    }
}

/// The strings that one read uses.
#[derive(Debug)]
pub struct Dictionary {
    cached: SharedStrings,
    /// Temporary IDs for strings that are not in the dictionary yet. They are negative and valid in this read only.
    local: HashMap<String, i32>,
    texts: FxHashMap<i32, Arc<str>>,
    /// Bytes of the strings that only this read holds.
    bytes: usize,
    /// IDs whose strings are still to be written. [`Dictionary::trim`] must not drop them.
    held: [i32; 3],
}

impl Dictionary {
    /// Starts with the cached strings of earlier reads.
    pub fn new(cached: SharedStrings) -> Self {
        let texts = FxHashMap::from_iter([(0, Arc::from("null"))]);
        Self { cached, local: HashMap::new(), texts, bytes: 0, held: [0; 3] }
    }

    /// The ID of a string: its dictionary ID, or a temporary one. 0 means no string.
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

    /// Copies the strings of these IDs from the cache into this read. Returns the IDs that are not cached.
    pub fn take_cached(&mut self, numbers: impl Iterator<Item = i32>) -> Vec<i32> {
        let cached = self.cached.read();
        let mut missing = Vec::new();
        for number in numbers {
            if let Vacant(slot) = self.texts.entry(number) {
                match cached.texts.get(&number) {
                    Some(text) => drop(slot.insert(Arc::clone(text))),
                    None => missing.push(number),
                }
            }
        }
        missing
    }

    /// Fetches the strings of these IDs from the database.
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

    /// The string with this ID as a JSON literal; `null` if there is none.
    pub fn json(&self, number: i32) -> &str {
        self.texts.get(&number).map_or("null", AsRef::as_ref)
    }

    /// Like [`Dictionary::json`], but shares ownership of the literal.
    pub fn shared(&self, number: i32) -> Arc<str> {
        self.texts.get(&number).map_or_else(|| Arc::from("null"), Arc::clone)
    }

    /// An empty set of strings on the same cache. It can be filled without a lock on this one, and then merged with
    /// [`Dictionary::join`].
    pub fn fork(&self) -> Self {
        Self {
            cached: Arc::clone(&self.cached),
            local: HashMap::new(),
            texts: FxHashMap::default(),
            bytes: 0,
            held: [0; 3],
        }
    }

    /// Merges the strings of a fork into this set.
    pub fn join(&mut self, fork: Self) {
        self.bytes += fork.bytes;
        self.texts.extend(fork.texts);
    }

    /// Protects the strings of these IDs from [`Dictionary::trim`] until the next call.
    pub fn hold(&mut self, numbers: [i32; 3]) {
        self.held = numbers;
    }

    /// Drops strings if this read holds more than `MAX_CACHED_STRINGS` of them, or if it fetched more than `MAX_BYTES_OF_READ`
    /// bytes. Strings with temporary IDs stay, and so do those that [`Dictionary::hold`] protects.
    pub fn trim(&mut self) {
        if self.texts.len() > MAX_CACHED_STRINGS || self.bytes > MAX_BYTES_OF_READ {
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
