//! Compares this crate with all recorded answers of LiteLLM 1.109.1. Where LiteLLM 1.110.2 answers differently, its
//! answer counts instead: `tests/data/changed_answers.json.gz`, which `tests/record_answers.py` makes with LiteLLM's own
//! code. `LITESPEND_CONFORMANCE` names another directory than `tests/conformance`.

#![expect(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use litespend_pricing::{CalculateRequest, CustomModels, PriceTable, Pricer};
use serde_json::{Map, Value};

fn directory() -> PathBuf {
    std::env::var_os("LITESPEND_CONFORMANCE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/conformance")), PathBuf::from)
}

fn read(name: &str) -> String {
    read_file(&directory().join(name))
}

fn read_file(path: &Path) -> String {
    let file = std::fs::File::open(path).unwrap();
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    } else {
        BufReader::new(file).read_to_string(&mut text).unwrap();
    }
    text
}

fn pricer() -> Pricer {
    Pricer::new(Arc::new(PriceTable::embedded().unwrap()), CustomModels::default())
}

/// A time outside every off-peak window. The answers were recorded on this Tuesday.
fn now() -> DateTime<Utc> {
    "2026-09-22T08:30:00Z".parse().unwrap()
}

/// Returns the cost, or the reason for a refusal.
fn ask(pricer: &Pricer, body: &Value, now: DateTime<Utc>) -> Result<f64, String> {
    let body: Map<String, Value> = body.as_object().ok_or("not an object")?.clone();
    let request = CalculateRequest::from_body(body).map_err(|errors| format!("{errors:?}"))?;
    let calculation = pricer.calculate(&request, now).map_err(|error| error.to_string())?;
    let sum = calculation.components.iter().map(|line| line.cost).sum();
    assert_eq!(calculation.cost, sum, "the lines don't add up: {body:?}", body = request);
    Ok(calculation.cost_f64())
}

fn is_same(expected: Option<f64>, actual: &Result<f64, String>) -> bool {
    match (expected, actual) {
        (None, Err(_)) => true,
        (Some(expected), Ok(actual)) => {
            let difference = (expected - actual).abs();
            // This is tighter than required: the prices of small requests are themselves below 1e-9.
            difference <= 1e-9 * expected.abs().max(actual.abs()) || difference < 1e-18
        }
        _ => false,
    }
}

/// The answers of LiteLLM 1.110.2 that differ from the recorded ones: the cost, or `None` for a refusal.
fn changed_answers(kind: &str) -> BTreeMap<String, Option<f64>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/changed_answers.json.gz");
    let changed: Value = serde_json::from_str(&read_file(Path::new(path))).unwrap();
    let of_kind = |(name, case): (&String, &Value)| {
        let name = name.strip_prefix(kind)?.strip_prefix(' ')?;
        Some((name.to_owned(), case.get("cost")?.as_f64()))
    };
    changed.get("answers").and_then(Value::as_object).unwrap().iter().filter_map(of_kind).collect()
}

struct Tally {
    what: &'static str,
    changed: BTreeMap<String, Option<f64>>,
    matched: usize,
    total: usize,
    differing: Vec<String>,
}

impl Tally {
    fn new(what: &'static str) -> Self {
        Self { what, changed: changed_answers(what), matched: 0, total: 0, differing: Vec::new() }
    }

    fn add(&mut self, name: &str, recorded: Option<f64>, actual: Result<f64, String>) {
        self.total += 1;
        let expected = self.changed.remove(name).unwrap_or(recorded);
        if is_same(expected, &actual) {
            self.matched += 1;
        } else {
            self.differing.push(format!("{name}: expected {expected:?}, got {actual:?}"));
        }
    }

    fn finish(self) {
        let what = self.what;
        println!("{what}: matched {} / {}", self.matched, self.total);
        for line in self.differing.iter().take(60) {
            println!("  {line}");
        }
        assert_eq!(self.matched, self.total, "{what}");
        assert!(self.total > 0, "{what}");
        assert!(self.changed.is_empty(), "answers to no recording: {:?}", self.changed);
    }
}

#[test]
fn every_recorded_cost_is_met() {
    let variants: BTreeMap<String, Value> = serde_json::from_str(&read("cost_variants.json")).unwrap();
    let pricer = pricer();
    let mut tally = Tally::new("costs");
    for line in read("cost_answers.jsonl.gz").lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let model = record["model"].as_str().unwrap();
        for (variant, answer) in record["answers"].as_object().unwrap() {
            let mut body = variants[variant].clone();
            if body.get("model").is_some() {
                body["model"] = model.into();
            } else {
                body["completion_response"]["model"] = model.into();
            }
            let actual = ask(&pricer, &body, now());
            tally.add(&format!("{model} {variant}"), answer.as_f64(), actual);
        }
    }
    tally.finish();
}

#[test]
fn every_recorded_token_count_is_met() {
    let pricer = pricer();
    let mut tally = Tally::new("tokens");
    for line in read("token_answers.jsonl").lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        for (model, answer) in record["answers"].as_object().unwrap() {
            let body = serde_json::json!({"model": model, "messages": record["messages"]});
            let actual = ask(&pricer, &body, now());
            tally.add(&format!("{model} {}", record["name"]), answer.as_f64(), actual);
        }
    }
    tally.finish();
}

#[test]
fn every_recorded_request_to_calculate_is_met() {
    let pricer = pricer();
    let records: Vec<Value> = serde_json::from_str(&read("http_answers.json.gz")).unwrap();
    let mut tally = Tally::new("requests");
    for record in &records {
        let name = record["name"].as_str().unwrap_or_default();
        // The HTTP layer handles bodies that are not JSON objects.
        if !name.starts_with("calc.") || !record["body"].is_object() {
            continue;
        }
        let answer = &record["answer"];
        if answer["status"] == 422 {
            let body = record["body"].as_object().unwrap().clone();
            let errors = CalculateRequest::from_body(body).unwrap_err();
            assert_eq!(serde_json::to_value(errors).unwrap(), answer["body"]["detail"]);
        }
        let actual = ask(&pricer, &record["body"], now());
        tally.add(name, answer["body"]["cost"].as_f64(), actual);
    }
    tally.finish();
}
