//! Spend, tokens and budgets as Prometheus metrics with LiteLLM's names. The counters have all that was ever logged: they do
//! not fall when rows are deleted, and are the same on every server of a database.
//!
//! Names, types and labels are those of LiteLLM 1.110.2 (`types/integrations/prometheus.py`). LiteLLM's labels that the sums
//! do not have (such as `api_provider` or `service_tier`) are left out.

use std::collections::HashMap;
use std::fmt::Write;

use crate::settings::spend_metrics::{Label, SpendMetricsSettings};
use crate::store::spend_metrics::{Budget, Holder, Logged, Names};

/// The value of a label that is not known, as LiteLLM has it.
const UNKNOWN: &str = "None";

/// The value of all labels of the series that has what is beyond the limit.
const OTHER: &str = "other";

/// The figures of a series.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    requests: i64,
    spend: f64,
    prompt_tokens: i64,
    completion_tokens: i64,
    total_tokens: i64,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.spend += other.spend;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
    }
}

/// Names of keys, teams and users.
#[derive(Debug, Default)]
pub struct Directory {
    keys: HashMap<String, String>,
    teams: HashMap<String, String>,
    users: HashMap<String, String>,
}

impl Directory {
    /// A directory of aliases of keys and teams and email addresses of users.
    pub fn new(keys: Names, teams: Names, users: Names) -> Self {
        let known = |names: Names| names.into_iter().filter_map(|(id, name)| Some((id, name?))).collect();
        Self { keys: known(keys), teams: known(teams), users: known(users) }
    }
}

/// A team, user, key and model.
type Series = [Option<String>; 4];

/// Gathers what was logged, in as many series as are listed.
#[derive(Debug)]
pub struct Gathered<'a> {
    names: &'a Directory,
    labels: Vec<Label>,
    limit: usize,
    places: HashMap<String, usize>,
    series: Vec<(String, Figures)>,
    /// What is beyond the limit.
    other: Option<Figures>,
    /// Series that are not folded yet.
    new: Vec<(String, Figures)>,
}

impl<'a> Gathered<'a> {
    /// Nothing yet.
    pub fn new(settings: &SpendMetricsSettings, names: &'a Directory) -> Self {
        let labels = settings.labels.iter().copied().filter(|label| *label != Label::EndUser).collect();
        let limit = settings.series;
        Self { names, labels, limit, places: HashMap::new(), series: Vec::new(), other: None, new: Vec::new() }
    }

    /// Adds a row of [`crate::store::spend_metrics::logged`], which come in its order.
    pub fn add(&mut self, mut row: Logged) {
        let known = |text: Option<String>| text.filter(|text| !text.is_empty());
        let series =
            [known(row.team_id.take()), known(row.user_id.take()), known(row.api_key.take()), known(row.model.take())];
        let labels = labels_of(&series, &self.labels, self.names);
        let figures = figures(&row);
        if let Some((_, sum)) = self.places.get(&labels).and_then(|place| self.series.get_mut(*place)) {
            sum.add(figures);
        } else if row.number.is_none() {
            // It has no place in the order yet. More than there is room for are not listed anyway.
            if self.new.len() <= self.limit {
                self.new.push((labels, figures));
            }
        } else if self.series.len() < self.limit {
            self.places.insert(labels.clone(), self.series.len());
            self.series.push((labels, figures));
        } else {
            self.other.get_or_insert_default().add(figures);
        }
    }

    /// The text of the counters.
    pub fn render(mut self) -> String {
        // A series that is not folded yet might not get a place of its own. Then it waits until it is folded.
        if self.series.len() + self.new.len() <= self.limit {
            for (labels, figures) in std::mem::take(&mut self.new) {
                let place = *self.places.entry(labels.clone()).or_insert(self.series.len());
                match self.series.get_mut(place) {
                    Some((_, sum)) => sum.add(figures),
                    None => self.series.push((labels, figures)),
                }
            }
        }
        if let Some(figures) = self.other {
            let all = self.labels.iter().map(|label| format!("{}=\"{OTHER}\"", label.name()));
            self.series.push((all.collect::<Vec<_>>().join(","), figures));
        }
        let mut text = String::new();
        for (name, help, value) in COUNTERS {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, figures) in &self.series {
                let _ = writeln!(text, "{name}{{{labels}}} {}", value(figures));
            }
        }
        text
    }
}

/// A metric: its name, its description, and the value of a series.
type Counter = (&'static str, &'static str, fn(&Figures) -> String);

const COUNTERS: [Counter; 5] = [
    ("litellm_spend_metric_total", "Spend of all calls that were ever logged, in USD", |figures| {
        figures.spend.to_string()
    }),
    ("litellm_requests_metric_total", "Calls that were ever logged", |figures| figures.requests.to_string()),
    ("litellm_total_tokens_metric_total", "Input and output tokens of all calls that were ever logged", |figures| {
        figures.total_tokens.to_string()
    }),
    ("litellm_input_tokens_metric_total", "Input tokens of all calls that were ever logged", |figures| {
        figures.prompt_tokens.to_string()
    }),
    ("litellm_output_tokens_metric_total", "Output tokens of all calls that were ever logged", |figures| {
        figures.completion_tokens.to_string()
    }),
];

fn figures(row: &Logged) -> Figures {
    Figures {
        requests: row.requests,
        spend: row.spend,
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        total_tokens: row.total_tokens,
    }
}

fn labels_of([team, user, key, model]: &Series, labels: &[Label], names: &Directory) -> String {
    let mut text = String::new();
    for label in labels {
        let named =
            |id: &Option<String>, names: &HashMap<String, String>| id.as_ref().and_then(|id| names.get(id)).cloned();
        let value = match label {
            Label::HashedApiKey => key.clone(),
            Label::ApiKeyAlias => named(key, &names.keys),
            Label::Model => model.clone(),
            Label::Team => team.clone(),
            Label::TeamAlias => named(team, &names.teams),
            Label::User => user.clone(),
            Label::UserEmail => named(user, &names.users),
            Label::EndUser => continue,
        };
        push_label(&mut text, label.name(), value.as_deref().unwrap_or(UNKNOWN));
    }
    text
}

fn push_label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
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

/// The names of a kind's gauges in LiteLLM, and its labels.
struct Gauges {
    name: &'static str,
    subject: &'static str,
    id: &'static str,
    alias: Option<&'static str>,
}

fn gauges(of: Holder) -> Gauges {
    let (name, subject, id, alias) = match of {
        Holder::Team => ("team", "team", "team", Some("team_alias")),
        Holder::Organization => ("org", "organisation", "org_id", Some("org_alias")),
        Holder::Key => ("api_key", "API key", "hashed_api_key", Some("api_key_alias")),
        Holder::User => ("user", "user", "user", None),
        Holder::Customer => ("customer", "customer", "end_user", None),
    };
    Gauges { name, subject, id, alias }
}

/// The text of the gauges of a kind's budgets. Without a budget, all of it remains, and nothing else is listed.
pub fn render_budgets(of: Holder, budgets: &[Budget]) -> String {
    let Gauges { name, subject, id, alias } = gauges(of);
    let labels: Vec<String> = budgets
        .iter()
        .map(|budget| {
            let mut text = String::new();
            push_label(&mut text, id, &budget.id);
            if let Some(alias) = alias {
                // LiteLLM has no "None" here.
                push_label(&mut text, alias, budget.alias.as_deref().unwrap_or_default());
            }
            text
        })
        .collect();
    let mut text = String::new();
    let mut gauge = |name: String, help: String, value: &dyn Fn(&Budget) -> Option<f64>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, budget) in labels.iter().zip(budgets) {
            if let Some(value) = value(budget) {
                let value = if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() };
                let _ = writeln!(text, "{name}{{{labels}}} {value}");
            }
        }
    };
    gauge(
        format!("litellm_remaining_{name}_budget_metric"),
        format!("What is left of the budget of a {subject}, in USD; +Inf without a budget"),
        &|budget| Some(budget.max_budget.map_or(f64::INFINITY, |most| most - budget.spend.unwrap_or_default())),
    );
    gauge(format!("litellm_{name}_max_budget_metric"), format!("The budget of a {subject}, in USD"), &|budget| {
        budget.max_budget
    });
    gauge(
        format!("litellm_{name}_budget_remaining_hours_metric"),
        format!("Hours until the budget of a {subject} is reset"),
        &|budget| budget.remaining_hours,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(team: &str, key: &str, number: Option<i64>, spend: f64) -> Logged {
        Logged {
            team_id: Some(team.to_owned()),
            user_id: None,
            api_key: Some(key.to_owned()),
            model: Some("m".to_owned()),
            number,
            requests: 1,
            spend,
            prompt_tokens: 1,
            completion_tokens: 2,
            total_tokens: 3,
        }
    }

    fn spend(rows: Vec<Logged>, labels: &[Label], series: usize) -> Vec<String> {
        let names = Directory::new(vec![("k1".into(), Some("a \"b\" \\ c\n".into()))], Vec::new(), Vec::new());
        let settings = SpendMetricsSettings { labels: labels.to_vec(), series };
        let mut gathered = Gathered::new(&settings, &names);
        rows.into_iter().for_each(|row| gathered.add(row));
        let text = gathered.render();
        let lines = text.lines().filter(|line| line.starts_with("litellm_spend_metric_total"));
        lines.map(|line| line.trim_start_matches("litellm_spend_metric_total").to_owned()).collect()
    }

    #[test]
    fn labels_are_escaped_and_what_is_not_known_is_none() {
        let rows = vec![row("", "k1", Some(1), 0.5)];
        assert_eq!(
            spend(rows, &[Label::Team, Label::ApiKeyAlias], 10),
            [r#"{team="None",api_key_alias="a \"b\" \\ c\n"} 0.5"#]
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
