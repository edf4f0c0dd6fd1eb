//! The forms in which rows of the log are sent: JSON, a line of JSON a row, or CSV, by the request's `Accept`.

use std::borrow::Cow;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use headers_accept::Accept;
use mediatype::MediaType;
use serde::Serialize;

use crate::http::error::ApiError;
use crate::http::stream::PIECE;
use crate::http::stream::writer::Writer;
use crate::store::log::SpendLog;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON list.
    Json,
    /// A JSON object a line.
    Lines,
    /// Comma-separated values (RFC 4180) under a line of names. JSON columns hold JSON text.
    Csv,
}

impl Format {
    /// All, in the order of preference where the client has none.
    const ALL: [Self; 3] = [Self::Json, Self::Lines, Self::Csv];

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    /// What the client likes best. JSON for one that says nothing, nothing readable, or wants what there isn't: the
    /// reference never looks, and its clients send all sorts of things.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::among(&Self::ALL, headers).unwrap_or(Self::Json)
    }

    /// Whether a client can take JSON: all but one that names another of the forms, and that alone.
    pub fn admits_json(headers: &HeaderMap) -> bool {
        Self::of(headers) == Self::Json || Self::among(&[Self::Json], headers).is_some()
    }

    fn among(formats: &[Self], headers: &HeaderMap) -> Option<Self> {
        let lines: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
        let accept = lines.join(", ").parse::<Accept>().ok()?;
        // With its charset and without: a client may name it or not.
        let offered: Vec<_> = formats
            .iter()
            .flat_map(|format| {
                let plain = format.media_type().split(';').next();
                [plain, Some(format.media_type())].into_iter().flatten().map(move |name| (format, name))
            })
            .filter_map(|(format, name)| Some((format, MediaType::parse(name).ok()?)))
            .collect();
        let chosen = accept.negotiate(offered.iter().map(|(_, media_type)| media_type))?;
        offered.iter().find(|(_, media_type)| media_type == chosen).map(|(format, _)| **format)
    }
}

/// How the texts of a CSV are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CsvTexts {
    /// As they are.
    Plain,
    /// So that no spreadsheet takes one for a formula: behind a single quote where it begins like one, and every cell in
    /// double quotes.
    Safe,
}

/// What a formula can begin with, also in the full width of East Asian keyboards, and what spreadsheets skip before it.
const FORMULA_STARTS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

impl CsvTexts {
    fn writer(self) -> csv::Writer<Vec<u8>> {
        let style = if self == Self::Safe { csv::QuoteStyle::Always } else { csv::QuoteStyle::Necessary };
        csv::WriterBuilder::new().quote_style(style).from_writer(Vec::with_capacity(PIECE))
    }

    fn cell<'a>(self, name: &str, text: Cow<'a, str>) -> Cow<'a, str> {
        if self == Self::Safe && !SpendLog::NUMBERS.contains(&name) && text.starts_with(FORMULA_STARTS) {
            return Cow::Owned(format!("'{text}"));
        }
        text
    }
}

/// Writes rows in one of the forms, and hands out what fills pieces.
pub enum RowWriter {
    /// A JSON list.
    Json(Writer),
    /// JSON, a line a row.
    Lines(Writer),
    /// CSV.
    Csv(Box<csv::Writer<Vec<u8>>>, CsvTexts),
}

impl RowWriter {
    /// With what comes before the first row.
    pub fn new(format: Format, texts: CsvTexts) -> Result<Self, ApiError> {
        Ok(match format {
            Format::Csv => {
                let mut writer = texts.writer();
                writer.write_record(SpendLog::NAMES).map_err(broken)?;
                Self::Csv(Box::new(writer), texts)
            }
            Format::Json => {
                let mut writer = Writer::new();
                writer.open_list();
                Self::Json(writer)
            }
            Format::Lines => Self::Lines(Writer::new()),
        })
    }

    /// Adds a row.
    pub fn row(&mut self, row: &SpendLog) -> Result<Option<Bytes>, ApiError> {
        match self {
            Self::Json(writer) => {
                writer.value(row)?;
                Ok(writer.piece())
            }
            Self::Lines(writer) => {
                writer.value(row)?;
                writer.end_line();
                Ok(writer.piece())
            }
            Self::Csv(writer, texts) => {
                for (name, text) in SpendLog::NAMES.into_iter().zip(row.texts()) {
                    writer.write_field(texts.cell(name, text).as_bytes()).map_err(broken)?;
                }
                writer.write_record(None::<&[u8]>).map_err(broken)?;
                if writer.get_ref().len() < PIECE {
                    return Ok(None);
                }
                let full = std::mem::replace(writer.as_mut(), texts.writer());
                Ok(Some(Bytes::from(full.into_inner().map_err(broken)?)))
            }
        }
    }

    /// What is left, with what comes after the last row.
    pub fn end(self) -> Result<Bytes, ApiError> {
        match self {
            Self::Json(mut writer) => {
                writer.close();
                Ok(writer.take())
            }
            Self::Lines(mut writer) => Ok(writer.take()),
            Self::Csv(writer, _) => Ok(Bytes::from(writer.into_inner().map_err(broken)?)),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> ApiError {
    ApiError::Internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_gets_what_it_likes_best_and_json_where_it_does_not_care() {
        for (accept, expected) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("application/*", Format::Json),
            ("application/json", Format::Json),
            ("application/x-ndjson", Format::Lines),
            ("text/csv", Format::Csv),
            ("TEXT/CSV", Format::Csv),
            ("text/csv; charset=utf-8", Format::Csv),
            ("text/*", Format::Csv),
            ("text/csv, */*;q=0.1", Format::Csv),
            ("text/csv;q=0.5, application/json", Format::Json),
            ("text/csv;q=0.5, application/json;q=0.4", Format::Csv),
            ("application/json;q=0.1, application/x-ndjson;q=0.2, text/csv;q=0.15", Format::Lines),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format::Json),
            ("text/html", Format::Json),
            ("nonsense", Format::Json),
            (",,,", Format::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a header"));
            assert_eq!(Format::of(&headers), expected, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Format::Json);
        let mut two = HeaderMap::new();
        two.append(header::ACCEPT, "text/html".parse().expect("a header"));
        two.append(header::ACCEPT, "text/csv".parse().expect("a header"));
        assert_eq!(Format::of(&two), Format::Csv);
    }
}
