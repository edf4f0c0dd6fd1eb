//! Rows of `GET /spend/logs`: the newest 10,000, as in LiteLLM, or pages of any size with `limit` and `cursor`.

use std::collections::VecDeque;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::DateTime;
use futures_util::{Stream, TryStreamExt};
use litespend_archive::{Column, OwnedRow};

use crate::books;
use crate::books::rows::{ArchivedDays, ArchivedRows, is_before, log_row, position};
use crate::field_error::FieldError;
use crate::http::error::ApiError;
use crate::http::extract::QueryReader;
use crate::http::read_limits::Length;
use crate::http::reads::Reads;
use crate::http::routes::log::archived::with_archived_days;
use crate::http::routes::log::formats::{CsvTexts, Format, RowWriter};
use crate::http::state::AppState;
use crate::identity::key_filter;
use crate::store::log;
use crate::store::log::{LogPosition, ROW_CAP, SpendLogFilter};
use crate::store::reading::Reading;
use crate::store::{Connection, Statement};

/// Response header that says that the response contains only the newest rows.
const TRUNCATED: &str = "x-litellm-spend-logs-truncated";

/// Maximum number of rows of a page.
pub const PAGE_LIMIT: i64 = 1_000_000;

/// Maximum number of rows of a page that counts as a short read.
const SHORT_PAGE: i64 = 1_000;

/// Reads the query parameter `cursor`.
pub fn read_cursor(reader: &mut QueryReader) -> Option<LogPosition> {
    let cursor = reader.text("cursor")?;
    let position = decode(&cursor);
    if position.is_none() {
        reader.reject(FieldError::query("cursor", "value_error", "Input should be the cursor of a `next` link"));
    }
    position
}

/// Encodes a position as a self-contained cursor: microseconds and the request ID, in Base64.
fn encode(position: &LogPosition) -> String {
    let micros = position.start_time.and_utc().timestamp_micros();
    URL_SAFE_NO_PAD.encode(format!("{micros}.{}", position.request_id))
}

fn decode(cursor: &str) -> Option<LogPosition> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (micros, request_id) = text.split_once('.')?;
    let start_time = DateTime::from_timestamp_micros(micros.parse().ok()?)?.naive_utc();
    // PostgreSQL's timestamps start in 4713 BC, which is the year -4712, and its strings contain no NUL.
    let in_range = (-4_711..=250_000).contains(&chrono::Datelike::year(&start_time));
    (in_range && !request_id.contains('\0')).then(|| LogPosition { start_time, request_id: request_id.to_owned() })
}

/// The value of the `Link` header: the address of this page with the cursor of the next one.
fn next_link(uri: &Uri, position: &LogPosition) -> Option<HeaderValue> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            // Proxies may log headers, so the header contains the hash of the key and not the key.
            "api_key" => {
                query.append_pair(&name, &key_filter(&value));
            }
            "user_id" | "request_id" | "start_date" | "end_date" | "summarize" | "limit" | "csv" | "archive" => {
                query.append_pair(&name, &value);
            }
            // Parameters that the route does not know are dropped, because they may contain anything, even a key.
            _ => {}
        }
    }
    query.append_pair("cursor", &encode(position));
    HeaderValue::try_from(format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())).ok()
}

/// Sends rows, newest first: a page of `page` rows, or without `page` as many as LiteLLM returns.
///
/// With `archive`, rows of closed days come from the archive as far as the log does not have them.
pub async fn respond(
    reads: &Reads,
    archive: Option<&AppState>,
    mut filter: SpendLogFilter,
    page: Option<i64>,
    texts: CsvTexts,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Response, ApiError> {
    let format = Format::of(headers);
    let length = if page.is_some_and(|limit| limit <= SHORT_PAGE) { Length::Short } else { Length::Long };
    let mut reading = reads.start_for(length).await?;
    let mut archived = None;
    if let Some(state) = archive {
        (reading, archived) = with_archived_days(state, reads, reading, &mut filter, length).await?;
    }
    let (mut truncated, mut next) = (false, None);
    if page.is_some() {
        // The page and its link are read in one snapshot, so that the page ends where the link starts.
        reading = reading.snapshot().await?;
    }
    if let Some(limit) = page {
        next = log::end_of_page(reading.connection(), &filter, limit).await?;
        if let Some(days) = archived.as_ref().filter(|days| !is_after(next.as_ref(), days)) {
            next = merged_end(reading.connection(), &filter, days.clone(), limit).await?;
        }
    } else if !filter.names_request() {
        // One request has one row or a few, so nothing can be cut off.
        truncated = log::reaches(reading.connection(), &filter, ROW_CAP).await?;
        if let (false, Some(days)) = (truncated, &archived) {
            truncated = merged_end(reading.connection(), &filter, days.clone(), ROW_CAP - 1).await?.is_some();
        }
    }
    let rows = rows(reading, filter, archived, page, format, texts);
    let mut response = reads.send(rows, format.media_type()).await?;
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("accept"));
    if truncated {
        headers.insert(TRUNCATED, HeaderValue::from_static("true"));
    }
    if let Some(link) = next.and_then(|position| next_link(uri, &position)) {
        headers.insert(header::LINK, link);
    }
    Ok(response)
}

/// Whether a position is newer than all archived days.
fn is_after(position: Option<&LogPosition>, days: &ArchivedDays) -> bool {
    position.is_some_and(|position| days.end().is_none_or(|end| position.start_time >= end))
}

/// Like [`log::end_of_page`], for the rows of the log and the archive together.
async fn merged_end(
    connection: &mut Connection,
    filter: &SpendLogFilter,
    days: ArchivedDays,
    limit: i64,
) -> Result<Option<LogPosition>, ApiError> {
    let mut filter = filter.clone();
    let mut archived = Archived::new(Some(days), &mut filter, Vec::new());
    let mut before = VecDeque::new();
    // One more row than the page has says that there is a next page.
    let (mut left, mut last) = (limit.saturating_add(1), None);
    let mut is_logged = true;
    loop {
        if is_logged {
            let mut query = Statement::default();
            let mut logged = log::positions(connection, &mut query, &filter, left);
            while let Some(here) = logged.try_next().await? {
                while let Some(row) = pop_before(&mut before, &here) {
                    left -= 1;
                    if left == 0 {
                        return Ok(last);
                    }
                    last = Some(position(&row));
                }
                left -= 1;
                if left == 0 {
                    return Ok(last);
                }
                last = Some(here);
            }
        }
        for row in before.drain(..) {
            left -= 1;
            if left == 0 {
                return Ok(last);
            }
            last = Some(position(&row));
        }
        is_logged = is_logged && archived.need_log(connection, &filter).await?;
        let logged = is_logged.then_some(&mut *connection);
        let Some(rows) = archived.next(logged, &mut filter, left).await? else { return Ok(None) };
        before = rows;
    }
}

/// Takes the first row if it comes before a position.
fn pop_before(rows: &mut VecDeque<OwnedRow>, here: &LogPosition) -> Option<OwnedRow> {
    rows.pop_front_if(|row| is_before(&position(row), here))
}

/// The archived rows of an answer, in pieces. The log is read up to the end of each piece, and no further, before the next piece
/// is looked up in the log. The first piece is empty: the log's rows that are newer than the archive come first, and may be
/// enough.
struct Archived {
    days: Option<ArchivedDays>,
    columns: Vec<Column>,
    rows: Option<ArchivedRows>,
    /// The whole answer.
    filter: SpendLogFilter,
}

impl Archived {
    /// Limits the filter to the first piece.
    fn new(days: Option<ArchivedDays>, filter: &mut SpendLogFilter, columns: Vec<Column>) -> Self {
        let whole = filter.clone();
        if let Some(start_time) = days.as_ref().and_then(ArchivedDays::end) {
            filter.until = Some(LogPosition { start_time, request_id: String::new() });
        }
        Self { days, columns, rows: None, filter: whole }
    }

    /// Whether the log is needed after the piece that the filter is limited to.
    async fn need_log(&mut self, connection: &mut Connection, filter: &SpendLogFilter) -> Result<bool, books::Error> {
        match (&mut self.rows, &filter.until) {
            (Some(rows), Some(until)) => rows.need_log(connection, until.start_time).await,
            _ => Ok(true),
        }
    }

    /// The next piece, and the filter for the log's rows among it. `None` if there are none. Without a connection, the log is not
    /// needed.
    async fn next(
        &mut self,
        connection: Option<&mut Connection>,
        filter: &mut SpendLogFilter,
        wanted: i64,
    ) -> Result<Option<VecDeque<OwnedRow>>, books::Error> {
        let Some(end) = filter.until.take() else { return Ok(None) };
        if filter.after.as_ref().is_none_or(|after| is_before(after, &end)) {
            filter.after = Some(end);
        }
        if let Some(days) = self.days.take() {
            self.rows = Some(days.rows(&self.filter, std::mem::take(&mut self.columns)).await?);
        }
        let Some(rows) = &mut self.rows else { return Ok(None) };
        let piece = rows.piece(connection, usize::try_from(wanted).unwrap_or(usize::MAX)).await?;
        filter.until = piece.end;
        Ok(Some(piece.rows))
    }
}

fn rows(
    reading: Reading,
    mut filter: SpendLogFilter,
    archived: Option<ArchivedDays>,
    page: Option<i64>,
    format: Format,
    texts: CsvTexts,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let mut writer = RowWriter::new(format, texts)?;
        let mut left = page.unwrap_or(ROW_CAP);
        let mut left_out = 0;
        let mut archived = Archived::new(archived, &mut filter, Column::ALL.to_vec());
        let mut before = VecDeque::new();
        let mut reading = Some(reading);
        loop {
            while let Some(reading) = &mut reading && left > 0 {
                // A statement sorts its rows, so each one reads at most this many, however long the page is.
                let size = left.min(ROW_CAP);
                let mut found = 0;
                let mut last = None;
                {
                    let mut query = Statement::default();
                    let mut rows = log::newest(reading.connection(), &mut query, &filter, size);
                    while let Some(row) = rows.try_next().await? {
                        let here = LogPosition { start_time: row.start_time.0, request_id: row.request_id.clone() };
                        while left > 0 && let Some(row) = pop_before(&mut before, &here) {
                            left -= 1;
                            let row = log_row(row);
                            left_out += row.left_out();
                            if let Some(chunk) = writer.row(&row)? {
                                yield chunk;
                            }
                        }
                        if left == 0 {
                            break;
                        }
                        found += 1;
                        left -= 1;
                        left_out += row.left_out();
                        if let Some(chunk) = writer.row(&row)? {
                            yield chunk;
                        }
                        if found == size {
                            last = Some(here);
                        }
                    }
                }
                if last.is_none() {
                    break;
                }
                filter.after = last;
            }
            while left > 0 && let Some(row) = before.pop_front() {
                left -= 1;
                let row = log_row(row);
                left_out += row.left_out();
                if let Some(chunk) = writer.row(&row)? {
                    yield chunk;
                }
            }
            if left == 0 {
                break;
            }
            if let Some(logged) = &mut reading
                && !archived.need_log(logged.connection(), &filter).await?
                && let Some(reading) = reading.take()
            {
                // The rest comes from the archive alone.
                reading.finish().await?;
            }
            let logged = reading.as_mut().map(Reading::connection);
            let Some(rows) = archived.next(logged, &mut filter, left).await? else { break };
            before = rows;
        }
        if let Some(reading) = reading.take() {
            reading.finish().await?;
        }
        if left_out > 0 {
            tracing::warn!(columns = left_out, "the response contains null for JSON columns of the log that are too long");
        }
        yield writer.end()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is() {
        for (time, id) in [
            ("2026-03-01T10:00:00.123456", "chatcmpl-1"),
            ("1970-01-01T00:00:00", ""),
            ("1969-12-31T23:59:59.5", "a.b/ü"),
        ] {
            let position = LogPosition { start_time: time.parse().expect("a time"), request_id: id.to_owned() };
            assert_eq!(decode(&encode(&position)), Some(position));
        }
        for broken in [
            "",
            "x",
            "????",
            "MTIz",
            "YS5i",
            &URL_SAFE_NO_PAD.encode("9223372036854775807.x"),
            &URL_SAFE_NO_PAD.encode("1.\0"),
            &URL_SAFE_NO_PAD.encode(b"1.\xff"),
        ] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}

#[cfg(test)]
mod fuzz;
