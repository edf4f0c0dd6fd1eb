//! Responses that list rows of the log. Rows are read one at a time, their total size is limited, and they are written
//! while they are sent. A header names the fields that are left out.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;

use crate::http::error::ApiError;
use crate::http::reads::Reads;
use crate::http::stream::answer_budget::{AnswerBudget, Share};
use crate::http::stream::writer::Writer;
use crate::store;
use crate::store::log::fields::JsonField;
use crate::store::log::rows::{ListedLog, PagedLog};

/// Response header that names the fields that are left out.
const LEFT_OUT: HeaderName = HeaderName::from_static("x-litespend-left-out");

/// Maximum number of fields that the header names.
const MAX_NAMED: usize = 20;

/// Maximum number of characters of a request ID in the header.
const MAX_ID_CHARACTERS: usize = 100;

/// Size limit of a page, in bytes. After it, rows keep only JSON columns of at most [`SMALL_FIELD`] bytes.
const PAGE: usize = 16 * 1024 * 1024;

/// A JSON column of up to this many bytes is never left out because of the page's size.
const SMALL_FIELD: usize = 1024;

/// A page of up to this many bytes takes no permits from the memory budget.
const SMALL_PAGE: usize = 2 * 1024 * 1024;

/// The fields that a response leaves out.
#[derive(Debug, Default)]
pub struct LeftOut {
    names: Vec<String>,
    more: usize,
}

impl LeftOut {
    /// Records those of these fields that are left out.
    pub fn add(&mut self, request_id: &str, fields: &[(&str, &JsonField)]) {
        for (name, _) in fields.iter().filter(|(_, field)| field.is_left_out()) {
            if self.names.len() == MAX_NAMED {
                self.more += 1;
                continue;
            }
            let id: String = request_id.chars().take(MAX_ID_CHARACTERS).collect();
            let id: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
            self.names.push(format!("{id}/{name}"));
        }
    }

    /// Adds the header that names these fields, unless there are none.
    pub fn name_in(mut self, response: &mut Response) {
        if self.names.is_empty() {
            return;
        }
        if self.more > 0 {
            self.names.push(format!("and {} more", self.more));
        }
        if let Ok(value) = HeaderValue::try_from(self.names.join(", ")) {
            response.headers_mut().insert(LEFT_OUT, value);
        }
    }
}

/// A row of a list.
pub trait Row: Serialize + Send + Sync + Unpin + 'static {
    /// The part of the row that every list has.
    fn listed(&mut self) -> &mut ListedLog;
}

impl Row for ListedLog {
    fn listed(&mut self) -> &mut ListedLog {
        self
    }
}

impl Row for PagedLog {
    fn listed(&mut self) -> &mut ListedLog {
        &mut self.log
    }
}

/// The rows of a page, and their permits of the memory budget.
#[derive(Debug)]
pub struct Page<R> {
    /// The rows.
    pub rows: Vec<R>,
    share: Option<Share>,
}

/// Reads the rows of a page. Once a page exceeds `SMALL_PAGE`, it takes permits for the maximum size of a page before
/// it reads on. At the end it releases those that it does not need.
pub async fn read<R: Row>(
    mut found: impl Stream<Item = Result<R, store::Error>> + Unpin,
    budget: &AnswerBudget,
) -> Result<Page<R>, ApiError> {
    let mut page = Page { rows: Vec::new(), share: None };
    let mut bytes = 0;
    while let Some(mut row) = found.try_next().await? {
        let log = row.listed();
        if bytes + log.bytes() > PAGE {
            for field in [&mut log.metadata, &mut log.request_tags] {
                if field.bytes() > SMALL_FIELD {
                    field.leave_out();
                }
            }
        }
        bytes += log.bytes();
        page.rows.push(row);
        if bytes > SMALL_PAGE && page.share.is_none() {
            page.share = Some(budget.take(PAGE).await?);
        }
    }
    if let Some(share) = &mut page.share {
        share.shrink(bytes);
    }
    Ok(page)
}

impl<R: Row> Page<R> {
    /// Sends the response. `around` is the response with an empty first field `data`; the rows become the value of
    /// `data`.
    pub async fn respond(mut self, reads: &Reads, around: &impl Serialize) -> Result<Response, ApiError> {
        let mut writer = Writer::new();
        writer.open_list_of(around, "data")?;
        let mut left_out = LeftOut::default();
        for row in &mut self.rows {
            let log = row.listed();
            left_out.add(&log.request_id, &[("metadata", &log.metadata), ("request_tags", &log.request_tags)]);
        }
        let mut response = reads.send(write(self, writer), "application/json").await?;
        left_out.name_in(&mut response);
        Ok(response)
    }
}

fn write<R: Row>(page: Page<R>, mut writer: Writer) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        for row in page.rows {
            writer.value(&row)?;
            drop(row);
            if let Some(chunk) = writer.chunk() {
                yield chunk;
            }
        }
        writer.close();
        yield writer.take();
        drop(page.share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_fields_and_is_bounded() {
        let mut response = Response::default();
        let mut left_out = LeftOut::default();
        left_out.add("a b/ü", &[("metadata", &JsonField::LeftOut), ("request_tags", &JsonField::Null)]);
        left_out.name_in(&mut response);
        assert_eq!(response.headers()[LEFT_OUT], "a+b%2F%C3%BC/metadata");

        let mut left_out = LeftOut::default();
        for _ in 0..1_000 {
            left_out.add(&"ü".repeat(3_000), &[("metadata", &JsonField::LeftOut)]);
        }
        left_out.name_in(&mut response);
        let named = response.headers()[LEFT_OUT].to_str().expect("a text");
        assert!(named.ends_with(", and 980 more") && named.len() < 16_000, "{}", named.len());
        let mut nothing = Response::default();
        LeftOut::default().name_in(&mut nothing);
        assert!(nothing.headers().is_empty());
    }
}
