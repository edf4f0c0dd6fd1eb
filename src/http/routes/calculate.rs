//! `POST /spend/calculate`: the cost of a call, before or after it is made.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{BODY_LIMIT, FromQuery, Query, QueryReader, parse_object, read_body};
use crate::http::openapi::base::TAG;
use crate::http::state::AppState;
use litespend_pricing::{CalculateRequest, Calculation, Component, PricingError};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(calculate_spend))
}

/// Bodies of at least this size, in bytes, are priced outside the async runtime, because counting their tokens takes
/// more than about a millisecond.
const LARGE: usize = 16 * 1024;

/// Parameters of `/spend/calculate`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CalculateParams {
    /// Add the line items of the cost to the response
    #[param(required = false, default = false)]
    explain: bool,
}

impl FromQuery for CalculateParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { explain: reader.boolean("explain", false) }
    }
}

/// A model with messages (before a call), or a response (after a call).
#[derive(utoipa::ToSchema)]
#[schema(as = SpendCalculateRequest)]
#[expect(dead_code, reason = "the shape for the OpenAPI document; bodies are read field by field")]
pub struct SpendCalculateRequest {
    /// Name of the model, as in the call.
    #[schema(example = "gpt-4o", required = false)]
    model: Option<String>,
    /// Messages of the call; requires `model`.
    #[schema(required = false)]
    messages: Option<Vec<Value>>,
    /// The provider's response, with its `model` and `usage`.
    #[schema(value_type = Option<Object>, required = false)]
    completion_response: Option<Value>,
}

/// The cost of the call.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SpendCalculateResponse {
    /// Cost in USD.
    #[schema(example = 2.25e-5)]
    cost: f64,
    /// The line items of the cost. Present only with `explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    breakdown: Option<CostBreakdown>,
}

/// Line items of a cost.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CostBreakdown {
    /// Name of the model that was priced.
    model: String,
    /// Provider to which the name of the model was resolved.
    provider: String,
    /// Name of the entry in the price table; null if the provider stated the cost.
    price_entry: Option<String>,
    /// Whether the model is retired: LiteLLM no longer lists it.
    retired: bool,
    /// The last version of LiteLLM that listed the model, if it is retired and that version is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    last_version: Option<String>,
    /// Prompt tokens, from the response or counted in the messages.
    prompt_tokens: u64,
    /// Completion tokens; 0 before a call.
    completion_tokens: u64,
    /// Line items. Their costs add up to `cost` exactly.
    components: Vec<CostComponent>,
}

/// A line item: `cost` is `quantity` times `unit_price`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CostComponent {
    /// Kind of unit that is charged, for example `input_tokens`.
    #[schema(value_type = String, example = "input_tokens")]
    kind: Value,
    /// Number of units.
    #[schema(value_type = f64)]
    quantity: Box<serde_json::value::RawValue>,
    /// Price of one unit in USD.
    #[schema(value_type = f64)]
    unit_price: Box<serde_json::value::RawValue>,
    /// Cost of all units in USD.
    #[schema(value_type = f64)]
    cost: Box<serde_json::value::RawValue>,
}

/// Returns the cost of a call: from `model` and `messages` before the call, or from `completion_response` after it.
#[utoipa::path(post, path = "/spend/calculate", tag = TAG, operation_id = "calculate_spend_spend_calculate_post",
    params(CalculateParams), request_body = SpendCalculateRequest,
    responses((status = 200, description = "The cost", body = SpendCalculateResponse),
              (status = 400, description = "No price, or not enough to price"),
              (status = 422, description = "A field of the wrong type")))]
async fn calculate_spend(
    State(state): State<AppState>,
    Query(params): Query<CalculateParams>,
    request: Request,
) -> Result<Json<SpendCalculateResponse>, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(body, BODY_LIMIT).await?;
    let request = CalculateRequest::from_body(parse_object(&parts.headers, &bytes)?).map_err(|errors| {
        ApiError::Validation(
            errors
                .iter()
                .map(|error| FieldError {
                    kind: error.kind,
                    loc: error.loc.iter().map(|part| Value::from(*part)).collect(),
                    msg: error.msg.to_owned(),
                })
                .collect(),
        )
    })?;
    let pricer = state.prices.current();
    let now = state.clock.now();
    let priced = if bytes.len() < LARGE {
        pricer.calculate(&request, now)
    } else {
        // One large request is priced at a time. On few cores, more would delay other requests.
        let permit = Arc::clone(&state.large_requests).acquire_owned().await;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            pricer.calculate(&request, now)
        })
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
    };
    let calculation = priced.map_err(refusal)?;
    let cost = calculation.cost_f64();
    Ok(Json(SpendCalculateResponse { cost, breakdown: params.explain.then(|| breakdown(calculation)) }))
}

fn refusal(error: PricingError) -> ApiError {
    // LiteLLM's error type for a response that names no model.
    let kind = match error {
        PricingError::ModelMissing => ErrorType::InternalServerError,
        _ => ErrorType::InvalidRequest,
    };
    ApiError::Refused { status: StatusCode::BAD_REQUEST, kind, message: format!("Bad Request - {error}"), param: None }
}

fn breakdown(calculation: Calculation) -> CostBreakdown {
    CostBreakdown {
        model: calculation.model,
        provider: calculation.provider,
        price_entry: calculation.price_entry,
        retired: calculation.retired,
        last_version: calculation.last_version,
        prompt_tokens: calculation.prompt_tokens,
        completion_tokens: calculation.completion_tokens,
        components: calculation.components.iter().map(line).collect(),
    }
}

fn line(component: &Component) -> CostComponent {
    // All digits are sent, so that the line items add up for the client too.
    let digits = |amount: rust_decimal::Decimal| {
        serde_json::value::RawValue::from_string(amount.normalize().to_string()).unwrap_or_default()
    };
    CostComponent {
        kind: serde_json::to_value(component.kind).unwrap_or_default(),
        quantity: digits(component.quantity),
        unit_price: digits(component.unit_price),
        cost: digits(component.cost),
    }
}
