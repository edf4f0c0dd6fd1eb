//! Off-peak prices: `off_peak_pricing` in a table entry replaces prices while one of its daily windows is open.
//!
//! Windows are in UTC, in the form `HH:MM-HH:MM`. The start is inclusive and the end is exclusive. A window may extend
//! past midnight. A window whose start equals its end covers the whole day. A window may be limited to weekdays in the
//! time zone `weekday_timezone`. Malformed windows are ignored.

use chrono::{DateTime, Datelike, Timelike, Utc};
use chrono_tz::Tz;
use rust_decimal::Decimal;
use serde_json::Value;

use crate::bill::amount;
use crate::table::prices::Rate;

/// The off-peak prices of a model, and the times at which they apply.
#[derive(Debug, Clone, PartialEq)]
pub struct OffPeak {
    rules: Vec<Rule>,
    time_zone: Tz,
    pub input: Option<Decimal>,
    pub output: Option<Decimal>,
    pub cache_read: Option<Decimal>,
    pub cache_read_explicit: Option<Decimal>,
    pub cache_write: Option<Decimal>,
    pub reasoning: Option<Decimal>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    /// Start and end, in minutes since midnight.
    windows: Vec<(u32, u32)>,
    /// Bit n stands for ISO weekday n (Monday is 1). `None` means every day.
    weekdays: Option<u8>,
}

impl OffPeak {
    pub fn from_value(value: &Value) -> Option<Self> {
        let block = value.as_object()?;
        let price = |field: &str| block.get(field).and_then(amount::from_value);
        let mut rules = Vec::new();
        if let Some(hours) = block.get("hours_utc") {
            rules.push(Rule { windows: windows(hours), weekdays: None });
        }
        if let Some(Value::Array(entries)) = block.get("windows") {
            rules.extend(entries.iter().filter_map(|entry| {
                let entry = entry.as_object()?;
                Some(Rule {
                    windows: windows(entry.get("hours_utc")?),
                    weekdays: match entry.get("weekdays") {
                        None | Some(Value::Null) => None,
                        Some(Value::Array(days)) => {
                            Some(days.iter().filter_map(weekday).fold(0, |mask, day| mask | (1 << day)))
                        }
                        Some(_) => Some(0),
                    },
                })
            }));
        }
        Some(Self {
            rules,
            time_zone: block
                .get("weekday_timezone")
                .and_then(Value::as_str)
                .and_then(|name| name.trim().parse().ok())
                .unwrap_or(Tz::UTC),
            input: price("input_cost_per_token"),
            output: price("output_cost_per_token"),
            cache_read: price("cache_read_input_token_cost"),
            cache_read_explicit: price("explicit_cache_read_input_token_cost"),
            cache_write: price("cache_creation_input_token_cost"),
            reasoning: price("output_cost_per_reasoning_token"),
        })
    }

    /// Whether a window is open at the given time.
    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        let minute = now.hour() * 60 + now.minute();
        self.rules.iter().any(|rule| {
            rule.windows.iter().any(|(start, end)| {
                if start < end { (*start..*end).contains(&minute) } else { minute >= *start || minute < *end }
            }) && rule.weekdays.is_none_or(|mask| {
                let day = now.with_timezone(&self.time_zone).weekday().number_from_monday();
                mask & (1 << day) != 0
            })
        })
    }

    pub fn rate(&self, rate: Rate) -> Option<Decimal> {
        match rate {
            Rate::Input => self.input,
            Rate::Output => self.output,
            Rate::CacheRead => self.cache_read,
            Rate::CacheReadExplicit => self.cache_read_explicit,
            Rate::CacheWrite => self.cache_write,
            Rate::Reasoning => self.reasoning,
            _ => None,
        }
    }
}

fn windows(value: &Value) -> Vec<(u32, u32)> {
    match value {
        Value::String(window) => window_minutes(window).into_iter().collect(),
        Value::Array(windows) => windows.iter().filter_map(|window| window_minutes(window.as_str()?)).collect(),
        _ => Vec::new(),
    }
}

fn window_minutes(window: &str) -> Option<(u32, u32)> {
    let (start, end) = window.split_once('-')?;
    Some((minute_of_day(start)?, minute_of_day(end)?))
}

fn minute_of_day(time: &str) -> Option<u32> {
    let (hours, minutes) = time.trim().split_once(':')?;
    let digits = |text: &str| (text.len() <= 2).then(|| text.parse::<u32>().ok()).flatten();
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

fn weekday(value: &Value) -> Option<u8> {
    let day = match value {
        Value::Number(number) => number.as_u64()?,
        Value::String(name) => match name.trim().to_lowercase().as_str() {
            "mon" | "monday" => 1,
            "tue" | "tues" | "tuesday" => 2,
            "wed" | "wednesday" => 3,
            "thu" | "thur" | "thurs" | "thursday" => 4,
            "fri" | "friday" => 5,
            "sat" | "saturday" => 6,
            "sun" | "sunday" => 7,
            _ => return None,
        },
        _ => return None,
    };
    u8::try_from(day).ok().filter(|day| (1..=7).contains(day))
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn windows_are_half_open_and_may_pass_midnight() {
        let off_peak = OffPeak::from_value(&json!({"hours_utc": "16:30-00:30"})).unwrap();
        assert!(off_peak.is_open(at("2026-01-01T16:30:00Z")));
        assert!(off_peak.is_open(at("2026-01-01T00:29:59Z")));
        assert!(!off_peak.is_open(at("2026-01-01T00:30:00Z")));
        assert!(!off_peak.is_open(at("2026-01-01T16:29:59Z")));
    }

    #[test]
    fn weekdays_are_read_in_the_time_zone() {
        let off_peak = OffPeak::from_value(&json!({
            "weekday_timezone": "Asia/Shanghai",
            "windows": [{"hours_utc": "00:00-00:00", "weekdays": [6, "Sun"]}],
        }))
        .unwrap();
        // Friday 16:00 UTC is Saturday in Shanghai.
        assert!(off_peak.is_open(Utc.with_ymd_and_hms(2026, 1, 2, 16, 0, 0).unwrap()));
        assert!(!off_peak.is_open(Utc.with_ymd_and_hms(2026, 1, 2, 15, 59, 0).unwrap()));
        assert!(!off_peak.is_open(Utc.with_ymd_and_hms(2026, 1, 4, 16, 0, 0).unwrap()));
    }

    #[test]
    fn malformed_windows_are_ignored() {
        for hours in [json!("8-9"), json!("25:00-26:00"), json!(5), json!(["x"])] {
            let off_peak = OffPeak::from_value(&json!({"hours_utc": hours})).unwrap();
            assert!(!off_peak.is_open(at("2026-01-01T08:30:00Z")));
        }
    }
}
