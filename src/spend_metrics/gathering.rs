//! Gathering what was logged: which series are listed, and what each has.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::settings::spend_metrics::{Label, SpendMetricsSettings};
use crate::spend_metrics::columns::{Column, NOT_LISTED, Series, column_of};
use crate::spend_metrics::counters::Pieces;
use crate::spend_metrics::directory::Directory;
use crate::store;
use crate::store::reading::Reading;
use crate::store::spend_metrics::remembered::RememberedSeries;
use crate::store::spend_metrics::{COLUMNS, Folded, Logged, Sums, Unfolded};

/// How many IDs of a column are remembered, besides those of listed series.
const REMEMBERED: usize = 200_000;

/// Series that are added at once.
const AT_ONCE: usize = 25_000;

/// Gathers what was logged, in as many series as are listed.
#[derive(Debug)]
pub struct Gathered {
    names: Directory,
    columns: [Column; COLUMNS],
    /// The labels in their order: the column that gives it, and its place among the labels of the column.
    labels: Vec<(Label, usize, usize)>,
    limit: usize,
    places: FxHashMap<Series, usize>,
    series: Vec<(Series, Logged)>,
    /// What is beyond the limit.
    other: Option<Logged>,
    /// Series that are not folded yet.
    new: Vec<(Series, Logged)>,
}

impl Gathered {
    /// Nothing yet.
    pub fn new(settings: &SpendMetricsSettings, names: Directory) -> Self {
        let (mut columns, mut labels): ([Column; COLUMNS], _) = (Default::default(), Vec::new());
        for label in settings.labels() {
            let number = column_of(*label);
            if let Some(column) = columns.get_mut(number) {
                labels.push((*label, number, column.labels.len()));
                column.labels.push(*label);
            }
        }
        let limit = settings.series();
        let (places, series, new) = (FxHashMap::default(), Vec::new(), Vec::new());
        Self { names, columns, labels, limit, places, series, other: None, new }
    }

    /// Reads all series. The connection must be in a snapshot, which is later than all of `remembered`.
    pub async fn read(
        &mut self,
        reading: &mut Reading,
        sums: Sums,
        remembered: Option<&mut RememberedSeries>,
    ) -> Result<(), store::Error> {
        let changed = store::spend_metrics::changed(reading.connection(), sums).await?;
        let refreshed = match remembered {
            Some(remembered) => remembered.refresh(reading.copying(), sums).await?.then_some(remembered),
            None => None,
        };
        match refreshed {
            Some(remembered) => self.add_remembered(reading, remembered, &changed).await?,
            None => self.read_pages(reading, sums, &changed).await?,
        }
        store::spend_metrics::unfolded(reading.connection(), sums, |series| self.add_unfolded(&series)).await
    }

    /// Adds all folded series, page by page.
    async fn add_remembered(
        &mut self,
        reading: &mut Reading,
        remembered: &mut RememberedSeries,
        changed: &FxHashMap<i64, Logged>,
    ) -> Result<(), store::Error> {
        for start in (0..remembered.series().len()).step_by(AT_ONCE) {
            let page: Vec<Folded> = remembered.series().iter().skip(start).take(AT_ONCE).copied().collect();
            let missing = self.missing(&page);
            let words = remembered.words(reading.connection(), &missing).await?;
            self.add_page(page, changed, words);
        }
        Ok(())
    }

    /// Reads and adds all folded series, page by page.
    async fn read_pages(
        &mut self,
        reading: &mut Reading,
        sums: Sums,
        changed: &FxHashMap<i64, Logged>,
    ) -> Result<(), store::Error> {
        let mut after = i64::MIN;
        loop {
            let page = store::spend_metrics::folded(reading.copying(), sums, after).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.number;
            let missing = self.missing(&page);
            let mut words = FxHashMap::default();
            if !missing.is_empty() {
                words.extend(store::spend_metrics::words(reading.connection(), &missing).await?);
            }
            self.add_page(page, changed, &words);
        }
    }

    /// Adds series with what is not folded yet of them.
    fn add_page(&mut self, page: Vec<Folded>, changed: &FxHashMap<i64, Logged>, words: &FxHashMap<i32, String>) {
        for mut series in page {
            if let Some(logged) = changed.get(&series.number) {
                series.logged = *logged;
            }
            self.add(&series, words);
        }
    }

    /// The words of a page that must be read.
    fn missing(&self, page: &[Folded]) -> Vec<i32> {
        let mut missing = FxHashSet::default();
        for series in page {
            for (column, id) in self.columns.iter().zip(series.words) {
                if id != 0 && !column.labels.is_empty() && !column.by_id.contains_key(&id) {
                    missing.insert(id);
                }
            }
        }
        missing.into_iter().collect()
    }

    /// Adds a series. They come in their order.
    fn add(&mut self, folded: &Folded, words: &FxHashMap<i32, String>) {
        let is_room = self.series.len() < self.limit;
        let mut series = [0; COLUMNS];
        for ((column, id), number) in self.columns.iter_mut().zip(folded.words).zip(&mut series) {
            if column.labels.is_empty() {
                continue;
            }
            *number = match column.by_id.get(&id) {
                Some(number) => *number,
                None => column.number(words.get(&id).map(String::as_str), &self.names, is_room),
            };
            if *number != NOT_LISTED || column.by_id.len() < REMEMBERED {
                column.by_id.insert(id, *number);
            }
        }
        if let Some((_, sum)) = self.places.get(&series).and_then(|place| self.series.get_mut(*place)) {
            sum.add(folded.logged);
        } else if is_room {
            self.places.insert(series, self.series.len());
            self.series.push((series, folded.logged));
        } else {
            self.other.get_or_insert_default().add(folded.logged);
        }
    }

    /// Adds a series that has no place in the order yet, after the others.
    fn add_unfolded(&mut self, unfolded: &Unfolded) {
        // More than there is room for are not listed anyway.
        let is_room = self.new.len() <= self.limit;
        let mut series = [0; COLUMNS];
        for ((column, word), number) in self.columns.iter_mut().zip(unfolded.words()).zip(&mut series) {
            if !column.labels.is_empty() {
                *number = column.number(word, &self.names, is_room);
            }
        }
        if let Some((_, sum)) = self.places.get(&series).and_then(|place| self.series.get_mut(*place)) {
            sum.add(unfolded.logged);
        } else if is_room {
            self.new.push((series, unfolded.logged));
        }
    }

    /// The text of the counters, in pieces.
    pub fn pieces(mut self) -> Pieces {
        // A series that is not folded yet might not get a place of its own. Then it waits until it is folded.
        if self.series.len() + self.new.len() <= self.limit {
            for (series, logged) in std::mem::take(&mut self.new) {
                let place = *self.places.entry(series).or_insert(self.series.len());
                match self.series.get_mut(place) {
                    Some((_, sum)) => sum.add(logged),
                    None => self.series.push((series, logged)),
                }
            }
        }
        if let Some(logged) = self.other {
            self.series.push(([NOT_LISTED; COLUMNS], logged));
        }
        let Self { columns, labels, series, .. } = self;
        Pieces { texts: columns.map(|column| column.texts), labels, series, counter: 0, at: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::spend_metrics::counters::PIECE;

    fn row(team: &str, key: &str, number: Option<i64>, spend: f64) -> (Option<i64>, Unfolded) {
        let logged =
            Logged { requests: 1, spend, prompt_tokens: 1, completion_tokens: 2, total_tokens: 3, ..Logged::default() };
        let words = [Some(team), None, Some(key), Some("m"), None, None, None, None, None];
        (number, Unfolded::new(words, logged))
    }

    fn spend(rows: Vec<(Option<i64>, Unfolded)>, labels: &[Label], series: usize) -> Vec<String> {
        let mut names = Directory::default();
        names.name_keys(vec![("k1".into(), Some("a \"b\" \\ c\n".into()))]);
        let settings = SpendMetricsSettings::new(labels, series);
        let mut gathered = Gathered::new(&settings, names);
        let mut ids = HashMap::new();
        for (number, row) in rows {
            let Some(number) = number else {
                gathered.add_unfolded(&row);
                continue;
            };
            let words = row.words().map(|word| {
                let Some(word) = word else { return 0 };
                let next = 1 + i32::try_from(ids.len()).unwrap();
                *ids.entry(word.to_owned()).or_insert(next)
            });
            let folded = Folded { number, words, logged: row.logged };
            let all: FxHashMap<i32, String> = ids.iter().map(|(word, id)| (*id, word.clone())).collect();
            let missing = gathered.missing(&[folded]);
            let read = all.into_iter().filter(|(id, _)| missing.contains(id)).collect();
            gathered.add(&folded, &read);
        }
        let text: String = gathered.pieces().collect();
        let lines = text.lines().filter(|line| line.starts_with("litellm_spend_metric_total"));
        lines.map(|line| line.trim_start_matches("litellm_spend_metric_total").to_owned()).collect()
    }

    #[test]
    fn labels_are_escaped_and_what_is_not_known_is_none() {
        let rows = vec![row("", "k1", Some(1), 0.5)];
        assert_eq!(
            spend(rows, &[Label::Team, Label::ApiKeyAlias], 10),
            [r#"{team="None",hashed_api_key="k1",api_key_alias="a \"b\" \\ c\n"} 0.5"#]
        );
    }

    #[test]
    fn series_with_the_same_labels_are_one() {
        let rows = vec![row("t", "k", Some(1), 2.5), row("t", "j", Some(2), 0.5), row("t", "new", None, 0.25)];
        assert_eq!(spend(rows.clone(), &[Label::Team], 10), [r#"{team="t"} 3.25"#]);
        let by_key = spend(rows, &[Label::HashedApiKey], 10);
        assert_eq!(by_key[1..], [r#"{hashed_api_key="j"} 0.5"#, r#"{hashed_api_key="new"} 0.25"#]);
    }

    #[test]
    fn series_beyond_the_limit_stay_in_one() {
        let folded = |count: i64| (1..=count).map(|n| row("t", &format!("k{n}x"), Some(n), 1.0)).collect::<Vec<_>>();
        let labels = [Label::HashedApiKey, Label::Model];
        let two = [r#"{hashed_api_key="k1x",model="m"} 1"#, r#"{hashed_api_key="k2x",model="m"} 1"#];
        assert_eq!(spend(folded(2), &labels, 2), two);
        let all = spend(folded(4), &labels, 2);
        assert_eq!(all[..2], two);
        assert_eq!(all[2..], [r#"{hashed_api_key="other",model="other"} 2"#]);
        // A series that is not folded yet has no place: it must not be listed alone now and with the others later.
        let mut rows = folded(2);
        rows.push(row("t", "late", None, 1.0));
        assert_eq!(spend(rows, &labels, 2), two);
        // Beyond the limit, what has the labels of a listed series still counts there.
        let mut rows = folded(4);
        rows.push(row("u", "k1x", Some(5), 0.5));
        assert_eq!(spend(rows, &labels, 2)[0], r#"{hashed_api_key="k1x",model="m"} 1.5"#);
    }

    #[test]
    fn a_long_text_comes_in_pieces() {
        let settings = SpendMetricsSettings::new(&[Label::HashedApiKey], 3_000);
        let mut gathered = Gathered::new(&settings, Directory::default());
        let logged = Logged { spend: 0.5, requests: 1, ..Logged::default() };
        for key in 0..3_000 {
            let mut words = [None; COLUMNS];
            let name = format!("key-{key}");
            words[2] = Some(name.as_str());
            gathered.add_unfolded(&Unfolded::new(words, logged));
        }
        let pieces: Vec<String> = gathered.pieces().collect();
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.len() < 2 * PIECE), "{}", pieces.len());
        let text = pieces.concat();
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE")).count(), 5);
        assert_eq!(text.lines().filter(|line| line.ends_with(r#"{hashed_api_key="key-2999"} 1"#)).count(), 1);
        assert_eq!(text.lines().count(), 5 * 3_002);
    }
}
