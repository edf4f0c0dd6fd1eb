//! Prices bodies of `POST /spend/calculate`: reads one JSON object a line, and writes `{"cost"}`, or `{"status", "message"}`
//! of the refusal, a line. The first argument is a moment (`2026-09-22T08:30:00Z`) that decides whether off-peak prices apply.
//! Its answers can be compared with those of LiteLLM's own code.

use std::io::{BufRead, BufWriter, Write};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use litespend_pricing::{CalculateRequest, CustomModels, PriceTable, Pricer};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

fn answer(pricer: &Pricer, line: &str, now: DateTime<Utc>) -> Result<Value, Failure> {
    let Ok(request) = CalculateRequest::from_body(serde_json::from_str(line)?) else {
        return Ok(json!({"status": 422}));
    };
    Ok(match pricer.calculate(&request, now) {
        Ok(calculation) => json!({"cost": calculation.cost_f64()}),
        Err(error) => json!({"status": 400, "message": error.to_string()}),
    })
}

fn main() -> Result<(), Failure> {
    let moment = std::env::args().nth(1);
    let now = moment.map_or_else(|| Ok(Utc::now()), |moment| moment.parse())?;
    let pricer = Pricer::new(Arc::new(PriceTable::embedded()?), CustomModels::default());
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        writeln!(out, "{}", answer(&pricer, &line?, now)?)?;
    }
    Ok(())
}
