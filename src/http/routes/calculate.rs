//! `POST /spend/calculate`: what a call will cost, or did.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{BODY_LIMIT, FromQuery, Query, QueryReader, parse_object, read_body};
use crate::http::state::AppState;
use litespend_pricing::{CalculateRequest, Calculation, Component, PricingError};

/// Bodies above this size, in bytes, are priced off the async runtime: counting their tokens takes more than about a
/// millisecond.
const LARGE: usize = 16 * 1024;

/// Parameters of `/spend/calculate`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CalculateParams {
    /// Add the lines of the bill to the answer
    #[param(required = false, default = false)]
    explain: bool,
}

impl FromQuery for CalculateParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { explain: reader.boolean("explain", false) }
    }
}

/// A model with messages (before a call), or a response (after it).
#[derive(utoipa::ToSchema)]
#[schema(as = SpendCalculateRequest)]
#[expect(dead_code, reason = "the shape for the OpenAPI document; bodies are read field by field")]
pub struct SpendCalculateRequest {
    /// Model, as the call names it.
    #[schema(example = "gpt-4o", required = false)]
    model: Option<String>,
    /// Messages of the call; with `model`.
    #[schema(required = false)]
    messages: Option<Vec<Value>>,
    /// The provider's response, with its `model` and `usage`.
    #[schema(value_type = Option<Object>, required = false)]
    completion_response: Option<Value>,
}

/// The cost.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SpendCalculateResponse {
    /// USD.
    #[schema(example = 2.25e-5)]
    cost: f64,
    /// The lines of the bill, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    breakdown: Option<CostBreakdown>,
}

/// How a cost came about.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CostBreakdown {
    /// Model as it was priced.
    model: String,
    /// Provider that the model was resolved to.
    provider: String,
    /// Entry of the price table; null where the provider stated the cost.
    price_entry: Option<String>,
    /// Whether LiteLLM no longer lists the model.
    retired: bool,
    /// Prompt tokens, reported or counted.
    prompt_tokens: u64,
    /// Completion tokens; 0 before a call.
    completion_tokens: u64,
    /// Lines; their costs add up to `cost` exactly.
    components: Vec<CostComponent>,
}

/// A line of a bill: `cost` is `quantity` times `unit_price`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CostComponent {
    /// What is charged for, for example `input_tokens`.
    #[schema(value_type = String, example = "input_tokens")]
    kind: Value,
    /// How much of it.
    #[schema(value_type = f64)]
    quantity: Box<serde_json::value::RawValue>,
    /// USD for one.
    #[schema(value_type = f64)]
    unit_price: Box<serde_json::value::RawValue>,
    /// USD for all.
    #[schema(value_type = f64)]
    cost: Box<serde_json::value::RawValue>,
}

/// What a call costs: `model` and `messages` before it, or `completion_response` after it.
#[utoipa::path(post, path = "/spend/calculate", tag = crate::http::openapi::base::TAG,
    operation_id = "calculate_spend_spend_calculate_post", security(("APIKeyHeader" = [])),
    params(CalculateParams), request_body = SpendCalculateRequest,
    responses((status = 200, description = "The cost", body = SpendCalculateResponse),
              (status = 400, description = "No price, or not enough to price"),
              (status = 422, description = "A field of the wrong type")))]
pub async fn calculate_spend(
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
        // One at a time: on few cores more would keep others waiting.
        let turn = Arc::clone(&state.large_requests).acquire_owned().await;
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
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
    // The reference's name for a response that names no model.
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
        prompt_tokens: calculation.prompt_tokens,
        completion_tokens: calculation.completion_tokens,
        components: calculation.components.iter().map(line).collect(),
    }
}

fn line(component: &Component) -> CostComponent {
    // All digits, so that the lines add up on the other side as well.
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
