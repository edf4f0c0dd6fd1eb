//! `litespend metrics-reference`: all metrics, as `docs/metrics.md`.

use std::fmt::Write;

use crate::cli::database::Failure;
use crate::cli::output;
use crate::metrics::{Description, METRICS};
use crate::settings::spend_metrics::Label;
use crate::spend_metrics;

/// Runs `litespend metrics-reference`.
pub fn run() -> Result<(), Failure> {
    let text = markdown();
    output::text(format_args!("{text}"));
    Ok(())
}

/// The reference as Markdown: the output of `litespend metrics-reference`, and the content of `docs/metrics.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "<!-- Written by `litespend metrics-reference`. Change the descriptions in src/metrics.rs or src/spend_metrics/. -->

# Metrics

Every metric that litespend serves, in the text format of Prometheus. [Operations](operations.md#metrics) says who may read them.
A histogram also has the series `..._bucket` (with the label `le`), `..._sum` and `..._count`.

## `/metrics`

Metrics of one server. They start with its process.

",
    );
    table(&mut text, &METRICS);
    let _ = write!(
        text,
        "
## `/metrics/spend`

Spend of the whole database, the same on every server; see [Spend as metrics](operations.md#spend-as-metrics). The counters have
the labels that `--metrics-labels` chooses, by default `{}`.

",
        Label::DEFAULT.replace(',', "`, `")
    );
    table(&mut text, &spend_metrics::descriptions());
    text
}

fn table(text: &mut String, metrics: &[Description]) {
    text.push_str("| metric | type | labels | unit | meaning | when it appears |\n|---|---|---|---|---|---|\n");
    for Description { name, kind, labels, unit, help, appears } in metrics {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{name}` | {} | {labels} | {unit} | {help} | {appears} |", kind.name());
    }
}
