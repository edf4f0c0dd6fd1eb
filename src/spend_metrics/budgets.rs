//! The gauges of budgets: their names and descriptions, and their text.

use std::borrow::Cow;
use std::fmt::Write;

use crate::metrics::{Description, Kind};
use crate::spend_metrics::push_label;
use crate::store::spend_metrics::{Budget, Holder};

/// Everybody who may have a budget, in the order of the answer.
pub const HOLDERS: [Holder; 5] = [Holder::Team, Holder::Organization, Holder::Key, Holder::User, Holder::Customer];

/// How many budgets are beyond the limit.
pub(super) static NOT_LISTED_BUDGETS: Description = Description {
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
pub(super) fn budget_descriptions(of: Holder) -> [Description; 3] {
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
