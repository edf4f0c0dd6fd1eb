//! The formats of rows of the log: JSON, JSON lines, or CSV. The request's `Accept` header selects one.

use std::borrow::Cow;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use headers_accept::Accept;
use mediatype::MediaType;
use serde::Serialize;

use crate::http::error::ApiError;
use crate::http::stream::CHUNK;
use crate::http::stream::writer::Writer;
use crate::store::log::SpendLog;

/// Format of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON list.
    Json,
    /// One JSON object per line.
    Lines,
    /// Comma-separated values (RFC 4180) with a header line. JSON columns contain JSON text.
    Csv,
}

impl Format {
    /// All formats. If the client has no preference, the first one that it accepts is used.
    const ALL: [Self; 3] = [Self::Json, Self::Lines, Self::Csv];

    /// Media type of the format.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    /// The format that the client prefers. It is JSON if the client sends no `Accept` header, one that cannot be
    /// parsed, or one that accepts none of the formats. LiteLLM ignores the header, so its clients send all kinds of
    /// values.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::among(&Self::ALL, headers).unwrap_or(Self::Json)
    }

    /// Whether the client accepts JSON. Only a client that accepts another of the formats and not JSON does not.
    pub fn admits_json(headers: &HeaderMap) -> bool {
        Self::of(headers) == Self::Json || Self::among(&[Self::Json], headers).is_some()
    }

    fn among(formats: &[Self], headers: &HeaderMap) -> Option<Self> {
        let lines: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
        let accept = lines.join(", ").parse::<Accept>().ok()?;
        // Offers each media type with and without its charset, because a client may name either.
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

/// How texts in CSV are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CsvTexts {
    /// Unchanged.
    Plain,
    /// Protected, so that no spreadsheet takes a text for a formula. A text that starts like a formula gets a single
    /// quote before it, and every cell is in double quotes.
    Safe,
}

/// Characters with which a formula can start, including their full-width East Asian forms, and characters that
/// spreadsheets skip before a formula.
const FORMULA_STARTS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

impl CsvTexts {
    fn writer(self) -> csv::Writer<Vec<u8>> {
        let style = if self == Self::Safe { csv::QuoteStyle::Always } else { csv::QuoteStyle::Necessary };
        csv::WriterBuilder::new().quote_style(style).from_writer(Vec::with_capacity(CHUNK))
    }

    fn cell<'a>(self, name: &str, text: Cow<'a, str>) -> Cow<'a, str> {
        if self == Self::Safe && !SpendLog::NUMBERS.contains(&name) && text.starts_with(FORMULA_STARTS) {
            return Cow::Owned(format!("'{text}"));
        }
        text
    }
}

/// Writes rows in one of the formats, and returns the output in chunks.
pub enum RowWriter {
    /// A JSON list.
    Json(Writer),
    /// JSON, with one row per line.
    Lines(Writer),
    /// CSV, with the way in which texts are written.
    Csv(Box<csv::Writer<Vec<u8>>>, CsvTexts),
}

impl RowWriter {
    /// Starts the output with the text before the first row.
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

    /// Writes a row. Returns the buffered text if it has at least the size of a chunk.
    pub fn row(&mut self, row: &SpendLog) -> Result<Option<Bytes>, ApiError> {
        match self {
            Self::Json(writer) => {
                writer.value(row)?;
                Ok(writer.chunk())
            }
            Self::Lines(writer) => {
                writer.value(row)?;
                writer.end_line();
                Ok(writer.chunk())
            }
            Self::Csv(writer, texts) => {
                for (name, text) in SpendLog::NAMES.into_iter().zip(row.texts()) {
                    writer.write_field(texts.cell(name, text).as_bytes()).map_err(broken)?;
                }
                writer.write_record(None::<&[u8]>).map_err(broken)?;
                if writer.get_ref().len() < CHUNK {
                    return Ok(None);
                }
                let full = std::mem::replace(writer.as_mut(), texts.writer());
                Ok(Some(Bytes::from(full.into_inner().map_err(broken)?)))
            }
        }
    }

    /// The remaining text, including the text after the last row.
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
