//! The list of client addresses that may call the server: `/add/allowed_ip`, `/delete/allowed_ip` and
//! `/get/allowed_ips`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::field_error::FieldError;
use crate::http::client_ip::AllowedAddresses;
use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, JsonObject, Query, QueryReader};
use crate::http::openapi::base::TAG;
use crate::http::routes::reset::StatusResponse;
use crate::http::state::AppState;
use crate::http::telemetry::ClientAddress;
use crate::settings::network::parse_network;
use crate::store;
use crate::store::database;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(add_allowed_ip))
        .routes(routes!(delete_allowed_ip))
        .routes(routes!(list_allowed_ips))
}

/// An address or a range of addresses.
#[derive(Debug, utoipa::ToSchema)]
#[schema(as = IPAddress)]
#[expect(dead_code, reason = "the shape for the OpenAPI document; bodies are read field by field")]
pub struct IpAddressRequest {
    /// IPv4 or IPv6, alone or with a prefix length.
    #[schema(schema_with = crate::http::openapi::bodies::address)]
    ip: String,
}

/// The list of allowed addresses.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AllowedIpsResponse {
    /// The entries in the order in which they were added; null if there has never been a list.
    data: Option<Vec<String>>,
}

/// Parameters of a change to the list.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ChangeParams {
    /// Change the list even if it then no longer allows the caller's own address
    #[param(required = false, default = false)]
    force: bool,
}

impl FromQuery for ChangeParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { force: reader.boolean("force", false) }
    }
}

/// Adds an address or range to the list.
///
/// An empty list allows every address. The first entry restricts access to the entries of the list.
#[utoipa::path(post, path = "/add/allowed_ip", tag = TAG, operation_id = "add_allowed_ip_add_allowed_ip_post",
    params(ChangeParams), request_body = IpAddressRequest,
    responses((status = 200, description = "Added", body = StatusResponse),
              (status = 400, description = "Already on the list"),
              (status = 409, description = "The change would lock the caller out"),
              (status = 422, description = "Not an address or range")))]
async fn add_allowed_ip(
    State(state): State<AppState>,
    sender: Option<Extension<ClientAddress>>,
    Query(params): Query<ChangeParams>,
    JsonObject(body): JsonObject,
) -> Result<Json<StatusResponse>, ApiError> {
    let ip = ip_field(&body)?;
    if parse_network(&ip).is_none() {
        let message = "Input should be an IPv4 or IPv6 address or a CIDR range";
        return Err(ApiError::Validation(vec![FieldError::body("ip", "ip_any_network", message)]));
    }
    change(&state, sender, params.force, |list| {
        if list.find(&ip).is_some() {
            return Err(ApiError::detail(StatusCode::BAD_REQUEST, "IP address already exists"));
        }
        let mut entries = list.entries.unwrap_or_default();
        entries.push(ip.clone());
        Ok(entries)
    })
    .await?;
    Ok(StatusResponse::success(format!("IP {ip} address added successfully")))
}

/// Removes an entry from the list. Removing the last entry lifts the restriction.
#[utoipa::path(post, path = "/delete/allowed_ip", tag = TAG, operation_id = "delete_allowed_ip_delete_allowed_ip_post",
    params(ChangeParams), request_body = IpAddressRequest,
    responses((status = 200, description = "Removed", body = StatusResponse),
              (status = 404, description = "Not on the list"),
              (status = 409, description = "The change would lock the caller out")))]
async fn delete_allowed_ip(
    State(state): State<AppState>,
    sender: Option<Extension<ClientAddress>>,
    Query(params): Query<ChangeParams>,
    JsonObject(body): JsonObject,
) -> Result<Json<StatusResponse>, ApiError> {
    let ip = ip_field(&body)?;
    change(&state, sender, params.force, |list| {
        let Some(entry) = list.find(&ip).map(str::to_owned) else {
            return Err(ApiError::detail(StatusCode::NOT_FOUND, "IP address not found"));
        };
        Ok(list.entries.unwrap_or_default().into_iter().filter(|other| *other != entry).collect())
    })
    .await?;
    Ok(StatusResponse::success(format!("IP {ip} deleted successfully")))
}

/// Returns the list as it is in the database.
#[utoipa::path(get, path = "/get/allowed_ips", tag = TAG, operation_id = "get_allowed_ips",
    responses((status = 200, description = "The list", body = AllowedIpsResponse)))]
async fn list_allowed_ips(State(state): State<AppState>) -> Result<Json<AllowedIpsResponse>, ApiError> {
    state.refresh_allow_list().await?;
    Ok(Json(AllowedIpsResponse { data: state.allow_list.current().entries.clone() }))
}

async fn change(
    state: &AppState,
    sender: Option<Extension<ClientAddress>>,
    force: bool,
    edit: impl FnOnce(AllowedAddresses) -> Result<Vec<String>, ApiError>,
) -> Result<(), ApiError> {
    let _guard = state.allow_list.lock().await;
    let mut connection = database::acquire(&state.pool).await?;
    let initial = state.settings.allowed_ips.clone();
    let entries = store::allowed_ips::update(&mut connection, initial, |entries| {
        let entries = edit(AllowedAddresses { entries })?;
        let changed = AllowedAddresses { entries: Some(entries) };
        if let (false, Some(Extension(ClientAddress(address)))) = (force, sender)
            && !changed.allows(address)
        {
            let message =
                format!("The new list does not allow your own address {address}. To save it anyway, use ?force=true.");
            return Err(ApiError::nested(StatusCode::CONFLICT, message));
        }
        Ok(changed.entries.unwrap_or_default())
    })
    .await?;
    state.allow_list.replace(AllowedAddresses { entries: Some(entries) });
    Ok(())
}

fn ip_field(body: &Map<String, Value>) -> Result<String, ApiError> {
    match body.get("ip") {
        Some(Value::String(ip)) => Ok(ip.clone()),
        Some(_) => {
            Err(ApiError::Validation(vec![FieldError::body("ip", "string_type", "Input should be a valid string")]))
        }
        None => Err(ApiError::Validation(vec![FieldError::body("ip", "missing", "Field required")])),
    }
}
