//! `GET /spend/keys` and `GET /spend/users`: LiteLLM's rows of keys and users. This file lists the columns that are
//! returned, so that a column that a later LiteLLM adds is not exposed by accident. A password is never returned.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use chrono::NaiveDateTime;
use futures_util::{Stream, TryStreamExt};
use serde_json::{Map, Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::state::AppState;
use crate::http::stream::writer::Writer;
use crate::identity::Caller;
use crate::store::accounts::tables;
use crate::store::log::Timestamp;
use crate::store::log::rows::Instant;
use crate::store::reading::Reading;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_spend_keys)).routes(routes!(list_spend_users))
}

/// Format of a column in the response.
#[derive(Clone, Copy)]
enum Form {
    /// Unchanged; null if the table lacks the column.
    Plain,
    /// Unchanged; `{}` if the table lacks the column.
    Object,
    /// Unchanged; `[]` if the column is null or the table lacks it.
    List,
    /// A number; 0 if the table lacks the column.
    Number,
    /// A time such as `2026-03-01T18:30:00.500000Z`.
    Time,
    /// A time such as `2026-03-01T18:30:00.500+00:00`.
    TimeWithOffset,
    /// A time such as `2026-03-01T18:30:00.500000+00:00`.
    LongTimeWithOffset,
    /// Not a column of the table: always null.
    Null,
    /// Not a column of the table: always `[]`.
    NoRows,
}

type Fields = &'static [(&'static str, Form)];

use Form::{List, LongTimeWithOffset, NoRows, Null, Number, Object, Plain, Time, TimeWithOffset};

const KEY_FIELDS: Fields = &[
    ("token", Plain),
    ("key_name", Plain),
    ("key_alias", Plain),
    ("soft_budget_cooldown", Plain),
    ("spend", Number),
    ("total_spend", Number),
    ("expires", Time),
    ("models", List),
    ("aliases", Object),
    ("config", Object),
    ("router_settings", Plain),
    ("user_id", Plain),
    ("team_id", Plain),
    ("agent_id", Plain),
    ("project_id", Plain),
    ("permissions", Object),
    ("max_parallel_requests", Plain),
    ("metadata", Object),
    ("blocked", Plain),
    ("tpm_limit", Plain),
    ("rpm_limit", Plain),
    ("tpd_limit", Plain),
    ("max_budget", Plain),
    ("budget_duration", Plain),
    ("budget_reset_at", Time),
    ("allowed_cache_controls", List),
    ("allowed_routes", List),
    ("key_type", Plain),
    ("policies", List),
    ("access_group_ids", List),
    ("model_spend", Object),
    ("model_max_budget", Object),
    ("budget_fallbacks", Object),
    ("budget_id", Plain),
    ("organization_id", Plain),
    ("object_permission_id", Plain),
    ("created_at", Time),
    ("created_by", Plain),
    ("updated_at", Time),
    ("updated_by", Plain),
    ("settings_updated_at", Time),
    ("last_active", Time),
    ("rotation_count", Plain),
    ("auto_rotate", Plain),
    ("rotation_interval", Plain),
    ("last_rotation_at", Time),
    ("key_rotation_at", Time),
    ("budget_limits", Plain),
    ("litellm_budget_table", Null),
    ("litellm_organization_table", Null),
    ("litellm_project_table", Null),
    ("object_permission", Null),
    ("jwt_key_mappings", Null),
];

/// Fields of a user in the list of all users.
const USER_FIELDS: Fields = &[
    ("user_id", Plain),
    ("user_alias", Plain),
    ("team_id", Plain),
    ("sso_user_id", Plain),
    ("organization_id", Plain),
    ("teams", Plain),
    ("user_role", Plain),
    ("max_budget", Plain),
    ("spend", Number),
    ("user_email", Plain),
    ("models", Plain),
    ("metadata", Object),
    ("max_parallel_requests", Plain),
    ("tpm_limit", Plain),
    ("rpm_limit", Plain),
    ("budget_duration", Plain),
    ("budget_reset_at", TimeWithOffset),
    ("allowed_cache_controls", Plain),
    ("model_spend", Object),
    ("model_max_budget", Object),
    ("created_at", TimeWithOffset),
    ("updated_at", TimeWithOffset),
    ("object_permission_id", Plain),
    ("policies", Plain),
    ("password_reset_required", Plain),
    ("last_breach_check_at", TimeWithOffset),
    ("key_aliases", Plain),
];

/// Fields of a user who is requested by ID.
const ONE_USER_FIELDS: Fields = &[
    ("verified_subjects", Null),
    ("user_id", Plain),
    ("user_alias", Plain),
    ("team_id", Plain),
    ("sso_user_id", Plain),
    ("organization_id", Plain),
    ("object_permission_id", Plain),
    ("password_reset_required", Plain),
    ("last_breach_check_at", Time),
    ("teams", List),
    ("user_role", Plain),
    ("max_budget", Plain),
    ("spend", Number),
    ("user_email", Plain),
    ("models", List),
    ("metadata", Object),
    ("max_parallel_requests", Plain),
    ("tpm_limit", Plain),
    ("rpm_limit", Plain),
    ("budget_duration", Plain),
    ("budget_reset_at", Time),
    ("allowed_cache_controls", List),
    ("policies", List),
    ("model_spend", Object),
    ("model_max_budget", Object),
    ("created_at", Time),
    ("updated_at", Time),
    ("litellm_organization_table", Null),
    ("organization_memberships", NoRows),
    ("invitations_created", Null),
    ("invitations_updated", Null),
    ("invitations_user", Null),
    ("object_permission", Null),
];

/// Parameters of `/spend/users`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SpendUsersParams {
    /// Get User Table row for user_id; users who are not admins may give only their own ID
    user_id: Option<String>,
}

impl FromQuery for SpendUsersParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { user_id: reader.text("user_id") }
    }
}

/// Returns keys by their hash, with all columns of LiteLLM's table.
///
/// Keys are sorted by descending spend. Users who are not admins see only their own keys.
#[utoipa::path(get, path = "/spend/keys", tag = DASHBOARD_TAG, operation_id = "spend_key_fn_spend_keys_get",
    responses((status = 200, description = "Keys", body = Vec<Object>)))]
async fn list_spend_keys(reads: Reads, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    let rows = match caller.own_rows_only() {
        None => Rows::Keys,
        Some("") => return Ok(Json(json!([])).into_response()),
        Some(user_id) => Rows::KeysOf(user_id.to_owned()),
    };
    let reading = reads.start().await?;
    reads.send(write(reading, rows), "application/json").await
}

/// Returns users, with all columns of LiteLLM's table except the password.
///
/// Users are sorted by descending spend. Users who are not admins see only themselves.
#[utoipa::path(get, path = "/spend/users", tag = DASHBOARD_TAG, operation_id = "spend_user_fn_spend_users_get",
    params(SpendUsersParams),
    responses((status = 200, description = "Users; null in place of one that does not exist", body = Vec<Option<Object>>),
              (status = 403, description = "Another user")))]
async fn list_spend_users(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<SpendUsersParams>,
) -> Result<Response, ApiError> {
    let user_id = match (caller.own_rows_only(), params.user_id) {
        (None, None) => {
            let reading = reads.start().await?;
            return reads.send(write(reading, Rows::Users), "application/json").await;
        }
        (None, Some(asked)) => asked,
        (Some(""), _) => return Ok(Json(json!([])).into_response()),
        (Some(own), Some(asked)) if own != asked => {
            let message = "Not authorized to view spend for another user.";
            return Err(ApiError::nested(StatusCode::FORBIDDEN, message));
        }
        (Some(own), _) => own.to_owned(),
    };
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let user = tables::user(connection, &user_id).await?;
    Ok(Json([user.map(|row| answer(ONE_USER_FIELDS, row.0))]).into_response())
}

/// The rows to list.
enum Rows {
    Keys,
    KeysOf(String),
    Users,
}

fn write(mut reading: Reading, wanted: Rows) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let mut writer = Writer::new();
        writer.open_list();
        {
            let connection = reading.connection();
            // If a user lists their own keys, `expires` is written with an offset.
            let own = matches!(wanted, Rows::KeysOf(_));
            let (mut rows, fields) = match wanted {
                Rows::Keys => (tables::all_keys(connection), KEY_FIELDS),
                Rows::KeysOf(user_id) => (tables::keys_of_user(connection, user_id), KEY_FIELDS),
                Rows::Users => (tables::all_users(connection), USER_FIELDS),
            };
            while let Some(mut row) = rows.try_next().await? {
                let expires = row.get("expires").filter(|_| own).map(|value| format(LongTimeWithOffset, Some(value.clone())));
                let mut object = answer(fields, std::mem::take(&mut row.0));
                if let Some(expires) = expires {
                    object.insert("expires".to_owned(), expires);
                }
                writer.value(&object)?;
                if let Some(chunk) = writer.chunk() {
                    yield chunk;
                }
            }
        }
        reading.finish().await?;
        writer.close();
        yield writer.take();
    }
}

/// The fields of the response, in their order.
fn answer(fields: Fields, mut row: Map<String, Value>) -> Map<String, Value> {
    fields.iter().map(|(name, form)| ((*name).to_owned(), format(*form, row.remove(*name)))).collect()
}

fn format(form: Form, value: Option<Value>) -> Value {
    match form {
        Plain => value.unwrap_or_default(),
        Object => value.unwrap_or_else(|| json!({})),
        List => value.filter(|value| !value.is_null()).unwrap_or_else(|| json!([])),
        Number => value.unwrap_or_else(|| json!(0.0)),
        Time => instant(value, |time| serde_json::to_value(Timestamp(time))),
        TimeWithOffset => instant(value, |time| serde_json::to_value(Instant(time))),
        LongTimeWithOffset => instant(value, |time| {
            let text = serde_json::to_value(Timestamp(time))?;
            Ok(text.as_str().map_or(Value::Null, |text| Value::String(text.replace('Z', "+00:00"))))
        }),
        Null => Value::Null,
        NoRows => json!([]),
    }
}

fn instant(value: Option<Value>, write: impl Fn(NaiveDateTime) -> serde_json::Result<Value>) -> Value {
    let time = value.as_ref().and_then(Value::as_str);
    let time = time.map(|text| text.trim_end_matches("+00:00"));
    let time = time.and_then(|text| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok());
    time.and_then(|time| write(time).ok()).unwrap_or_default()
}
