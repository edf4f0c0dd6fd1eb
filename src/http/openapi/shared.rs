//! The parts that all operations of the document share: the key that they need, their error answers, in the shape that
//! `ApiError` gives them, and the schema of parameters that have a default.

use serde::Serialize;
use serde_json::Value;
use utoipa::openapi::path::{Operation, Parameter};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::http::openapi::base::SECURITY;
use crate::route_table;

/// An error answer, in one of the two envelopes that LiteLLM's clients know.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ErrorResponse {
    /// Most errors.
    Error(ErrorEnvelope),
    /// Errors in fields, unknown paths, and some others.
    Detail(DetailEnvelope),
}

/// `{"error": {...}}`.
#[derive(Serialize, ToSchema)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorContent,
}

/// Describes an error.
#[derive(Serialize, ToSchema)]
pub struct ErrorContent {
    /// The message for people.
    pub message: String,
    /// The kind of error, such as `auth_error`.
    #[serde(rename = "type")]
    #[schema(example = "auth_error")]
    pub kind: String,
    /// The parameter at fault, if there is one.
    pub param: Option<String>,
    /// The HTTP status, as a string.
    #[schema(example = "401")]
    pub code: String,
}

/// `{"detail": ...}`.
#[derive(Serialize, ToSchema)]
pub struct DetailEnvelope {
    /// A message, an object with `error`, or for 422 a list of fields, each with `type`, `loc` and `msg`.
    pub detail: Value,
}

/// The errors that every route with a key may answer, in addition to its own.
const OF_EVERY_KEY: [(&str, &str); 4] = [
    ("401", "No key, an unknown, blocked or expired one, or one that may not call this"),
    ("403", "The client's address or the key's list of routes does not allow this"),
    ("503", "The database is not available; `Retry-After` says when to try again"),
    ("504", "No answer in time"),
];

/// Gives every operation its key, if the route table says that it needs one, and the error answers that all operations
/// share; and gives every error answer its body schema.
pub fn complete_document(document: &mut OpenApi) {
    if let Some(components) = &mut document.components {
        for (name, schema) in [
            (ErrorResponse::name(), ErrorResponse::schema()),
            (ErrorEnvelope::name(), ErrorEnvelope::schema()),
            (ErrorContent::name(), ErrorContent::schema()),
            (DetailEnvelope::name(), DetailEnvelope::schema()),
        ] {
            components.schemas.insert(name.into_owned(), schema);
        }
        crate::http::openapi::parameters::complete_records(components);
    }
    for (path, item) in &mut document.paths.paths {
        let is_open = route_table::find(path).is_some_and(|route| route.access.is_open());
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            operation.security = (!is_open).then(|| vec![SecurityRequirement::new(SECURITY, Vec::<String>::new())]);
            complete(operation);
            crate::http::openapi::parameters::complete(path, operation);
        }
    }
}

fn complete(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            merge_default(parameter);
        }
    }
    let responses = &mut operation.responses.responses;
    if operation.security.is_some() {
        for (status, description) in OF_EVERY_KEY {
            let response = || RefOr::T(ResponseBuilder::new().description(description).build());
            responses.entry(status.to_owned()).or_insert_with(response);
        }
        if operation.parameters.is_some() || operation.request_body.is_some() {
            let description = "A parameter or field of the wrong type";
            let response = || RefOr::T(ResponseBuilder::new().description(description).build());
            responses.entry("422".to_owned()).or_insert_with(response);
        }
        if operation.request_body.is_some() {
            for (status, description) in
                [("400", "The body is not a JSON object"), ("413", "The body is larger than the limit")]
            {
                let response = || RefOr::T(ResponseBuilder::new().description(description).build());
                responses.entry(status.to_owned()).or_insert_with(response);
            }
        }
    }
    for (status, response) in responses {
        if let RefOr::T(response) = response
            && status.starts_with(['4', '5'])
            && response.content.is_empty()
        {
            add_body(response);
        }
    }
}

/// For an enum with a default, utoipa writes `allOf` with the enum and an object that holds the default. No value
/// matches both, so this merges the two.
fn merge_default(parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::AllOf(all))) = &parameter.schema else { return };
    if let [RefOr::T(Schema::Object(words)), RefOr::T(Schema::Object(default))] = all.items.as_slice() {
        let mut words = words.clone();
        words.default = default.default.clone();
        parameter.schema = Some(RefOr::T(Schema::Object(words)));
    }
}

fn add_body(response: &mut Response) {
    let schema = Ref::from_schema_name(ErrorResponse::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    response.content.insert("application/json".to_owned(), RefOr::T(content));
}
