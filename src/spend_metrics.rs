//! Spend, tokens and budgets as Prometheus metrics with LiteLLM's names. The counters have all that was ever logged: they do
//! not fall when rows are deleted, and are the same on every server of a database.
//!
//! Names, types and labels are those of LiteLLM 1.110.2 (`types/integrations/prometheus.py`). LiteLLM's labels that the log
//! does not have (such as `service_tier`) or that are different in each call (such as `client_ip`) are left out.

mod budgets;
mod columns;
mod counters;
mod directory;
mod gathering;

pub use crate::spend_metrics::budgets::{HOLDERS, render_budgets, render_not_listed};
pub use crate::spend_metrics::columns::sums_for;
pub use crate::spend_metrics::counters::{PIECE, Pieces};
pub use crate::spend_metrics::directory::Directory;
pub use crate::spend_metrics::gathering::Gathered;

use clap::ValueEnum;

use crate::metrics::Description;
use crate::settings::spend_metrics::Label;
use crate::spend_metrics::budgets::{NOT_LISTED_BUDGETS, budget_descriptions};
use crate::spend_metrics::counters::COUNTERS;

/// All metrics of `/metrics/spend`.
pub fn descriptions() -> Vec<Description> {
    let labels: Vec<&'static str> = Label::value_variants().iter().map(|label| label.name()).collect();
    let counters = COUNTERS.iter().map(|(counter, _)| Description { labels: labels.clone().into(), ..counter.clone() });
    counters.chain(HOLDERS.into_iter().flat_map(budget_descriptions)).chain([NOT_LISTED_BUDGETS.clone()]).collect()
}

/// Writes a label with its value, as the text format of Prometheus has it.
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
