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

/// Sums that are grouped before other work gets its turn.
const AT_ONCE: usize = 4_096;

/// IDs of words that are looked up at once.
const LOOKUP: usize = 10_000;

/// Stands for null.
const NULL: u32 = 0;

/// Clients choose what is hashed, but not the seed.
fn seeded() -> FxSeededState {
    FxSeededState::with_seed(usize::from_ne_bytes(rand::random()))
}

/// Numbers for texts.
#[derive(Debug)]
struct Words {
    numbers: HashMap<Box<str>, u32, FxSeededState>,
    bytes: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self { numbers: HashMap::with_hasher(seeded()), bytes: 0 }
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

    fn without_tokens(self) -> Self {
        Self { requests: self.requests, spend: self.spend, ..Self::default() }
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

/// Sums by four words.
type Groups = FxHashMap<[u32; 4], Figures>;

/// The numbers of the words that rows are counted by, but for their customers: team, user, key, model, model group, model ID,
/// and the list of their tags.
type Combination = [u32; 7];

/// The rows of a combination. In most logs there are far fewer combinations than rows, so a row is added to one sum, and the
/// sums by less are made of these.
#[derive(Debug, Default)]
struct Combined {
    /// Number of its team, key and model.
    payer: u32,
    figures: Figures,
}

/// The figures that the sums by customer have.
#[derive(Clone, Copy, Debug, Default)]
struct CustomerFigures {
    requests: i64,
    spend: f64,
    total_tokens: i64,
}

/// Lists of tags.
#[derive(Debug, Default)]
struct Lists {
    texts: Words,
    /// The tags of each list, by the number of its text.
    tags: FxHashMap<u32, Box<[u32]>>,
}

/// The sums of a day's rows.
#[derive(Debug)]
pub struct DaySums {
    words: Words,
    /// `None` if one cannot be read, or if they were too many.
    lists: Option<Lists>,
    /// `None` if they, or their words, were too many.
    combinations: Option<HashMap<Combination, Combined, FxSeededState>>,
    /// Teams, keys and models.
    payers: FxHashMap<[u32; 3], u32>,
    /// By customer and payer. `None` if they were too many.
    customers: Option<FxHashMap<[u32; 2], CustomerFigures>>,
    ids: Option<Vec<[u8; 8]>>,
}

impl Default for DaySums {
    fn default() -> Self {
        Self {
            words: Words::default(),
            lists: Some(Lists::default()),
            combinations: Some(HashMap::with_hasher(seeded())),
            payers: FxHashMap::default(),
            customers: Some(FxHashMap::default()),
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
        let Some(combinations) = &mut self.combinations else { return };
        let words = &mut self.words;
        let [team, user, customer] = [row.team_id, row.user, row.end_user].map(|text| words.number(text));
        let [key, model] = [row.api_key, row.model].map(|text| words.number(Some(text)));
        let [model_group, model_id] = [row.model_group, row.model_id].map(|text| words.number(text));
        // Only lists have tags.
        let list = row.request_tags.filter(|list| list.starts_with('[') && *list != "[]");
        let tags = self.lists.as_mut().map_or(NULL, |lists| lists.texts.number(list));
        let combination = [team, user, key, model, model_group, model_id, tags];
        let figures = Figures::of(row);
        let combined = combinations.entry(combination).or_insert_with(|| {
            if let (Some(list), Some(lists)) = (list, &mut self.lists)
                && !lists.tags.contains_key(&tags)
            {
                match tags_of(list) {
                    Some(list) => {
                        let list = list.iter().map(|tag| words.number(tag.as_deref())).collect();
                        lists.tags.insert(tags, list);
                    }
                    None => self.lists = None,
                }
            }
            let next = u32::try_from(self.payers.len()).unwrap_or(u32::MAX);
            let payer = *self.payers.entry([team, key, model]).or_insert(next);
            Combined { payer, figures: Figures::default() }
        });
        combined.figures.add(figures);
        if let Some(customers) = &mut self.customers {
            let sum = customers.entry([customer, combined.payer]).or_default();
            sum.requests += figures.requests;
            sum.spend += figures.spend;
            sum.total_tokens += figures.total_tokens;
            if customers.len() > MOST_GROUPS {
                self.customers = None;
            }
        }
        let many = combinations.len() > MOST_GROUPS;
        if self.lists.as_ref().is_some_and(|lists| many || lists.texts.bytes > MOST_TEXT) {
            self.forget_tags();
        } else if many || self.words.bytes > MOST_TEXT {
            *self = Self { combinations: None, customers: None, ids: self.ids.take(), ..Self::default() };
        }
    }

    /// Goes on without tags: in some logs, nearly every row has others.
    fn forget_tags(&mut self) {
        self.lists = None;
        let Some(combinations) = &mut self.combinations else { return };
        let mut without = HashMap::with_hasher(seeded());
        for ([team, user, key, model, model_group, model_id, _], combined) in combinations.drain() {
            let sum: &mut Combined = without.entry([team, user, key, model, model_group, model_id, NULL]).or_default();
            sum.payer = combined.payer;
            sum.figures.add(combined.figures);
        }
        *combinations = without;
    }

    /// The sums that a rollup has. `None` if that is not known.
    async fn groups(&self, rollup: Rollup) -> Option<Groups> {
        let combinations = self.combinations.as_ref()?;
        let mut groups = Groups::default();
        if rollup == Rollup::Customer {
            let mut payers: Vec<_> = self.payers.iter().collect();
            payers.sort_unstable_by_key(|(_, number)| **number);
            for (count, ([customer, payer], sum)) in self.customers.as_ref()?.iter().enumerate() {
                take_turns(count).await;
                let ([team, key, model], _) = payers.get(*payer as usize)?;
                let CustomerFigures { requests, spend, total_tokens } = *sum;
                let figures = Figures { requests, spend, total_tokens, ..Figures::default() };
                groups.entry([*customer, *team, *key, *model]).or_default().add(figures);
            }
            return Some(groups);
        }
        // Sums without tags need no lists.
        let lists = if rollup == Rollup::Usage { None } else { Some(self.lists.as_ref()?) };
        let mut count = 0;
        for ([team, user, key, model, _, _, tags], Combined { figures, .. }) in combinations {
            match lists {
                None => groups.entry([*team, *user, *key, *model]).or_default().add(*figures),
                Some(_) if *tags == NULL => {}
                Some(lists) => {
                    for tag in lists.tags.get(tags)? {
                        let [team, user] = if rollup == Rollup::Tag { [NULL; 2] } else { [*team, *user] };
                        groups.entry([*tag, team, user, NULL]).or_default().add(figures.without_tokens());
                        count += 1;
                        take_turns(count).await;
                    }
                }
            }
            if groups.len() > MOST_GROUPS {
                return None;
            }
            count += 1;
            take_turns(count).await;
        }
        Some(groups)
    }

    /// Whether the rollups of the day, which is folded as a whole, have these sums. False also if that is not known.
    pub async fn agree_with_rollups(&self, connection: &mut Connection, day: NaiveDate) -> Result<bool, store::Error> {
        let mut numbers = FxHashMap::default();
        for rollup in Rollup::ALL {
            let Some(groups) = self.groups(rollup).await else { return Ok(false) };
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
    pub fn activity(&self) -> Option<Vec<ActivityGroup<'_>>> {
        let mut groups = Groups::default();
        for ([_, user, _, _, model_group, model_id, _], Combined { figures, .. }) in self.combinations.as_ref()? {
            groups.entry([*user, *model_group, *model_id, NULL]).or_default().add(*figures);
        }
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

/// Lets other work go on from time to time.
async fn take_turns(count: usize) {
    if count % AT_ONCE == AT_ONCE - 1 {
        tokio::task::yield_now().await;
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Words, of which the first stands for null.
    const WORDS: [&str; 4] = ["", "a", "b", "c"];

    /// Lists as they are in the log, and their tags.
    fn lists() -> Vec<(Option<&'static str>, Vec<Option<&'static str>>)> {
        vec![
            (None, vec![]),
            (Some("[]"), vec![]),
            (Some("null"), vec![]),
            (Some(r#"{"a": 1}"#), vec![]),
            (Some(r#"["a"]"#), vec![Some("a")]),
            (Some(r#"["a", "a", "b"]"#), vec![Some("a"), Some("a"), Some("b")]),
            (Some(r#"[null, 1, {"a": 2}, "\u00e9"]"#), vec![None, Some("1"), Some(r#"{"a": 2}"#), Some("\u{e9}")]),
        ]
    }

    fn word(number: usize) -> Option<&'static str> {
        WORDS.get(number).copied().filter(|word| !word.is_empty())
    }

    /// Sums by words, as texts.
    type Expected<'a> = HashMap<Vec<Option<&'a str>>, (i64, i64, i64, i64, i64)>;

    fn add<'a>(sums: &mut Expected<'a>, words: &[Option<&'a str>], figures: [i64; 4]) {
        let sum = sums.entry(words.to_vec()).or_default();
        let [spend, prompt, completion, total] = figures;
        *sum = (sum.0 + 1, sum.1 + spend, sum.2 + prompt, sum.3 + completion, sum.4 + total);
    }

    fn found<'a>(sums: &'a DaySums, groups: &Groups, length: usize) -> Expected<'a> {
        let texts = sums.words.texts();
        let groups = groups.iter().map(|(words, figures)| {
            assert!(words[length..].iter().all(|word| *word == NULL));
            let words = words[..length].iter().map(|word| texts[*word as usize]).collect();
            let spend = (figures.spend * 4.0).round() as i64;
            (words, (figures.requests, spend, figures.prompt_tokens, figures.completion_tokens, figures.total_tokens))
        });
        groups.collect()
    }

    proptest! {
        #[test]
        fn the_sums_by_less_are_those_of_the_rows(
            rows in prop::collection::vec(
                (prop::array::uniform7(0usize..4), 0usize..7, 0i64..9, 0i32..9, 0i32..9),
                0..60,
            ),
            forget_after in 0usize..120,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let lists = lists();
            let mut sums = DaySums::default();
            let (mut usage, mut customers, mut tags, mut owners, mut activity) =
                (Expected::new(), Expected::new(), Expected::new(), Expected::new(), Expected::new());
            for (number, (words, list, quarters, prompt, completion)) in rows.iter().enumerate() {
                let [team, user, customer, key, model, group, id] = words.map(word);
                let (key, model) = (key.unwrap_or_default(), model.unwrap_or_default());
                let (text, own_tags) = &lists[*list];
                sums.add(&LogRow {
                    request_id: &number.to_string(),
                    api_key: key,
                    model,
                    team_id: team,
                    user,
                    end_user: customer,
                    model_group: group,
                    model_id: id,
                    request_tags: *text,
                    spend: *quarters as f64 / 4.0,
                    prompt_tokens: *prompt,
                    completion_tokens: *completion,
                    total_tokens: prompt + completion,
                    ..LogRow::default()
                });
                if number == forget_after {
                    sums.forget_tags();
                }
                let (spend, prompt, completion) = (*quarters, i64::from(*prompt), i64::from(*completion));
                let total = prompt + completion;
                add(&mut usage, &[team, user, Some(key), Some(model)], [spend, prompt, completion, total]);
                add(&mut customers, &[customer, team, Some(key), Some(model)], [spend, 0, 0, total]);
                add(&mut activity, &[user, group, id], [spend, prompt, completion, total]);
                for tag in own_tags {
                    add(&mut tags, &[*tag], [spend, 0, 0, 0]);
                    add(&mut owners, &[*tag, team, user], [spend, 0, 0, 0]);
                }
            }
            let groups = |rollup| runtime.block_on(sums.groups(rollup));
            prop_assert_eq!(found(&sums, &groups(Rollup::Usage).unwrap(), 4), usage);
            prop_assert_eq!(found(&sums, &groups(Rollup::Customer).unwrap(), 4), customers);
            if forget_after < rows.len() {
                prop_assert!(groups(Rollup::Tag).is_none() && groups(Rollup::TagOwner).is_none());
            } else {
                prop_assert_eq!(found(&sums, &groups(Rollup::Tag).unwrap(), 1), tags);
                prop_assert_eq!(found(&sums, &groups(Rollup::TagOwner).unwrap(), 3), owners);
            }
            let own: HashMap<_, _> = sums.activity().unwrap().iter().map(|group| {
                let words = vec![group.user, group.model_group, group.model_id];
                (words, (group.requests, (group.spend * 4.0).round() as i64, group.total_tokens))
            }).collect();
            let activity: HashMap<_, _> =
                activity.into_iter().map(|(words, sum)| (words, (sum.0, sum.1, sum.4))).collect();
            prop_assert_eq!(own, activity);
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_leaves_the_tags_unknown() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut sums = DaySums::default();
        sums.add(&LogRow { request_id: "1", request_tags: Some("[1"), ..LogRow::default() });
        assert!(runtime.block_on(sums.groups(Rollup::Tag)).is_none());
        assert_eq!(runtime.block_on(sums.groups(Rollup::Usage)).unwrap().len(), 1);
    }

    #[test]
    fn too_many_combinations_are_given_up_the_tags_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut sums = DaySums::default();
        for number in 0..=MOST_GROUPS {
            let tags = format!("[{number}]");
            sums.add(&LogRow { request_id: "1", request_tags: Some(&tags), ..LogRow::default() });
        }
        assert!(runtime.block_on(sums.groups(Rollup::TagOwner)).is_none());
        let usage = runtime.block_on(sums.groups(Rollup::Usage)).unwrap();
        assert_eq!(usage.values().map(|figures| figures.requests).collect::<Vec<_>>(), [300_001]);
        for number in 0..MOST_GROUPS {
            let user = number.to_string();
            sums.add(&LogRow { request_id: "2", user: Some(&user), ..LogRow::default() });
        }
        assert!(sums.activity().is_none());
        assert!(runtime.block_on(sums.groups(Rollup::Usage)).is_none());
        assert_eq!(sums.ids(1).unwrap().iter().map(|bucket| bucket.digests.len()).sum::<usize>(), 600_001 * 8);
    }
}
