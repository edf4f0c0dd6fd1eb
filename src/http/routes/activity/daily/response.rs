//! The response of `/user/daily/activity`: days with their sums and breakdowns, and the metadata of the page. The other
//! routes for activity return the same types.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::http::routes::page_count::page_count;
use crate::store::activity::figures::Figures;
use crate::store::key_metadata::KeyMetadata;

/// Sums over daily rows.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct SpendMetrics {
    /// Spend in USD.
    pub spend: f64,
    /// Cost of provisioned throughput in USD; always 0 in litespend.
    pub flat_cost: f64,
    /// Hours of provisioned throughput; always 0 in litespend.
    pub ptu_hours: f64,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Prompt tokens that were read from the provider's cache.
    pub cache_read_input_tokens: i64,
    /// Prompt tokens that were written to the provider's cache.
    pub cache_creation_input_tokens: i64,
    /// Tokens saved by prompt compression.
    pub compression_saved_tokens: i64,
    /// USD saved by prompt compression.
    pub compression_savings_spend: f64,
    /// USD saved by the provider's cache.
    pub prompt_caching_savings_spend: f64,
    /// USD saved by cache markers that the gateway added.
    pub gateway_injected_caching_savings_spend: f64,
    /// USD saved by automatic routing.
    pub autorouter_savings_spend: f64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
    /// Number of requests that succeeded.
    pub successful_requests: i64,
    /// Number of requests that failed.
    pub failed_requests: i64,
    /// Number of requests.
    pub api_requests: i64,
    /// Sum of response times, in milliseconds.
    pub total_response_time_ms: i64,
    /// Number of requests in the sum of response times.
    pub timed_requests: i64,
}

impl From<&Figures> for SpendMetrics {
    fn from(figures: &Figures) -> Self {
        Self {
            spend: figures.spend,
            flat_cost: 0.0,
            ptu_hours: 0.0,
            prompt_tokens: figures.prompt_tokens,
            completion_tokens: figures.completion_tokens,
            cache_read_input_tokens: figures.cache_read_input_tokens,
            cache_creation_input_tokens: figures.cache_creation_input_tokens,
            compression_saved_tokens: figures.compression_saved_tokens,
            compression_savings_spend: figures.compression_savings_spend,
            prompt_caching_savings_spend: figures.prompt_caching_savings_spend,
            gateway_injected_caching_savings_spend: figures.gateway_injected_caching_savings_spend,
            autorouter_savings_spend: figures.autorouter_savings_spend,
            total_tokens: figures.total_tokens(),
            successful_requests: figures.successful_requests,
            failed_requests: figures.failed_requests,
            api_requests: figures.api_requests,
            total_response_time_ms: figures.total_response_time_ms,
            timed_requests: figures.timed_requests,
        }
    }
}

/// Serializes figures as responses show them.
fn write_metrics<S: Serializer>(figures: &Figures, serializer: S) -> Result<S::Ok, S::Error> {
    SpendMetrics::from(figures).serialize(serializer)
}

/// Sums of one key.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct KeyMetrics {
    /// Sums of the rows.
    #[serde(serialize_with = "write_metrics")]
    #[schema(value_type = SpendMetrics)]
    pub metrics: Figures,
    /// Metadata of the key.
    pub metadata: KeyMetadata,
}

/// Sums of one group (a model, a provider and so on), also by key.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct GroupMetrics {
    /// Sums of the rows.
    #[serde(serialize_with = "write_metrics")]
    #[schema(value_type = SpendMetrics)]
    pub metrics: Figures,
    /// Metadata of the group.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// Sums by key.
    // The values are boxed because a map allocates space for several values at once, which is wasted in a group with
    // one key.
    #[schema(value_type = BTreeMap<String, KeyMetrics>)]
    pub api_key_breakdown: BTreeMap<String, Box<KeyMetrics>>,
}

/// Sums of a day by group.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Breakdown {
    /// Sums by MCP tool.
    pub mcp_servers: BTreeMap<String, GroupMetrics>,
    /// Sums by model.
    pub models: BTreeMap<String, GroupMetrics>,
    /// Sums by public model name.
    pub model_groups: BTreeMap<String, GroupMetrics>,
    /// Sums by provider.
    pub providers: BTreeMap<String, GroupMetrics>,
    /// Sums by endpoint.
    pub endpoints: BTreeMap<String, GroupMetrics>,
    /// Sums by key.
    #[schema(value_type = BTreeMap<String, KeyMetrics>)]
    pub api_keys: BTreeMap<String, Box<KeyMetrics>>,
    /// Sums by user, team or tag.
    pub entities: BTreeMap<String, GroupMetrics>,
    /// Sums by guardrail; always empty in litespend.
    pub guardrails: BTreeMap<String, GroupMetrics>,
}

/// Sums of one day.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DailySpendData {
    /// Day, UTC.
    pub date: NaiveDate,
    /// Sums of the rows.
    #[serde(serialize_with = "write_metrics")]
    #[schema(value_type = SpendMetrics)]
    pub metrics: Figures,
    /// Sums by group.
    pub breakdown: Breakdown,
}

/// Sums over the page, and the position of the page.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct DailySpendMetadata {
    /// Spend in USD.
    pub total_spend: f64,
    /// Cost of provisioned throughput in USD; always 0 in litespend.
    pub total_flat_cost: f64,
    /// Hours of provisioned throughput; always 0 in litespend.
    pub total_ptu_hours: f64,
    /// Prompt tokens.
    pub total_prompt_tokens: i64,
    /// Completion tokens.
    pub total_completion_tokens: i64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
    /// Number of requests.
    pub total_api_requests: i64,
    /// Number of requests that succeeded.
    pub total_successful_requests: i64,
    /// Number of requests that failed.
    pub total_failed_requests: i64,
    /// Prompt tokens that were read from the provider's cache.
    pub total_cache_read_input_tokens: i64,
    /// Prompt tokens that were written to the provider's cache.
    pub total_cache_creation_input_tokens: i64,
    /// Tokens saved by prompt compression.
    pub total_compression_saved_tokens: i64,
    /// USD saved by prompt compression.
    pub total_compression_savings_spend: f64,
    /// USD saved by the provider's cache.
    pub total_prompt_caching_savings_spend: f64,
    /// USD saved by cache markers that the gateway added.
    pub total_gateway_injected_caching_savings_spend: f64,
    /// USD saved by automatic routing.
    pub total_autorouter_savings_spend: f64,
    /// Sum of response times, in milliseconds.
    pub total_response_time_ms: i64,
    /// Number of requests in the sum of response times.
    pub total_timed_requests: i64,
    /// Number of this page, from 1.
    pub page: i64,
    /// Total number of pages.
    pub total_pages: i64,
    /// Whether there is a next page.
    pub has_more: bool,
    /// Maximum number of listed keys, if the response limits them.
    pub api_key_limit: Option<i64>,
    /// Total number of keys, if the response limits them.
    pub total_api_keys: Option<i64>,
    /// Number of keys of each team or tag, if the response limits them.
    pub entity_total_api_keys: Option<BTreeMap<String, i64>>,
}

impl DailySpendMetadata {
    /// Metadata with these totals, and without paging.
    pub fn of(totals: &Figures) -> Self {
        Self {
            total_spend: totals.spend,
            total_prompt_tokens: totals.prompt_tokens,
            total_completion_tokens: totals.completion_tokens,
            total_tokens: totals.total_tokens(),
            total_api_requests: totals.api_requests,
            total_successful_requests: totals.successful_requests,
            total_failed_requests: totals.failed_requests,
            total_cache_read_input_tokens: totals.cache_read_input_tokens,
            total_cache_creation_input_tokens: totals.cache_creation_input_tokens,
            total_compression_saved_tokens: totals.compression_saved_tokens,
            total_compression_savings_spend: totals.compression_savings_spend,
            total_prompt_caching_savings_spend: totals.prompt_caching_savings_spend,
            total_gateway_injected_caching_savings_spend: totals.gateway_injected_caching_savings_spend,
            total_autorouter_savings_spend: totals.autorouter_savings_spend,
            total_response_time_ms: totals.total_response_time_ms,
            total_timed_requests: totals.timed_requests,
            ..Self::default()
        }
    }

    /// The same totals, of a page of at most `size` of `rows` rows.
    pub fn on_page(self, page: i64, size: i64, rows: i64) -> Self {
        Self { page, total_pages: page_count(rows, size), has_more: page.saturating_mul(size) < rows, ..self }
    }
}

/// Response with daily activity.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SpendAnalyticsPaginatedResponse {
    /// Days, newest first.
    pub results: Vec<DailySpendData>,
    /// Totals and paging.
    pub metadata: DailySpendMetadata,
}
