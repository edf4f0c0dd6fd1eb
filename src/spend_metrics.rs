//! Spend, tokens and budgets as Prometheus metrics with LiteLLM's names. The counters have all that was ever logged: they do
//! not fall when rows are deleted, and are the same on every server of a database.
//!
//! Names, types and labels are those of LiteLLM 1.110.2 (`types/integrations/prometheus.py`). LiteLLM's labels that the log
//! does not have (such as `service_tier`) or that are different in each call (such as `client_ip`) are left out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use clap::ValueEnum;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::metrics::{Description, Kind};
use crate::settings::spend_metrics::{Label, SpendMetricsSettings};
use crate::store;
use crate::store::reading::Reading;
use crate::store::spend_metrics::remembered::RememberedSeries;
use crate::store::spend_metrics::{Budget, COLUMNS, Folded, Holder, Logged, Names, Sums, Unfolded};

/// The value of a label that is not known, as LiteLLM has it.
const UNKNOWN: &str = "None";

/// The value of all labels of the series that has what is beyond the limit.
const OTHER: &str = "other";

/// Names of keys, teams, users and organisations, of deleted ones as well. Of several names of one ID, the last counts.
#[derive(Debug, Default)]
pub struct Directory {
    keys: HashMap<String, String>,
    teams: HashMap<String, String>,
    users: HashMap<String, String>,
    organizations: HashMap<String, String>,
}

impl Directory {
    /// Adds aliases of keys.
    pub fn name_keys(&mut self, names: Names) {
        self.keys.extend(known(names));
    }

    /// Adds aliases of teams.
    pub fn name_teams(&mut self, names: Names) {
        self.teams.extend(known(names));
    }

    /// Adds email addresses of users.
    pub fn name_users(&mut self, names: Names) {
        self.users.extend(known(names));
    }

    /// Adds aliases of organisations.
    pub fn name_organizations(&mut self, names: Names) {
        self.organizations.extend(known(names));
    }
}

/// The names that are there.
fn known(names: Names) -> impl Iterator<Item = (String, String)> {
    names.into_iter().filter_map(|(id, name)| Some((id, name?)))
}

/// The sums that have the labels of these settings.
pub fn sums_for(settings: &SpendMetricsSettings) -> Sums {
    let is_in_usage = |label: &Label| column_of(*label) < USAGE_COLUMNS;
    if settings.labels().iter().all(is_in_usage) { Sums::Usage } else { Sums::Detail }
}

/// The columns of [`Sums::Usage`] are the first ones.
const USAGE_COLUMNS: usize = 4;

/// The column that gives a label.
fn column_of(label: Label) -> usize {
    match label {
        Label::Team | Label::TeamAlias => 0,
        Label::User | Label::UserEmail => 1,
        Label::HashedApiKey | Label::ApiKeyAlias => 2,
        Label::Model => 3,
        Label::EndUser => 4,
        Label::ApiProvider => 5,
        Label::OrgId | Label::OrgAlias => 6,
        Label::RequestedModel => 7,
        Label::ModelId => 8,
    }
}

/// The number of values that no listed series has.
const NOT_LISTED: u32 = u32::MAX;

/// How many IDs of a column are remembered, besides those of listed series.
const REMEMBERED: usize = 200_000;

/// Series that are added at once.
const AT_ONCE: usize = 25_000;

/// A series by the numbers of its values: two series have the same numbers if all their labels are equal.
type Series = [u32; COLUMNS];

/// A column of the series. Its values are texts of the labels that it gives, and have numbers.
#[derive(Debug, Default)]
struct Column {
    labels: Vec<Label>,
    /// Numbers of values by the IDs of words.
    by_id: FxHashMap<i32, u32>,
    /// Numbers of values by their texts.
    by_text: HashMap<String, u32>,
    /// The text of each label (`team="a"`) by the number of the value.
    texts: Vec<Vec<String>>,
}

impl Column {
    /// The number of a word's value. A new value gets one if `is_room`.
    fn number(&mut self, word: Option<&str>, names: &Directory, is_room: bool) -> u32 {
        let word = word.filter(|word| !word.is_empty());
        let named = |names: &'_ HashMap<String, String>| word.and_then(|word| names.get(word)).cloned();
        let texts: Vec<String> = self
            .labels
            .iter()
            .map(|label| {
                let value = match label {
                    Label::ApiKeyAlias => named(&names.keys),
                    Label::TeamAlias => named(&names.teams),
                    Label::UserEmail => named(&names.users),
                    Label::OrgAlias => named(&names.organizations),
                    Label::HashedApiKey
                    | Label::Model
                    | Label::Team
                    | Label::User
                    | Label::EndUser
                    | Label::ApiProvider
                    | Label::OrgId
                    | Label::RequestedModel
                    | Label::ModelId => word.map(str::to_owned),
                };
                let mut text = String::new();
                push_label(&mut text, label.name(), value.as_deref().unwrap_or(UNKNOWN));
                text
            })
            .collect();
        let all = texts.join(",");
        if let Some(number) = self.by_text.get(&all) {
            return *number;
        }
        if !is_room {
            return NOT_LISTED;
        }
        let number = u32::try_from(self.texts.len()).unwrap_or(NOT_LISTED);
        self.texts.push(texts);
        self.by_text.insert(all, number);
        number
    }
}

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

/// Bytes of a piece of the text.
pub const PIECE: usize = 64 * 1024;

/// The text of the counters, in pieces of about [`PIECE`] bytes: as a whole, it is much larger than what it is made of.
#[derive(Debug)]
pub struct Pieces {
    texts: [Vec<Vec<String>>; COLUMNS],
    labels: Vec<(Label, usize, usize)>,
    series: Vec<(Series, Logged)>,
    /// The place in [`COUNTERS`], and the series that is next.
    counter: usize,
    at: usize,
}

impl Pieces {
    fn push_labels(&self, text: &mut String, series: &Series) {
        for (place, (label, column, label_of_column)) in self.labels.iter().enumerate() {
            if place > 0 {
                text.push(',');
            }
            let number = series.get(*column).and_then(|number| usize::try_from(*number).ok());
            let texts = number.and_then(|number| self.texts.get(*column)?.get(number));
            match texts.and_then(|texts| texts.get(*label_of_column)) {
                Some(known) => text.push_str(known),
                None => push_label(text, label.name(), OTHER),
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = String::with_capacity(PIECE + 4096);
        while text.len() < PIECE {
            let Some((description, value)) = COUNTERS.get(self.counter) else { break };
            if self.at == 0 {
                text.push_str(&description.head());
            }
            let Some((series, logged)) = self.series.get(self.at) else {
                (self.counter, self.at) = (self.counter + 1, 0);
                continue;
            };
            text.push_str(&description.name);
            text.push('{');
            self.push_labels(&mut text, series);
            text.push_str("} ");
            match value(logged) {
                Value::Count(count) => text.push_str(itoa::Buffer::new().format(count)),
                Value::Amount(amount) => {
                    let _ = write!(text, "{amount}");
                }
            }
            text.push('\n');
            self.at += 1;
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The value of a counter.
enum Value {
    Count(i64),
    Amount(f64),
}

/// A counter, and its value of a series.
type Counter = (Description, fn(&Logged) -> Value);

/// When the counters are there.
const WITH_ROLLUPS: &str = "with rollups, for each series that was ever logged";

const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Description {
    Description {
        name: Cow::Borrowed(name),
        kind: Kind::Counter,
        labels: Cow::Borrowed(&[]),
        unit,
        help: Cow::Borrowed(help),
        appears: Cow::Borrowed(WITH_ROLLUPS),
    }
}

/// The counters. Their labels are a matter of settings.
static COUNTERS: [Counter; 5] = [
    (counter("litellm_spend_metric_total", "USD", "Spend of all calls that were ever logged, in USD"), |logged| {
        Value::Amount(logged.total_spend())
    }),
    (counter("litellm_requests_metric_total", "calls", "Calls that were ever logged"), |logged| {
        Value::Count(logged.requests)
    }),
    (
        counter(
            "litellm_total_tokens_metric_total",
            "tokens",
            "Input and output tokens of all calls that were ever logged",
        ),
        |logged| Value::Count(logged.total_tokens),
    ),
    (
        counter("litellm_input_tokens_metric_total", "tokens", "Input tokens of all calls that were ever logged"),
        |logged| Value::Count(logged.prompt_tokens),
    ),
    (
        counter("litellm_output_tokens_metric_total", "tokens", "Output tokens of all calls that were ever logged"),
        |logged| Value::Count(logged.completion_tokens),
    ),
];

fn push_label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
}

/// All metrics of `/metrics/spend`.
pub fn descriptions() -> Vec<Description> {
    let labels: Vec<&'static str> = Label::value_variants().iter().map(|label| label.name()).collect();
    let counters = COUNTERS.iter().map(|(counter, _)| Description { labels: labels.clone().into(), ..counter.clone() });
    counters.chain(HOLDERS.into_iter().flat_map(budget_descriptions)).chain([NOT_LISTED_BUDGETS.clone()]).collect()
}

/// Everybody who may have a budget, in the order of the answer.
pub const HOLDERS: [Holder; 5] = [Holder::Team, Holder::Organization, Holder::Key, Holder::User, Holder::Customer];

/// How many budgets are beyond the limit.
static NOT_LISTED_BUDGETS: Description = Description {
    name: Cow::Borrowed("litespend_budgets_not_listed"),
    kind: Kind::Gauge,
    labels: Cow::Borrowed(&["kind"]),
    unit: "budgets",
    help: Cow::Borrowed(
        "Budgets that are not among the gauges because there are more than `--metrics-series`, by the kind of their owners \
         (`team`, `org`, `api_key`, `user`, `customer`); owners without a limit count, too",
    ),
    appears: Cow::Borrowed("always; of customers with the label `end_user` in `--metrics-labels`"),
};

/// The name of a kind of holders in the names of LiteLLM's metrics.
fn name_of(of: Holder) -> &'static str {
    match of {
        Holder::Team => "team",
        Holder::Organization => "org",
        Holder::Key => "api_key",
        Holder::User => "user",
        Holder::Customer => "customer",
    }
}

/// The text of the gauge of budgets that are not listed.
pub fn render_not_listed(not_listed: &[(Holder, i64)]) -> String {
    let mut text = NOT_LISTED_BUDGETS.head();
    for (of, count) in not_listed {
        let _ = writeln!(text, "{}{{kind=\"{}\"}} {count}", NOT_LISTED_BUDGETS.name, name_of(*of));
    }
    text
}

/// The gauges of a kind's budgets: what is left, the budget, and the hours until it is reset.
fn budget_descriptions(of: Holder) -> [Description; 3] {
    // The names and labels are LiteLLM's.
    let name = name_of(of);
    let (subject, labels): (_, &'static [&'static str]) = match of {
        Holder::Team => ("team", &["team", "team_alias"]),
        Holder::Organization => ("organisation", &["org_id", "org_alias"]),
        Holder::Key => ("API key", &["hashed_api_key", "api_key_alias"]),
        Holder::User => ("user", &["user"]),
        Holder::Customer => ("customer", &["end_user"]),
    };
    let condition = if of == Holder::Customer { "; with the label `end_user` in `--metrics-labels`" } else { "" };
    let gauge = |name: String, unit, help: String, appears: String| Description {
        name: name.into(),
        kind: Kind::Gauge,
        labels: labels.into(),
        unit,
        help: help.into(),
        appears: (appears + condition).into(),
    };
    let all = match of {
        Holder::Organization | Holder::Customer => {
            format!("for each {subject} that has a row in LiteLLM's table of budgets")
        }
        Holder::Key => "for each API key, except those of the dashboard's sessions".to_owned(),
        Holder::Team | Holder::User => format!("for each {subject}"),
    };
    [
        gauge(
            format!("litellm_remaining_{name}_budget_metric"),
            "USD",
            format!("What is left of the {subject}'s budget, in USD; +Inf without a budget"),
            all,
        ),
        gauge(
            format!("litellm_{name}_max_budget_metric"),
            "USD",
            format!("The {subject}'s budget, in USD"),
            format!("for each {subject} that has a budget"),
        ),
        gauge(
            format!("litellm_{name}_budget_remaining_hours_metric"),
            "hours",
            format!("Hours until the {subject}'s budget is reset"),
            format!("for each {subject} whose budget is reset"),
        ),
    ]
}

/// The text of the gauges of a kind's budgets. Without a budget, all of it remains, and nothing else is listed.
pub fn render_budgets(of: Holder, budgets: &[Budget]) -> String {
    let descriptions = budget_descriptions(of);
    let [Description { labels, .. }, ..] = &descriptions;
    let (id, alias) = (labels.first().copied().unwrap_or_default(), labels.get(1).copied());
    let labels: Vec<String> = budgets
        .iter()
        .map(|budget| {
            let mut text = String::new();
            push_label(&mut text, id, &budget.id);
            if let Some(alias) = alias {
                text.push(',');
                // LiteLLM has no "None" here.
                push_label(&mut text, alias, budget.alias.as_deref().unwrap_or_default());
            }
            text
        })
        .collect();
    let values: [fn(&Budget) -> Option<f64>; 3] = [
        |budget| Some(budget.max_budget.map_or(f64::INFINITY, |most| most - budget.spend.unwrap_or_default())),
        |budget| budget.max_budget,
        |budget| budget.remaining_hours,
    ];
    let mut text = String::new();
    for (description, value) in descriptions.iter().zip(values) {
        text += &description.head();
        for (labels, budget) in labels.iter().zip(budgets) {
            if let Some(value) = value(budget) {
                let value = if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() };
                let _ = writeln!(text, "{}{{{labels}}} {value}", description.name);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn budgets_are_spelled_as_litellm_spells_them() {
        let budget = |id: &str, max_budget, remaining_hours| Budget {
            id: id.into(),
            alias: None,
            max_budget,
            spend: Some(3.0),
            remaining_hours,
        };
        let text = render_budgets(Holder::Team, &[budget("a", Some(2.0), Some(-1.5)), budget("b", None, None)]);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                r#"litellm_remaining_team_budget_metric{team="a",team_alias=""} -1"#,
                r#"litellm_remaining_team_budget_metric{team="b",team_alias=""} +Inf"#,
                r#"litellm_team_max_budget_metric{team="a",team_alias=""} 2"#,
                r#"litellm_team_budget_remaining_hours_metric{team="a",team_alias=""} -1.5"#,
            ]
        );
    }
}
