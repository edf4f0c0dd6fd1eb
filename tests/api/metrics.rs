//! The reference of metrics: the committed file is what the program prints, and it lists whatever a scrape has.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use litespend::metrics::METRICS;
use litespend::rollups::folding;
use litespend::settings::Settings;
use litespend::settings::spend_metrics::{Label, SpendMetricsSettings};
use litespend::spend_metrics;

use crate::support::{MASTER_KEY, TestApp, settings};

fn committed() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap()
}

#[test]
fn the_committed_reference_is_the_generated_one() {
    assert!(
        committed() == litespend::cli::metrics_reference::markdown(),
        "docs/metrics.md is out of date: cargo run -- metrics-reference >docs/metrics.md"
    );
}

/// A metric of the committed reference: its type, its labels, and its meaning.
struct Listed {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// The metrics that the committed reference lists for a route.
fn listed(route: &str) -> BTreeMap<String, Listed> {
    let text = committed();
    let section = text.split("\n## ").find(|section| section.starts_with(&format!("`{route}`\n"))).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let labels =
            cells[2].split(", ").filter(|label| !label.is_empty()).map(|label| label.trim_matches('`').to_owned());
        let metric = Listed { kind: cells[1].to_owned(), labels: labels.collect(), help: cells[4].to_owned() };
        (cells[0].trim_matches('`').to_owned(), metric)
    })
    .collect()
}

/// Compares every line of a scrape with the reference. Returns the names of the metrics that have samples.
fn compare(text: &str, listed: &BTreeMap<String, Listed>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').unwrap();
            let metric = listed.get(name).unwrap_or_else(|| panic!("the reference lacks {name}"));
            assert_eq!(kind, metric.kind, "{name}");
        } else if let Some(head) = line.strip_prefix("# HELP ") {
            let (name, help) = head.split_once(' ').unwrap();
            let metric = listed.get(name).unwrap_or_else(|| panic!("the reference lacks {name}"));
            assert_eq!(help, metric.help, "{name}");
        } else {
            let end = line.find(['{', ' ']).unwrap();
            let (series, rest) = line.split_at(end);
            let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| series.strip_suffix(part));
            let family = parts.chain([series]).find(|name| listed.contains_key(*name));
            let family = family.unwrap_or_else(|| panic!("the reference lacks {series}"));
            let metric = &listed[family];
            let labels = rest.strip_prefix('{').map_or("", |rest| rest.rsplit_once('}').unwrap().0);
            let names = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(name, _)| name);
            for name in names.filter(|name| *name != "le" || metric.kind != "histogram") {
                assert!(metric.labels.contains(name), "the reference lacks the label {name} of {family}: {line}");
            }
            found.insert(family.to_owned());
        }
    }
    found
}

#[tokio::test]
async fn the_reference_lists_whatever_a_scrape_has() {
    let app = TestApp::seeded().await;
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    let labels = Label::value_variants().to_vec();
    let all = Settings { spend_metrics: SpendMetricsSettings::new(&labels, 3), ..settings() };
    let server = app.beside(all);
    server.state.refresh_rollups().await.unwrap();
    server.get("/spend/tags", MASTER_KEY).await;

    let answer = server.get("/metrics", MASTER_KEY).await;
    let found = compare(&answer.text, &listed("/metrics"));
    let always = METRICS.iter().filter(|metric| metric.appears == "always").map(|metric| metric.name.to_string());
    let missing: Vec<String> = always.filter(|name| !found.contains(name)).collect();
    assert!(missing.is_empty(), "not always there: {missing:?}");
    assert!(found.contains("litespend_http_request_duration_seconds"), "{found:?}");

    let answer = server.get("/metrics/spend", MASTER_KEY).await;
    let found = compare(&answer.text, &listed("/metrics/spend"));
    assert!(found.contains("litellm_spend_metric_total") && found.contains("litellm_remaining_team_budget_metric"));
    for metric in spend_metrics::descriptions() {
        assert!(answer.text.contains(&metric.head()), "{} has its description", metric.name);
    }
}
