//! Rows of `GET /spend/logs`: the newest 10,000, as in LiteLLM, or pages of any size with `limit` and `cursor`.

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::DateTime;
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};
use litespend_archive::{Column, OwnedRow};

use crate::books;
use crate::books::rows::{ArchivedDays, is_before, log_row, position};
use crate::field_error::FieldError;
use crate::http::error::ApiError;
use crate::http::extract::QueryReader;
use crate::http::read_limits::Length;
use crate::http::reads::Reads;
use crate::http::routes::log::archived::archived_days;
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
        let to = filter.after.as_ref().map(|after| after.start_time).or(filter.to);
        archived = archived_days(state, reading.connection(), filter.from, to).await?;
        // All pages of a list are in one order, also those that no closed day concerns.
        filter.by_bytes = state.folding.has_closed_days();
        if archived.is_some() && length == Length::Short {
            // The archive may keep the connection waiting.
            drop(reading);
            reading = reads.start_for(Length::Long).await?;
        }
    }
    let (mut truncated, mut next) = (false, None);
    if page.is_some() || archived.is_some() {
        // The page and its link are read in one snapshot, so that the page ends where the link starts. The archived days
        // are those of the same moment, so that no row is lost that leaves the log meanwhile.
        reading = reading.snapshot().await?;
    }
    if let (Some(_), Some(state)) = (&archived, archive) {
        let to = filter.after.as_ref().map(|after| after.start_time).or(filter.to);
        archived = archived_days(state, reading.connection(), filter.from, to).await?;
        reading.may_be_idle().await?;
    }
    filter.by_bytes |= archived.is_some();
    if let Some(limit) = page {
        next = log::end_of_page(reading.connection(), &filter, limit).await?;
        if let Some(days) = archived.as_ref().filter(|days| !is_after(next.as_ref(), days)) {
            next = merged_end(reading.connection(), &filter, days.clone(), limit).await?;
        }
    } else if filter.request_id.is_none() {
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
    let most = usize::try_from(limit.saturating_add(1)).unwrap_or(usize::MAX);
    let mut archived = days.rows(filter, Vec::new(), most).await?.map_ok(|row| position(&row));
    let mut query = Statement::default();
    let mut logged = log::positions(connection, &mut query, filter, limit.saturating_add(1));
    let (mut one, mut other) = (logged.try_next().await?, archived.try_next().await?);
    let mut last = None;
    let mut count = 0;
    loop {
        let next = match (&one, &other) {
            (None, None) => return Ok(None),
            (Some(left), Some(right)) if left == right => {
                other = archived.try_next().await?;
                std::mem::replace(&mut one, logged.try_next().await?)
            }
            (Some(left), Some(right)) if is_before(left, right) => {
                std::mem::replace(&mut one, logged.try_next().await?)
            }
            (Some(_), None) => std::mem::replace(&mut one, logged.try_next().await?),
            (_, Some(_)) => std::mem::replace(&mut other, archived.try_next().await?),
        };
        count += 1;
        if count > limit {
            return Ok(last);
        }
        last = next;
    }
}

/// The archived rows of an answer, opened when they are first needed.
struct Archived {
    days: Option<ArchivedDays>,
    rows: Option<BoxStream<'static, Result<OwnedRow, books::Error>>>,
    next: Option<OwnedRow>,
}

impl Archived {
    fn new(days: Option<ArchivedDays>) -> Self {
        Self { days, rows: None, next: None }
    }

    /// The next archived row if it comes before this row of the log; or, without one, the next. Leaves out the row itself.
    /// `None` if the answer has no room for more rows (`limit`).
    async fn before(
        &mut self,
        logged: Option<&LogPosition>,
        filter: &SpendLogFilter,
        limit: i64,
    ) -> Result<Option<OwnedRow>, books::Error> {
        if limit <= 0 {
            return Ok(None);
        }
        if let Some(days) = self.days.take_if(|days| !is_after(logged, days)) {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            self.rows = Some(days.rows(filter, Column::ALL.to_vec(), limit).await?);
            self.advance().await?;
        }
        if self.next.as_ref().is_some_and(|next| Some(&position(next)) == logged) {
            self.advance().await?;
        }
        let is_next = |next: &mut OwnedRow| logged.is_none_or(|logged| is_before(&position(next), logged));
        match self.next.take_if(is_next) {
            Some(row) => {
                self.advance().await?;
                Ok(Some(row))
            }
            None => Ok(None),
        }
    }

    async fn advance(&mut self) -> Result<(), books::Error> {
        self.next = match &mut self.rows {
            Some(rows) => rows.try_next().await?,
            None => None,
        };
        Ok(())
    }
}

fn rows(
    mut reading: Reading,
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
        let whole = filter.clone();
        let mut archived = Archived::new(archived);
        while left > 0 {
            // A statement sorts its rows, so each one reads at most this many, however long the page is.
            let size = left.min(ROW_CAP);
            let mut found = 0;
            let mut last = None;
            {
                let mut query = Statement::default();
                let mut rows = log::newest(reading.connection(), &mut query, &filter, size);
                while let Some(row) = rows.try_next().await? {
                    let here = LogPosition { start_time: row.start_time.0, request_id: row.request_id.clone() };
                    while let Some(row) = archived.before(Some(&here), &whole, left).await? {
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
        // The rest comes from the archive alone.
        reading.finish().await?;
        while let Some(row) = archived.before(None, &whole, left).await? {
            left -= 1;
            let row = log_row(row);
            left_out += row.left_out();
            if let Some(chunk) = writer.row(&row)? {
                yield chunk;
            }
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
