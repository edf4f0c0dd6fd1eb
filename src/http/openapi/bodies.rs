//! Schemas of request bodies that the handlers read field by field. They are used in the OpenAPI document only.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::ArrayItems;
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, Schema, Type};

/// The pattern of a string of at least one character without a NUL.
const NAME: &str = r"^[^\u0000]+$";

/// The key to block or unblock.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape for the OpenAPI document; bodies are read field by field")]
pub struct KeyRequest {
    /// The key: raw, or its SHA-256.
    #[schema(schema_with = name)]
    key: String,
}

/// The keys to delete: `keys` or `key_aliases`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape for the OpenAPI document; bodies are read field by field")]
pub struct KeysRequest {
    /// Keys: raw, or their SHA-256.
    #[schema(required = false, schema_with = names)]
    keys: Option<Vec<String>>,
    /// Aliases of keys.
    #[schema(required = false, schema_with = names)]
    key_aliases: Option<Vec<String>>,
}

/// `ExportTraceServiceRequest`, in JSON by the rules of OTLP.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the shape for the OpenAPI document; bodies are read field by field")]
pub struct TracesRequest {
    /// Spans by resource and scope: `[{resource, scopeSpans: [{scope, spans: [...]}]}]`.
    #[schema(required = false, value_type = Option<Vec<Object>>)]
    resource_spans: Option<Vec<Value>>,
}

/// `ExportTraceServiceResponse`, in JSON by the rules of OTLP.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the shape for the OpenAPI document; answers are encoded by `otlp::answer`")]
pub struct TracesResponse {
    /// Missing if all inference spans were booked, now or before, and nothing calls for a warning.
    #[schema(required = false)]
    partial_success: Option<TracesPartialSuccess>,
}

/// The inference spans that were not booked, or a warning.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the shape for the OpenAPI document; answers are encoded by `otlp::answer`")]
pub struct TracesPartialSuccess {
    /// Their number, as a string; 0 for a warning.
    #[schema(example = "1", pattern = "^[0-9]+$")]
    rejected_spans: String,
    /// The reasons.
    error_message: String,
}

/// `google.rpc.Status`, in JSON.
#[derive(Serialize, ToSchema)]
pub struct TracesStatus {
    /// `google.rpc.Code`.
    #[schema(example = 3)]
    code: u8,
    /// The message for people.
    message: String,
}

/// The refusal of a whole request.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum TracesRefusal {
    /// By the handler.
    Status(TracesStatus),
    /// By a layer that all routes share, such as the check of the key.
    Request(crate::http::openapi::shared::ErrorResponse),
}

fn names() -> Schema {
    Schema::Array(
        ArrayBuilder::new()
            .items(ArrayItems::RefOrSchema(Box::new(name().into())))
            .min_items(Some(1))
            .max_items(Some(1000))
            .build(),
    )
}

fn name() -> Schema {
    Schema::Object(ObjectBuilder::new().schema_type(Type::String).pattern(Some(NAME)).build())
}

/// The schema of an address or a range of addresses, in any spelling except IPv4 embedded in IPv6.
pub fn address() -> Schema {
    let octet = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    let group = "[0-9a-fA-F]{1,4}";
    let mut v6 = vec![format!("({group}:){{7}}{group}"), format!("({group}:){{1,7}}:"), "::".to_owned()];
    v6.extend((1..=6).map(|after| format!("({group}:){{1,{}}}(:{group}){{{after}}}", 7 - after)));
    v6.push(format!(":(:{group}){{1,7}}"));
    let v4 = format!("({octet}\\.){{3}}{octet}(/(3[0-2]|[12]?[0-9]))?");
    let v6 = format!("({})(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?", v6.join("|"));
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("IPv4 or IPv6, alone or with a prefix length."))
        .examples([Value::from("10.0.0.0/8")])
        .pattern(Some(format!("^({v4}|{v6})$")));
    Schema::Object(schema.build())
}
