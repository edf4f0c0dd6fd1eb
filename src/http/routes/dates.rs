//! Dates in the query string, and their strict parsing: `YYYY-MM-DD`. Each route decides how it refuses an invalid date.

use chrono::NaiveDate;

use crate::http::extract::{FromQuery, QueryReader};

/// A range of days, both ends included.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DaysParams {
    /// Time from which to start viewing spend (YYYY-MM-DD)
    pub start_date: Option<String>,
    /// Time till which to view spend (YYYY-MM-DD)
    pub end_date: Option<String>,
}

impl FromQuery for DaysParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { start_date: reader.text("start_date"), end_date: reader.text("end_date") }
    }
}

/// Parses a date. `None` unless the text is exactly `YYYY-MM-DD` and the day exists.
pub fn parse_day(text: &str) -> Option<NaiveDate> {
    let bytes = text.as_bytes();
    let digits =
        |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    let shaped = bytes.len() == 10 && digits(0..4) && digits(5..7) && digits(8..10);
    if !shaped || bytes.get(4) != Some(&b'-') || bytes.get(7) != Some(&b'-') {
        return None;
    }
    // Python's calendar starts with year 1, and PostgreSQL's has no year 0.
    NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| !text.starts_with("0000"))
}

/// Message for a client that sent an invalid date. It does not repeat the client's text, because responses may be
/// logged.
pub fn not_a_day(name: &str) -> String {
    format!("{name} must be a YYYY-MM-DD date")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_days_in_one_spelling_are_days() {
        for (text, expected) in [
            ("2026-02-28", true),
            ("2024-02-29", true),
            ("2026-02-29", false),
            ("2026-2-1", false),
            ("20260201", false),
            ("2026-02-01T00:00:00", false),
            ("01/02/2026", false),
            ("+026-02-01", false),
            ("0000-01-01", false),
            ("２０２６-01-01", false),
            (" 2026-02-1", false),
            ("", false),
        ] {
            assert_eq!(parse_day(text).is_some(), expected, "{text:?}");
        }
    }
}
