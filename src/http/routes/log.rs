//! `GET /spend/logs`: rows of the log, or sums by day.

pub mod answers;
pub mod archived;
pub mod formats;
pub mod pages;
pub mod paging;
pub mod params;
pub mod rows;
pub mod search_text;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use chrono::{Days, NaiveDate};
use futures_util::{Stream, TryStreamExt};
use litespend_archive::Column;
use rustc_hash::FxHashMap;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::books::rows::{ArchivedDays, position};
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::TAG;
use crate::http::read_limits::Length;
use crate::http::reads::Reads;
use crate::http::routes::dates::{not_a_day, parse_day};
use crate::http::routes::log::archived::with_archived_days;
use crate::http::routes::log::formats::{CsvTexts, Format};
use crate::http::state::AppState;
use crate::http::stream::writer::name;
use crate::http::stream::writer::{Text, Writer};
use crate::identity::{Caller, key_filter};
use crate::store::log;
use crate::store::log::{DaySpend, LogPosition, ROW_CAP, SpendLog, SpendLogFilter};
use crate::store::rollups::days;
use crate::store::rollups::days::{DayEntries, DaysRequest};
use crate::store::rollups::reads::{EntryFilter, Rollup};
use crate::store::{Connection, DateRange, Statement};

/// The routes of this file and of the files below it.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_spend_logs)).merge(pages::routes()).merge(rows::routes())
}

/// Parameters of `/spend/logs`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogsParams {
    /// Get spend logs based on api key (raw or its SHA-256)
    api_key: Option<String>,
    /// Get spend logs based on user_id
    user_id: Option<String>,
    /// Get the spend logs of one request, by its request ID or LiteLLM's call ID
    request_id: Option<String>,
    /// Time from which to start viewing key spend (YYYY-MM-DD)
    start_date: Option<String>,
    /// Time till which to view key spend (YYYY-MM-DD)
    end_date: Option<String>,
    /// If both dates are given: true returns spend by day, false returns rows
    #[param(required = false, default = true)]
    summarize: bool,
    /// Number of rows per page, up to 1,000,000. The response's `Link` header has the address of the next page
    #[param(minimum = 1, maximum = 1_000_000)]
    limit: Option<i64>,
    /// Position at which the page starts, from a `Link` header
    #[param(value_type = Option<String>)]
    cursor: Option<LogPosition>,
    /// For CSV. `safe` puts a single quote before texts that a spreadsheet would take for a formula, and quotes every
    /// cell. `plain` leaves texts as they are. Default: the server's setting (plain), and `safe` for sessions of the
    /// dashboard
    #[param(inline)]
    csv: Option<CsvTexts>,
    /// Whether to include rows of closed days that are only in the archive
    #[param(required = false, default = true)]
    archive: bool,
}

impl FromQuery for LogsParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            api_key: reader.text("api_key"),
            user_id: reader.text("user_id"),
            request_id: reader.text("request_id"),
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            summarize: reader.boolean("summarize", true),
            limit: reader.optional_integer("limit", 1, paging::PAGE_LIMIT),
            cursor: paging::read_cursor(reader),
            csv: reader.choice("csv", &[("safe", CsvTexts::Safe), ("plain", CsvTexts::Plain)], "'safe' or 'plain'"),
            archive: reader.boolean("archive", true),
        }
    }
}

/// One entry of the response: a row, or a day if both dates are given.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, clippy::large_enum_variant, reason = "the shape for the OpenAPI document; answers are streamed")]
enum SpendLogEntry {
    /// A row of the log.
    Row(SpendLog),
    /// The spend of a day.
    Day(SpendLogDay),
}

/// The spend of a day. In addition to the named fields, each key's hash is a field; its value is the key's spend.
#[derive(Serialize, utoipa::ToSchema)]
struct SpendLogDay {
    /// Day, UTC.
    #[serde(rename = "startTime")]
    start_time: NaiveDate,
    /// Spend in USD.
    spend: f64,
    /// Spend in USD by user.
    users: BTreeMap<String, f64>,
    /// Spend in USD by model.
    models: BTreeMap<String, f64>,
    /// Spend in USD by hash of the key.
    #[serde(flatten)]
    keys: BTreeMap<String, f64>,
}

/// Returns the newest 10,000 rows of the spend log or, if both dates are given, the spend of each day.
///
/// Users who are not admins see their own rows. The entry of a day has each key's spend at the top level, and the spend
/// by user and model in nested objects. `limit` and `cursor` page through the rows. The `Accept` header selects JSON,
/// JSON lines or CSV. A JSON column longer than 8 MiB is null. If the JSON columns of a row exceed 8 MiB together, the
/// longest of them are null.
#[utoipa::path(get, path = "/spend/logs", tag = TAG, operation_id = "view_spend_logs_spend_logs_get",
    params(LogsParams),
    responses((status = 200, description = "Rows, newest first, or one summary per day", 
               content((Vec<SpendLogEntry> = "application/json"), (String = "application/x-ndjson"), (String = "text/csv")),
               headers(("x-litellm-spend-logs-truncated" = String, description = "`true` where rows were left out"),
                       ("Link" = String, description = "The next page, with `rel=\"next\"`, where there is one"))),
              (status = 400, description = "A bad date")))]
async fn list_spend_logs(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<LogsParams>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let range = match (&params.start_date, &params.end_date) {
        (Some(start), Some(end)) => Some(DateRange { start: day("start_date", start)?, end: day("end_date", end)? }),
        _ => None,
    };
    let is_safe = state.settings.csv_safe || caller.session.is_some();
    let texts = params.csv.unwrap_or(if is_safe { CsvTexts::Safe } else { CsvTexts::Plain });
    let is_page = params.limit.is_some() || params.cursor.is_some();
    let mut filter = SpendLogFilter {
        api_key: params.api_key.as_deref().map(key_filter),
        user_id: caller.own_rows_only().map(str::to_owned).or(params.user_id),
        request_id: params.request_id,
        after: params.cursor,
        until: None,
        from: range.map(|range| range.from()),
        // LiteLLM's end of the range: midnight at the start of the end day, included.
        to: range.map(|range| crate::store::midnight(range.end)),
        by_bytes: false,
    };
    match range {
        Some(_) if params.summarize && is_page => {
            let message = "limit and cursor apply to rows only. With both dates, also set summarize=false.";
            Err(ApiError::bad_request(ErrorType::InvalidRequest, message))
        }
        Some(_) if params.summarize && !Format::admits_json(&headers) => {
            let message = "A summary is available as JSON only. For rows in other formats, set summarize=false.";
            Err(ApiError::Refused {
                status: StatusCode::NOT_ACCEPTABLE,
                kind: ErrorType::InvalidRequest,
                message: message.to_owned(),
                param: None,
            })
        }
        Some(range) if params.summarize => {
            check_days_to_fill(range.start.max(state.clock.now().date_naive()), range.end)?;
            if state.settings.inclusive_end_date {
                filter.to = Some(range.until() - chrono::TimeDelta::microseconds(1));
            }
            let whole = DateRange {
                end: if state.settings.inclusive_end_date { range.end } else { range.end - Days::new(1) },
                ..range
            };
            let summary = summarise(state, reads.clone(), filter, whole, range.end, params.archive);
            reads.send(summary, "application/json").await
        }
        _ => {
            let limit = is_page.then(|| params.limit.unwrap_or(ROW_CAP));
            let archive = params.archive.then_some(&state);
            paging::respond(&reads, archive, filter, limit, texts, &headers, &uri).await
        }
    }
}

/// Maximum number of days without spend that one response adds after the last day with spend: ten years.
const MAX_DAYS_TO_FILL: i64 = 3_660;

/// 400 if `end` is more than that many days after `last`. Each day in between would be an empty entry, and such a long
/// list is of no use.
fn check_days_to_fill(last: NaiveDate, end: NaiveDate) -> Result<(), ApiError> {
    if (end - last).num_days() <= MAX_DAYS_TO_FILL {
        return Ok(());
    }
    let message = format!(
        "end_date is more than {MAX_DAYS_TO_FILL} days after the last day with spend, and each day in between would be \
         an empty summary. Use an earlier end_date, or set summarize=false to get rows."
    );
    Err(ApiError::bad_request(ErrorType::InternalError, message))
}

fn day(name: &str, text: &str) -> Result<NaiveDate, ApiError> {
    parse_day(text).ok_or_else(|| ApiError::bad_request(ErrorType::InternalError, not_a_day(name)))
}

/// Spend in USD by name, ordered by name. Names are JSON literals.
type Amounts = Vec<(Arc<str>, f64)>;

/// The spend of one day, by key, by user and by model.
struct Summary {
    keys: Amounts,
    users: Amounts,
    models: Amounts,
    total: f64,
}

/// A summary that is still being added up.
#[derive(Default)]
struct Sums {
    keys: BTreeMap<String, f64>,
    users: BTreeMap<String, f64>,
    models: BTreeMap<String, f64>,
    total: f64,
}

/// Names of a summary's fixed fields. A key with such a name is left out.
const OWN_FIELDS: [&str; 4] = ["startTime", "spend", "users", "models"];

/// A name as a JSON literal. A missing name becomes the string "null", as in LiteLLM.
fn literal(name: Option<&str>) -> String {
    Value::from(name.unwrap_or("null")).to_string()
}

impl Sums {
    fn add(&mut self, row: DaySpend) {
        self.total += row.spend;
        *self.keys.entry(literal(Some(&row.api_key))).or_default() += row.spend;
        *self.users.entry(literal(row.user.as_deref())).or_default() += row.spend;
        *self.models.entry(literal(Some(&row.model))).or_default() += row.spend;
    }

    fn finish(self) -> Summary {
        let amounts =
            |map: BTreeMap<String, f64>| map.into_iter().map(|(name, spend)| (Arc::from(name), spend)).collect();
        Summary {
            keys: amounts(self.keys),
            users: amounts(self.users),
            models: amounts(self.models),
            total: self.total,
        }
    }
}

impl Summary {
    /// The sums of a day's entries; `None` if no requests are left after deletions.
    fn of(day: DayEntries) -> Option<Self> {
        let mut sums: [FxHashMap<i32, (f64, i64)>; 3] = Default::default();
        let mut total = 0.0;
        for entry in &day.entries {
            total += entry.spend;
            for (map, number) in sums.iter_mut().zip([entry.api_key, entry.subject, entry.model]) {
                let sum = map.entry(number).or_default();
                sum.0 += entry.spend;
                sum.1 += entry.requests;
            }
        }
        let dictionary = day.dictionary.read();
        let [keys, users, models] = sums.map(|map| {
            let named = map.into_iter().filter(|(_, (_, requests))| *requests > 0).map(|(number, (spend, _))| {
                let name = if number == 0 { Arc::from(literal(None)) } else { dictionary.shared(number) };
                (name, spend)
            });
            let mut amounts: Amounts = named.collect();
            amounts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            // A missing name and a user whose name is "null" have the same literal, so their sums are merged.
            amounts.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                if same {
                    kept.1 += next.1;
                }
                same
            });
            amounts
        });
        (!keys.is_empty()).then_some(Self { keys, users, models, total })
    }

    fn write(&self, day: NaiveDate, writer: &mut Writer) -> Result<(), ApiError> {
        writer.open_object();
        for (key, spend) in self.keys.iter().filter(|(key, _)| !OWN_FIELDS.contains(&key.trim_matches('"'))) {
            writer.text_name(Text::Json(key))?;
            writer.amount(*spend);
        }
        writer.name(name!("startTime"));
        writer.value(&day)?;
        writer.name(name!("spend"));
        writer.amount(self.total);
        for (name, amounts) in [(name!("users"), &self.users), (name!("models"), &self.models)] {
            writer.name(name);
            writer.open_object();
            for (name, spend) in amounts {
                writer.text_name(Text::Json(name))?;
                writer.amount(*spend);
            }
            writer.close();
        }
        writer.close();
        Ok(())
    }
}

/// An entry for a day without spend.
#[derive(Serialize)]
struct EmptyDay {
    #[serde(rename = "startTime")]
    day: NaiveDate,
    spend: u8,
    users: Map<String, Value>,
    models: Map<String, Value>,
}

impl EmptyDay {
    fn new(day: NaiveDate) -> Self {
        Self { day, spend: 0, users: Map::new(), models: Map::new() }
    }
}

/// What the summary reads from the rollups: the whole days, and the first instant of the end day if that day is not
/// included as a whole.
fn summary_request(filter: &SpendLogFilter, whole: DateRange, end: NaiveDate) -> DaysRequest {
    DaysRequest {
        rollup: Rollup::Usage,
        range: whole,
        in_parts: false,
        filter: EntryFilter {
            api_key: filter.api_key.clone(),
            user_id: filter.user_id.clone(),
            and_at: (whole.end < end && whole.start <= end).then_some(filter.to).flatten(),
            ..EntryFilter::default()
        },
    }
}

/// The summaries of one request's rows, of the log and the archive together.
async fn merged_summaries(
    connection: &mut Connection,
    filter: &SpendLogFilter,
    archived: ArchivedDays,
) -> Result<impl Iterator<Item = (NaiveDate, Summary)> + use<>, ApiError> {
    let mut sums: BTreeMap<NaiveDate, Sums> = BTreeMap::new();
    {
        let mut query = Statement::default();
        let mut rows = log::by_day(connection, &mut query, filter);
        while let Some(row) = rows.try_next().await? {
            sums.entry(row.day).or_default().add(row);
        }
    }
    let columns = vec![Column::ApiKey, Column::User, Column::Model, Column::Spend];
    let mut archived = archived.rows(filter, columns).await?;
    loop {
        let piece = archived.piece(Some(&mut *connection), usize::MAX).await?;
        for row in piece.rows {
            let day = position(&row).start_time.date();
            let row = DaySpend { day, api_key: row.api_key, user: row.user, model: row.model, spend: row.spend };
            sums.entry(day).or_default().add(row);
        }
        if piece.end.is_none() {
            return Ok(sums.into_iter().map(|(day, sums)| (day, sums.finish())));
        }
    }
}

/// Streams a summary for each day with spend, and then an empty one for each further day up to `end`. `whole` is the
/// range of days that are included as a whole; `filter` describes the same range by instants. With `archive`, the rows of one
/// request come from the archive, too; other summaries need no rows of closed days.
fn summarise(
    state: AppState,
    reads: Reads,
    mut filter: SpendLogFilter,
    whole: DateRange,
    end: NaiveDate,
    archive: bool,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let mut reading = reads.start().await?;
        let mut archived = None;
        if archive && filter.request_id.is_some() {
            (reading, archived) = with_archived_days(&state, &reads, reading, &mut filter, Length::Short).await?;
        }
        let (mut reading, snapshot) = if state.has_rollups() && filter.request_id.is_none() {
            days::begin(reading, whole).await?
        } else {
            (reading, None)
        };
        let mut writer = Writer::new();
        let mut current: Option<(NaiveDate, Summary)> = None;
        writer.open_list();
        if let Some(snapshot) = snapshot {
            let request = summary_request(&filter, whole, end);
            {
                let mut days = std::pin::pin!(days::days(reading.copying(), &state.dictionary, snapshot, request));
                while let Some(entries) = days.try_next().await? {
                    let day = entries.day;
                    let Some(summary) = Summary::of(entries) else { continue };
                    if let Some((day, summary)) = current.replace((day, summary)) {
                        summary.write(day, &mut writer)?;
                        if let Some(chunk) = writer.chunk() {
                            yield chunk;
                        }
                    }
                }
            }
        } else if let Some(archived) = archived {
            for (day, summary) in merged_summaries(reading.connection(), &filter, archived).await? {
                if let Some((day, summary)) = current.replace((day, summary)) {
                    summary.write(day, &mut writer)?;
                    if let Some(chunk) = writer.chunk() {
                        yield chunk;
                    }
                }
            }
        } else {
            let mut query = Statement::default();
            let mut rows = log::by_day(reading.connection(), &mut query, &filter);
            let mut sums: Option<(NaiveDate, Sums)> = None;
            while let Some(row) = rows.try_next().await? {
                if let Some((day, sums)) = sums.take_if(|(day, _)| *day != row.day) {
                    sums.finish().write(day, &mut writer)?;
                    if let Some(chunk) = writer.chunk() {
                        yield chunk;
                    }
                }
                sums.get_or_insert_with(|| (row.day, Sums::default())).1.add(row);
            }
            current = sums.map(|(day, sums)| (day, sums.finish()));
        }
        reading.finish().await?;
        if let Some((mut day, summary)) = current {
            summary.write(day, &mut writer)?;
            check_days_to_fill(day, end)?;
            while day < end {
                let Some(next) = day.checked_add_days(Days::new(1)) else { break };
                day = next;
                writer.value(&EmptyDay::new(day))?;
                if let Some(chunk) = writer.chunk() {
                    yield chunk;
                }
            }
        }
        writer.close();
        yield writer.take();
    }
}
