//! The counters: their names and descriptions, and their text.

use std::borrow::Cow;
use std::fmt::Write;

use crate::metrics::{Description, Kind};
use crate::settings::spend_metrics::Label;
use crate::spend_metrics::columns::Series;
use crate::spend_metrics::push_label;
use crate::store::spend_metrics::{COLUMNS, Logged};

/// The value of all labels of the series that has what is beyond the limit.
const OTHER: &str = "other";

/// Bytes of a piece of the text.
pub const PIECE: usize = 64 * 1024;

/// The text of the counters, in pieces of about [`PIECE`] bytes: as a whole, it is much larger than what it is made of.
#[derive(Debug)]
pub struct Pieces {
    pub(super) texts: [Vec<Vec<String>>; COLUMNS],
    pub(super) labels: Vec<(Label, usize, usize)>,
    pub(super) series: Vec<(Series, Logged)>,
    /// The place in [`COUNTERS`], and the series that is next.
    pub(super) counter: usize,
    pub(super) at: usize,
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
pub(super) enum Value {
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
pub(super) static COUNTERS: [Counter; 5] = [
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
