//! The sums of a day's rows, collected while the rows are exported, so that the log is read once: for the comparison with
//! the rollups, and for what a closed day needs beside them.
//!
//! Memory is bounded. What has too many groups for it is given up, and the database does the same with statements of its
//! own.

use std::collections::HashMap;

use chrono::NaiveDate;
use litespend_archive::LogRow;
use rustc_hash::{FxHashMap, FxSeededState};
use serde_json::value::RawValue;

use crate::store;
use crate::store::Connection;
use crate::store::books::comparing;
use crate::store::books::comparing::{Group, Rollup};
use crate::store::books::details::{ActivityGroup, BucketOfIds};
use crate::store::books::id_digest;

/// The most groups that are kept of one kind.
const MOST_GROUPS: usize = 300_000;

/// The most bytes of different texts that are kept.
const MOST_TEXT: usize = 32 * 1024 * 1024;

/// The most IDs that are kept, with eight bytes each.
const MOST_IDS: usize = 4_000_000;

/// The most different lists of tags whose words are remembered.
const MOST_LISTS: usize = 10_000;

/// Rows that are added to the groups at once. One kind of groups after the other stays in the processor's cache.
const AT_ONCE: usize = 1_024;

/// The tags with which rows are added although they are fewer.
const TAGS_AT_ONCE: usize = 64 * AT_ONCE;

/// IDs of words that are looked up at once.
const LOOKUP: usize = 10_000;

/// Stands for null.
const NULL: u32 = 0;

/// Numbers for texts. Clients choose the texts, but not the seed of their hashes.
#[derive(Debug)]
struct Words {
    numbers: HashMap<Box<str>, u32, FxSeededState>,
    bytes: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self { numbers: HashMap::with_hasher(FxSeededState::with_seed(usize::from_ne_bytes(rand::random()))), bytes: 0 }
    }
}

impl Words {
    fn number(&mut self, text: Option<&str>) -> u32 {
        let Some(text) = text else { return NULL };
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.numbers.len() + 1).unwrap_or(u32::MAX);
        self.bytes += text.len() + size_of::<(Box<str>, u32)>();
        self.numbers.insert(text.into(), number);
        number
    }

    fn texts(&self) -> Vec<Option<&str>> {
        let mut texts = vec![None; self.numbers.len() + 1];
        for (text, number) in &self.numbers {
            if let Some(slot) = texts.get_mut(*number as usize) {
                *slot = Some(&**text);
            }
        }
        texts
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    requests: i64,
    spend: f64,
    prompt_tokens: i64,
    completion_tokens: i64,
    total_tokens: i64,
}

impl Figures {
    fn of(row: &LogRow<'_>) -> Self {
        Self {
            requests: 1,
            spend: row.spend,
            prompt_tokens: i64::from(row.prompt_tokens),
            completion_tokens: i64::from(row.completion_tokens),
            total_tokens: i64::from(row.total_tokens),
        }
    }

    fn without_parts(self) -> Self {
        Self { prompt_tokens: 0, completion_tokens: 0, ..self }
    }

    fn without_tokens(self) -> Self {
        Self { total_tokens: 0, ..self.without_parts() }
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.spend += other.spend;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
    }

    /// Counts and tokens exactly, spend within 1e-9, relative or absolute.
    fn agree_with(&self, group: &Group) -> bool {
        let spend = self.spend == group.spend
            || self.spend.is_nan() && group.spend.is_nan()
            || (self.spend - group.spend).abs() <= 1e-9 * self.spend.abs().max(1.0);
        spend
            && (self.requests, self.prompt_tokens, self.completion_tokens, self.total_tokens)
                == (group.requests, group.prompt_tokens, group.completion_tokens, group.total_tokens)
    }
}

/// The groups of one kind. `None` if they were too many.
#[derive(Debug)]
struct Groups(Option<FxHashMap<[u32; 4], Figures>>);

impl Default for Groups {
    fn default() -> Self {
        Self(Some(FxHashMap::default()))
    }
}

impl Groups {
    fn add(&mut self, words: [u32; 4], figures: Figures) {
        let Some(groups) = &mut self.0 else { return };
        groups.entry(words).or_default().add(figures);
        if groups.len() > MOST_GROUPS {
            self.0 = None;
        }
    }
}

/// A row that is not in the groups yet: the numbers of its words.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    team: u32,
    user: u32,
    customer: u32,
    key: u32,
    model: u32,
    model_group: u32,
    model_id: u32,
    /// Number of its tags.
    tags: usize,
    figures: Figures,
}

/// The sums of a day's rows.
#[derive(Debug)]
pub struct DaySums {
    words: Words,
    waiting: Vec<Waiting>,
    /// The tags of these rows, one row after the other.
    waiting_tags: Vec<u32>,
    lists: HashMap<Box<str>, Box<[u32]>>,
    /// Bytes of the texts of `lists`.
    list_bytes: usize,
    usage: Groups,
    customer: Groups,
    tag: Groups,
    tag_owner: Groups,
    activity: Groups,
    ids: Option<Vec<[u8; 8]>>,
}

impl Default for DaySums {
    fn default() -> Self {
        Self {
            words: Words::default(),
            waiting: Vec::new(),
            waiting_tags: Vec::new(),
            lists: HashMap::default(),
            list_bytes: 0,
            usage: Groups::default(),
            customer: Groups::default(),
            tag: Groups::default(),
            tag_owner: Groups::default(),
            activity: Groups::default(),
            ids: Some(Vec::new()),
        }
    }
}

impl DaySums {
    /// Adds a row.
    pub fn add(&mut self, row: &LogRow<'_>) {
        if let Some(ids) = &mut self.ids {
            ids.push(id_digest(row.request_id));
            if ids.len() > MOST_IDS {
                self.ids = None;
            }
        }
        if self.words.bytes > MOST_TEXT {
            self.give_up();
            return;
        }
        let words = &mut self.words;
        let [team, user, customer] = [row.team_id, row.user, row.end_user].map(|text| words.number(text));
        let [key, model] = [row.api_key, row.model].map(|text| words.number(Some(text)));
        let [model_group, model_id] = [row.model_group, row.model_id].map(|text| words.number(text));
        let tags = self.add_tags(row.request_tags);
        let figures = Figures::of(row);
        self.waiting.push(Waiting { team, user, customer, key, model, model_group, model_id, tags, figures });
        if self.waiting.len() >= AT_ONCE || self.waiting_tags.len() >= TAGS_AT_ONCE {
            self.group();
        }
    }

    /// Puts the tags of a list beside those that wait. Returns their number.
    fn add_tags(&mut self, list: Option<&str>) -> usize {
        // Only lists have tags.
        let list = list.filter(|list| self.tag.0.is_some() && list.starts_with('[') && *list != "[]");
        let Some(list) = list else { return 0 };
        if let Some(tags) = self.lists.get(list) {
            self.waiting_tags.extend_from_slice(tags);
            return tags.len();
        }
        let Some(tags) = tags_of(list) else {
            (self.tag, self.tag_owner) = (Groups(None), Groups(None));
            return 0;
        };
        let tags: Box<[u32]> = tags.iter().map(|tag| self.words.number(tag.as_deref())).collect();
        self.waiting_tags.extend_from_slice(&tags);
        let count = tags.len();
        self.list_bytes += list.len();
        if self.lists.len() >= MOST_LISTS || self.list_bytes > MOST_TEXT {
            self.lists.clear();
            self.list_bytes = list.len();
        }
        self.lists.insert(list.into(), tags);
        count
    }

    /// Adds the rows that wait to the groups.
    fn group(&mut self) {
        for row in &self.waiting {
            self.usage.add([row.team, row.user, row.key, row.model], row.figures);
        }
        for row in &self.waiting {
            self.customer.add([row.customer, row.team, row.key, row.model], row.figures.without_parts());
        }
        for row in &self.waiting {
            self.activity.add([row.user, row.model_group, row.model_id, NULL], row.figures.without_parts());
        }
        let mut tags = self.waiting_tags.iter();
        for row in &self.waiting {
            let figures = row.figures.without_tokens();
            for tag in tags.by_ref().take(row.tags) {
                self.tag.add([*tag, NULL, NULL, NULL], figures);
                self.tag_owner.add([*tag, row.team, row.user, NULL], figures);
            }
        }
        self.waiting.clear();
        self.waiting_tags.clear();
    }

    fn give_up(&mut self) {
        let ids = self.ids.take();
        let none = || Groups(None);
        *self = Self {
            usage: none(),
            customer: none(),
            tag: none(),
            tag_owner: none(),
            activity: none(),
            ids,
            waiting: Vec::new(),
            waiting_tags: Vec::new(),
            // No text is added any more.
            words: Words { bytes: usize::MAX, ..Words::default() },
            lists: HashMap::default(),
            list_bytes: 0,
        };
    }

    /// Whether the rollups of the day, which is folded as a whole, have these sums. False also if that is not known.
    pub async fn agree_with_rollups(
        &mut self,
        connection: &mut Connection,
        day: NaiveDate,
    ) -> Result<bool, store::Error> {
        self.group();
        let mut numbers = FxHashMap::default();
        for rollup in Rollup::ALL {
            let groups = match rollup {
                Rollup::Usage => &self.usage,
                Rollup::Customer => &self.customer,
                Rollup::Tag => &self.tag,
                Rollup::TagOwner => &self.tag_owner,
            };
            let Some(groups) = &groups.0 else { return Ok(false) };
            let counted = comparing::groups(connection, rollup, day, groups.len()).await?;
            let Some(counted) = counted else { return Ok(false) };
            self.look_up(connection, &counted, &mut numbers).await?;
            // As many groups on both sides, and each one of the rollup's, which are all different, is ours, too.
            let agree = counted.len() == groups.len()
                && counted.iter().all(|group| {
                    let figures = key(group, &numbers).and_then(|key| groups.get(&key));
                    figures.is_some_and(|figures| figures.agree_with(group))
                });
            if !agree {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds the numbers of the words that groups are named by. Words that no row has are left out.
    async fn look_up(
        &self,
        connection: &mut Connection,
        groups: &[Group],
        numbers: &mut FxHashMap<i32, u32>,
    ) -> Result<(), store::Error> {
        let mut ids: Vec<i32> = groups.iter().flat_map(|group| group.words.iter().copied()).collect();
        ids.retain(|id| *id != NULL_ID && !numbers.contains_key(id));
        ids.sort_unstable();
        ids.dedup();
        for ids in ids.chunks(LOOKUP) {
            for (id, word) in comparing::words(connection, ids).await? {
                if let Some(number) = self.words.numbers.get(word.as_str()) {
                    numbers.insert(id, *number);
                }
            }
        }
        Ok(())
    }

    /// The sums by user, model group and model ID. `None` if they were too many.
    pub fn activity(&mut self) -> Option<Vec<ActivityGroup<'_>>> {
        self.group();
        let groups = self.activity.0.as_ref()?;
        let texts = self.words.texts();
        let text = |number: u32| texts.get(number as usize).copied().flatten();
        let groups = groups.iter().map(|([user, model_group, model_id, _], figures)| ActivityGroup {
            user: text(*user),
            model_group: text(*model_group),
            model_id: text(*model_id),
            requests: figures.requests,
            spend: figures.spend,
            total_tokens: figures.total_tokens,
        });
        Some(groups.collect())
    }

    /// The digests of the request IDs in buckets. `None` if they were too many.
    pub fn ids(&mut self, buckets: i32) -> Option<Vec<BucketOfIds>> {
        let mut ids = self.ids.take()?;
        let buckets = u32::try_from(buckets).unwrap_or_default().max(1);
        let bucket = |[first, second, third, ..]: &[u8; 8]| u32::from_be_bytes([0, *first, *second, *third]) % buckets;
        ids.sort_unstable_by_key(bucket);
        let chunks = ids.chunk_by(|a, b| bucket(a) == bucket(b));
        let buckets = chunks.map(|chunk| BucketOfIds {
            bucket: chunk.first().map_or(0, |id| i32::try_from(bucket(id)).unwrap_or_default()),
            digests: chunk.concat(),
        });
        Some(buckets.collect())
    }
}

/// The ID that stands for null in the rollups.
const NULL_ID: i32 = 0;

fn key(group: &Group, numbers: &FxHashMap<i32, u32>) -> Option<[u32; 4]> {
    let mut key = [NULL; 4];
    for (slot, id) in key.iter_mut().zip(&group.words) {
        *slot = if *id == NULL_ID { NULL } else { *numbers.get(id)? };
    }
    Some(key)
}

/// The elements of a list as texts, as PostgreSQL's `jsonb_array_elements_text` gives them. `None` if it is no list.
fn tags_of(list: &str) -> Option<Vec<Option<String>>> {
    let elements: Vec<&RawValue> = serde_json::from_str(list).ok()?;
    let text = |element: &RawValue| match element.get() {
        "null" => Some(None),
        text if text.starts_with('"') => serde_json::from_str(text).ok().map(Some),
        other => Some(Some(other.to_owned())),
    };
    elements.into_iter().map(text).collect()
}
