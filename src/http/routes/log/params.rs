//! Parameters of a page of the log, and the filter that they describe. Refusals come in LiteLLM's order: first a bad
//! sort order or choice, then dates, then rows that the caller may not see.

use axum::http::StatusCode;
use chrono::{NaiveDate, NaiveDateTime, NaiveTime};

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, QueryReader};
use crate::http::routes::log::search_text;
use crate::identity::Scope;
use crate::store::log::filter::{Column, LogFilter, SpanType};
use crate::store::log::pages::{Order, SortKey};

/// Parameters of `/spend/logs/ui` and `/spend/logs/v2`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogPageParams {
    /// Get spend logs based on api key (its SHA-256)
    api_key: Option<String>,
    /// Get spend logs based on user_id
    user_id: Option<String>,
    /// Get the spend logs of one request, by its request ID or LiteLLM's call ID
    pub request_id: Option<String>,
    /// Filter by a substring of the session ID, up to 1,000 characters
    session_id: Option<String>,
    /// Filter by team
    pub team_id: Option<String>,
    /// Minimum spend in USD
    min_spend: Option<f64>,
    /// Maximum spend in USD
    max_spend: Option<f64>,
    /// Earliest start of a call, UTC: YYYY-MM-DD HH:MM:SS (on /spend/logs/v2 also YYYY-MM-DD)
    start_date: Option<String>,
    /// Latest start of a call, UTC, included; same format as start_date
    end_date: Option<String>,
    /// Page number for pagination
    #[param(required = false, default = 1, minimum = 1)]
    pub page: i64,
    /// Number of items per page
    #[param(required = false, default = 50, minimum = 1, maximum = 1000)]
    pub page_size: i64,
    /// Filter by status; `success` also matches rows without a status
    status_filter: Option<String>,
    /// Filter by whether the response came from the cache: `hit` or `miss`
    #[param(pattern = "^(hit|miss)$")]
    cache_hit_filter: Option<String>,
    /// Filter by the token with which the provider was called: true for the client's own OAuth token
    used_client_oauth_token: Option<bool>,
    /// Filter by the kind of call: `llm`, `agent`, `mcp` or `batch`
    #[param(pattern = "^(llm|agent|mcp|batch)$")]
    span_type: Option<String>,
    /// Filter by model
    model: Option<String>,
    /// Filter by deployment ID
    model_id: Option<String>,
    /// Filter by public model name
    model_group: Option<String>,
    /// Filter by a substring of the key's alias, up to 1,000 characters
    key_alias: Option<String>,
    /// Filter by end user
    end_user: Option<String>,
    /// Filter by error code
    error_code: Option<String>,
    /// Filter by a substring of the error message (only its first 50,000 characters are searched), up to 1,000
    /// characters
    error_message: Option<String>,
    /// Sort by: spend, total_tokens, startTime, endTime, request_duration_ms, model or ttft_ms
    #[param(
        required = false,
        default = "startTime",
        pattern = "^(spend|total_tokens|startTime|endTime|request_duration_ms|model|ttft_ms)$"
    )]
    sort_by: String,
    /// Sort order: asc or desc
    #[param(required = false, default = "desc", pattern = "^([aA][sS][cC]|[dD][eE][sS][cC])$")]
    sort_order: String,
    /// Leave out LiteLLM's own health checks
    #[param(required = false, default = false)]
    exclude_internal_health_checks: bool,
    /// Return one row per session: its representative row. Totals then count sessions
    #[param(required = false, default = false)]
    pub group_by_session: bool,
    /// With group_by_session: the `next_session_cursor` of the previous page
    pub session_cursor: Option<String>,
    /// Find rows by any of their IDs: request, call, key, team, user, end user, session or deployment; up to 1,000
    /// characters
    pub search: Option<String>,
    /// Whether to include rows of closed days that are only in the archive
    #[param(required = false, default = true)]
    pub archive: bool,
}

impl FromQuery for LogPageParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            api_key: reader.text("api_key"),
            user_id: reader.text("user_id"),
            request_id: reader.text("request_id"),
            session_id: reader.text("session_id"),
            team_id: reader.text("team_id"),
            min_spend: reader.optional_number("min_spend"),
            max_spend: reader.optional_number("max_spend"),
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            page: reader.integer("page", 1, 1, i64::MAX),
            page_size: reader.integer("page_size", 50, 1, 1000),
            status_filter: reader.text("status_filter"),
            cache_hit_filter: reader.text("cache_hit_filter"),
            used_client_oauth_token: reader.optional_boolean("used_client_oauth_token"),
            span_type: reader.text("span_type"),
            model: reader.text("model"),
            model_id: reader.text("model_id"),
            model_group: reader.text("model_group"),
            key_alias: reader.text("key_alias"),
            end_user: reader.text("end_user"),
            error_code: reader.text("error_code"),
            error_message: reader.text("error_message"),
            sort_by: reader.text("sort_by").unwrap_or_else(|| "startTime".to_owned()),
            sort_order: reader.text("sort_order").unwrap_or_else(|| "desc".to_owned()),
            exclude_internal_health_checks: reader.boolean("exclude_internal_health_checks", false),
            group_by_session: reader.boolean("group_by_session", false),
            session_cursor: reader.text("session_cursor"),
            search: reader.text("search"),
            archive: reader.boolean("archive", true),
        }
    }
}

/// Which of the two routes is served. They differ in the formats of dates that they accept, and in whether a request ID
/// makes dates optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRoute {
    /// `/spend/logs/ui`
    Dashboard,
    /// `/spend/logs/v2`
    Public,
}

const SORT_KEYS: [(&str, SortKey); 7] = [
    ("endTime", SortKey::EndTime),
    ("model", SortKey::Model),
    ("request_duration_ms", SortKey::RequestDurationMs),
    ("spend", SortKey::Spend),
    ("startTime", SortKey::StartTime),
    ("total_tokens", SortKey::TotalTokens),
    ("ttft_ms", SortKey::TimeToFirstToken),
];

const SPAN_TYPES: [(&str, SpanType); 4] =
    [("llm", SpanType::Llm), ("agent", SpanType::Agent), ("mcp", SpanType::Mcp), ("batch", SpanType::Batch)];

impl LogPageParams {
    /// Whether the request asks for one row by ID on the dashboard's route. No dates are needed then.
    pub fn is_lookup(&self, route: LogRoute) -> bool {
        route == LogRoute::Dashboard && self.request_id.is_some()
    }

    /// Sort order of the page; 400 if it is not one of the allowed values.
    pub fn order(&self) -> Result<Order, ApiError> {
        let key = choice("sort_by", &self.sort_by, &SORT_KEYS)?;
        let orders = [("asc", true), ("desc", false)];
        let ascending = choice("sort_order", &self.sort_order.to_lowercase(), &orders)?;
        Ok(Order { key, ascending })
    }

    /// The filter for the requested rows, before it is restricted to what the caller may see.
    pub fn filter(&self, route: LogRoute) -> Result<LogFilter, ApiError> {
        let cache_states = [("hit", true), ("miss", false)];
        let cache_hit = self.cache_hit_filter.as_deref();
        let cache_hit = cache_hit.map(|state| choice("cache_hit_filter", state, &cache_states)).transpose()?;
        let span_type = self.span_type.as_deref();
        let span_type = span_type.map(|name| choice("span_type", name, &SPAN_TYPES)).transpose()?;
        search_text::check(&[
            ("key_alias", self.key_alias.as_deref()),
            ("error_message", self.error_message.as_deref()),
            ("session_id", self.session_id.as_deref()),
            ("search", self.search.as_deref()),
        ])?;
        let dates = self.dates(route)?;
        let search = dates.zip(self.search.clone()).map(|((from, to), id)| (id, from, to));
        // On the dashboard's route, the dates restrict only the search, in which a row's own ID matches at any time.
        let window = dates.filter(|_| search.is_none() || route == LogRoute::Public);
        Ok(LogFilter {
            window,
            search,
            equal: self.equal(),
            request_id: self.request_id.clone(),
            session_part: self.session_id.clone(),
            status: self.status_filter.clone(),
            cache_hit,
            span_type,
            no_health_checks: self.exclude_internal_health_checks,
            min_spend: self.min_spend,
            max_spend: self.max_spend,
            key_alias: self.key_alias.clone(),
            error_code: self.error_code.clone(),
            error_message: self.error_message.clone(),
            client_token: self.used_client_oauth_token,
            ..LogFilter::of(Scope::All)
        })
    }

    fn equal(&self) -> Vec<(Column, String)> {
        [
            (Column::Team, &self.team_id),
            (Column::User, &self.user_id),
            (Column::ApiKey, &self.api_key),
            (Column::Model, &self.model),
            (Column::ModelId, &self.model_id),
            (Column::ModelGroup, &self.model_group),
            (Column::EndUser, &self.end_user),
        ]
        .into_iter()
        .filter_map(|(column, value)| Some((column, value.clone()?)))
        .collect()
    }

    /// Earliest and latest start of a call; `None` if the request asks for one row and needs no dates.
    fn dates(&self, route: LogRoute) -> Result<Option<(NaiveDateTime, NaiveDateTime)>, ApiError> {
        if self.is_lookup(route) && self.search.is_none() {
            return Ok(None);
        }
        let (Some(start), Some(end)) = (&self.start_date, &self.end_date) else {
            return Err(ApiError::bad_request(ErrorType::BadRequest, "Start date and end date are required"));
        };
        Ok(Some((instant(route, start)?, instant(route, end)?)))
    }
}

fn choice<T: Copy>(name: &str, text: &str, choices: &[(&str, T)]) -> Result<T, ApiError> {
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| ApiError::Refused {
        status: StatusCode::BAD_REQUEST,
        kind: ErrorType::BadRequest,
        message: format!(
            "Invalid {name}. Must be one of: {}",
            choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")
        ),
        param: Some(name.to_owned()),
    })
}

fn instant(route: LogRoute, text: &str) -> Result<NaiveDateTime, ApiError> {
    let text = text.trim();
    let day = || match route {
        LogRoute::Public => parse_lenient_day(text).map(|day| day.and_time(NaiveTime::MIN)),
        LogRoute::Dashboard => None,
    };
    parse_instant(text).or_else(day).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        let expected = match route {
            LogRoute::Public => "'YYYY-MM-DD' or 'YYYY-MM-DD HH:MM:SS'",
            LogRoute::Dashboard => "'YYYY-MM-DD HH:MM:SS'",
        };
        let message = format!("Invalid date format: {shown}. Expected: {expected}");
        ApiError::bad_request(ErrorType::InvalidRequest, message)
    })
}

/// Parses `YYYY-MM-DD HH:MM:SS`. As in LiteLLM, leading zeros may be left out, except in the year.
pub fn parse_instant(text: &str) -> Option<NaiveDateTime> {
    let (day, time) = text.split_once(char::is_whitespace)?;
    let parts: Vec<u32> = time.trim_start().split(':').map(|part| digits(part, 2)).collect::<Option<_>>()?;
    let [hour, minute, second] = parts.as_slice() else { return None };
    Some(parse_lenient_day(day)?.and_time(NaiveTime::from_hms_opt(*hour, *minute, *second)?))
}

/// Parses `YYYY-MM-DD`. As in LiteLLM, leading zeros of month and day may be left out here.
pub fn parse_lenient_day(text: &str) -> Option<NaiveDate> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let year = digits(year, 4).filter(|&number| year.len() == 4 && number > 0)?;
    if parts.next().is_some() {
        return None;
    }
    NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, digits(month, 2)?, digits(day, 2)?)
}

fn digits(text: &str, most: usize) -> Option<u32> {
    let shaped = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    shaped.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_the_reference_reads_them() {
        for (text, expected) in [
            ("2026-02-01 00:00:00", Some("2026-02-01 00:00:00")),
            ("2026-2-1 7:05:9", Some("2026-02-01 07:05:09")),
            ("2026-02-01  23:59:59", Some("2026-02-01 23:59:59")),
            ("2026-02-01T00:00:00", None),
            ("2026-02-01", None),
            ("2026-02-30 00:00:00", None),
            ("2026-02-01 24:00:00", None),
            ("26-02-01 00:00:00", None),
            ("+026-02-01 00:00:00", None),
            ("2026-02-01 00:00", None),
            ("0000-02-01 00:00:00", None),
            ("", None),
        ] {
            let found = parse_instant(text).map(|instant| instant.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }
}
