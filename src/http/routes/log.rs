//! `GET /spend/logs`: rows of the log, or summaries by day.

pub mod answers;
pub mod formats;
pub mod pages;
pub mod paging;
pub mod params;
pub mod rows;
pub mod search_text;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use axum::Extension;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use chrono::{Days, NaiveDate};
use futures_util::{Stream, TryStreamExt};
use rustc_hash::FxHashMap;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::reads::Reads;
use crate::http::routes::dates::{not_a_day, parse_day};
use crate::http::routes::log::formats::{CsvTexts, Format};
use crate::http::state::AppState;
use crate::http::stream::writer::{Text, Writer};
use crate::identity::{Caller, key_filter};
use crate::store::DateRange;
use crate::store::Statement;
use crate::store::log;
use crate::store::log::{DaySpend, LogPosition, ROW_CAP, SpendLog, SpendLogFilter};
use crate::store::rollups::days;
use crate::store::rollups::days::{DayEntries, DaysRequest};
use crate::store::rollups::reads::{EntryFilter, Rollup};

/// Parameters of `/spend/logs`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogsParams {
    /// Get spend logs based on api key (raw or its SHA-256)
    api_key: Option<String>,
    /// Get spend logs based on user_id
    user_id: Option<String>,
    /// Get the spend logs of one request, by its id or LiteLLM's id of the call
    request_id: Option<String>,
    /// Time from which to start viewing key spend (YYYY-MM-DD)
    start_date: Option<String>,
    /// Time till which to view key spend (YYYY-MM-DD)
    end_date: Option<String>,
    /// With both dates: true returns spend by day, false returns rows
    #[param(required = false, default = true)]
    summarize: bool,
    /// Rows of a page, up to 1,000,000; the answer's `Link` header leads to the next page
    #[param(minimum = 1, maximum = 1_000_000)]
    limit: Option<i64>,
    /// Where a page begins, as a `Link` header says it
    #[param(value_type = Option<String>)]
    cursor: Option<LogPosition>,
    /// In CSV: `safe` puts a single quote before texts that a spreadsheet would take for a formula, `plain` leaves them as
    /// they are. Without it, as the server is set up (plain), and safe for the dashboard's sessions
    #[param(inline)]
    csv: Option<CsvTexts>,
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
        }
    }
}

/// One entry of an answer: a row, or with both dates a day.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, clippy::large_enum_variant, reason = "the shape for the OpenAPI document; answers are streamed")]
enum SpendLogEntry {
    /// A row.
    Row(SpendLog),
    /// A day.
    Day(SpendLogDay),
}

/// The spend of a day. Beside the named fields each key's hash is a field, with the key's spend.
#[derive(Serialize, utoipa::ToSchema)]
struct SpendLogDay {
    /// Day.
    #[serde(rename = "startTime")]
    start_time: NaiveDate,
    /// USD.
    spend: f64,
    /// USD by user.
    users: BTreeMap<String, f64>,
    /// USD by model.
    models: BTreeMap<String, f64>,
    /// USD by hash of key.
    #[serde(flatten)]
    keys: BTreeMap<String, f64>,
}

/// Spend logs: the newest 10,000 rows, or with both dates the spend of each day. Users who are not admins see their
/// own rows. A summary names each key's spend at the top level, and spend by user and model below. Rows come in pages of
/// any size with `limit` and `cursor`, and as lines of JSON or CSV by `Accept`. A JSON column longer than 8 MiB is null, as
/// are the longest where those of a row are longer than that together.
#[utoipa::path(get, path = "/spend/logs", tag = crate::http::openapi::base::TAG,
    operation_id = "view_spend_logs_spend_logs_get", security(("APIKeyHeader" = [])), params(LogsParams),
    responses((status = 200, description = "Rows, newest first, or a summary a day", 
               content((Vec<SpendLogEntry> = "application/json"), (String = "application/x-ndjson"), (String = "text/csv")),
               headers(("x-litellm-spend-logs-truncated" = String, description = "`true` where rows were left out"),
                       ("Link" = String, description = "The next page, with `rel=\"next\"`, where there is one"))),
              (status = 400, description = "A bad date")))]
pub async fn list_spend_logs(
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
        from: range.map(|range| range.from()),
        // The reference's end: midnight at the start of the end day, itself included.
        to: range.map(|range| crate::store::midnight(range.end)),
    };
    match range {
        Some(_) if params.summarize && is_page => {
            let message = "limit and cursor are for rows: with both dates, give summarize=false too";
            Err(ApiError::bad_request(ErrorType::InvalidRequest, message))
        }
        Some(_) if params.summarize && !Format::admits_json(&headers) => {
            let message = "A summary is JSON; summarize=false gives rows in other forms";
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
            reads.send(summarise(state, reads.clone(), filter, whole, range.end), "application/json").await
        }
        _ => {
            let limit = is_page.then(|| params.limit.unwrap_or(ROW_CAP));
            paging::respond(&reads, filter, limit, texts, &headers, &uri).await
        }
    }
}

/// Days without spend that one summary fills at most: ten years.
const MOST_DAYS_TO_FILL: i64 = 3_660;

/// 400 where more days than that lie between `last` and `end`: each is an empty summary, and nobody wants so many.
fn check_days_to_fill(last: NaiveDate, end: NaiveDate) -> Result<(), ApiError> {
    if (end - last).num_days() <= MOST_DAYS_TO_FILL {
        return Ok(());
    }
    let message = format!(
        "end_date lies more than {MOST_DAYS_TO_FILL} days after the last day with spend, and each day between would be an \
         empty summary. Give an earlier end_date, or summarize=false for rows."
    );
    Err(ApiError::bad_request(ErrorType::InternalError, message))
}

fn day(name: &str, text: &str) -> Result<NaiveDate, ApiError> {
    parse_day(text).ok_or_else(|| ApiError::bad_request(ErrorType::InternalError, not_a_day(name)))
}

/// USD by name, in the order of the names, which are JSON literals.
type Amounts = Vec<(Arc<str>, f64)>;

/// The spend of one day by key, user and model.
struct Summary {
    keys: Amounts,
    users: Amounts,
    models: Amounts,
    total: f64,
}

/// A summary whose rows are still coming.
#[derive(Default)]
struct Sums {
    keys: BTreeMap<String, f64>,
    users: BTreeMap<String, f64>,
    models: BTreeMap<String, f64>,
    total: f64,
}

/// A summary's own fields, which a key can't take the place of.
const OWN_FIELDS: [&str; 4] = ["startTime", "spend", "users", "models"];

/// A name as a JSON literal; nobody's name is "null", as in the reference.
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
    /// The sums of a day's entries; nothing where no request is left.
    fn of(day: DayEntries) -> Option<Self> {
        let mut sums: [FxHashMap<i32, (f64, i64)>; 3] = Default::default();
        let mut total = 0.0;
        for entry in &day.entries {
            total += entry.spend;
            for (map, number) in sums.iter_mut().zip([entry.api_key, entry.who, entry.model]) {
                let sum = map.entry(number).or_default();
                sum.0 += entry.spend;
                sum.1 += entry.requests;
            }
        }
        let words = day.words.read().unwrap_or_else(PoisonError::into_inner);
        let [keys, users, models] = sums.map(|map| {
            let named = map.into_iter().filter(|(_, (_, requests))| *requests > 0).map(|(number, (spend, _))| {
                let name = if number == 0 { Arc::from(literal(None)) } else { words.shared(number) };
                (name, spend)
            });
            let mut amounts: Amounts = named.collect();
            amounts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            // A name that nobody has and a user of that name are one.
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
        writer.name("startTime");
        writer.value(&day)?;
        writer.name("spend");
        writer.amount(self.total);
        for (name, amounts) in [("users", &self.users), ("models", &self.models)] {
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

/// A day without spend.
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

/// What the summary reads of the rollups: whole days, and the very first instant of a day that ends the range.
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

/// A summary for each day with spend, then an empty one for each further day up to `end`. `whole` are the days that
/// count wholly; the filter says the same in instants.
fn summarise(
    state: AppState,
    reads: Reads,
    filter: SpendLogFilter,
    whole: DateRange,
    end: NaiveDate,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let reading = reads.start().await?;
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
                let mut days = std::pin::pin!(days::days(reading.copying(), &state.words, snapshot, request));
                while let Some(entries) = days.try_next().await? {
                    let day = entries.day;
                    let Some(summary) = Summary::of(entries) else { continue };
                    if let Some((day, summary)) = current.replace((day, summary)) {
                        summary.write(day, &mut writer)?;
                        if let Some(piece) = writer.piece() {
                            yield piece;
                        }
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
                    if let Some(piece) = writer.piece() {
                        yield piece;
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
                if let Some(piece) = writer.piece() {
                    yield piece;
                }
            }
        }
        writer.close();
        yield writer.take();
    }
}
