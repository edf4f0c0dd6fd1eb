//! Extractors: typed query parameters and JSON bodies. Every rejection is an [`ApiError`] in the shape that FastAPI
//! uses. A parameter type implements [`FromQuery`] and reads its fields from a [`QueryReader`]. Unknown parameters are
//! ignored. If a parameter is repeated, the last value counts.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};

/// The default size limit for a request body: 1 MiB.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// Reads typed fields from a query string and collects the errors.
#[derive(Debug)]
pub struct QueryReader {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl QueryReader {
    fn new(query: &str) -> Self {
        Self { pairs: form_urlencoded::parse(query.as_bytes()).into_owned().collect(), errors: Vec::new() }
    }

    /// A string, if given. A string with a NUL is refused, because PostgreSQL cannot store it.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let value = self.pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())?;
        if value.contains('\0') {
            self.errors.push(FieldError::query(name, "string_type", "Input should not contain a NUL character"));
            return None;
        }
        Some(value)
    }

    /// A whole number between `least` and `most`, or `default` if it is not given.
    pub fn integer(&mut self, name: &str, default: i64, least: i64, most: i64) -> i64 {
        self.optional_integer(name, least, most).unwrap_or(default)
    }

    /// A whole number between `least` and `most`, if given.
    pub fn optional_integer(&mut self, name: &str, least: i64, most: i64) -> Option<i64> {
        let text = self.text(name)?;
        let Ok(value) = text.trim().parse::<i64>() else {
            self.errors.push(FieldError::query(
                name,
                "int_parsing",
                "Input should be a valid integer, unable to parse string as an integer",
            ));
            return None;
        };
        if value < least {
            let message = format!("Input should be greater than or equal to {least}");
            self.errors.push(FieldError::query(name, "greater_than_equal", message));
            return None;
        }
        if value > most {
            let message = format!("Input should be less than or equal to {most}");
            self.errors.push(FieldError::query(name, "less_than_equal", message));
            return None;
        }
        Some(value)
    }

    /// A floating-point number, if given.
    pub fn optional_number(&mut self, name: &str) -> Option<f64> {
        let text = self.text(name)?;
        let number = text.trim().parse().ok();
        if number.is_none() {
            let message = "Input should be a valid number, unable to parse string as a number";
            self.errors.push(FieldError::query(name, "float_parsing", message));
        }
        number
    }

    /// A required string that must not be empty.
    pub fn required_text(&mut self, name: &str) -> String {
        let given = self.pairs.iter().any(|(key, _)| key == name);
        let text = self.text(name);
        if !given {
            self.errors.push(FieldError::query(name, "missing", "Field required"));
        } else if text.as_deref() == Some("") {
            self.errors.push(FieldError::query(name, "string_too_short", "String should have at least 1 character"));
        }
        text.unwrap_or_default()
    }

    /// A boolean in any of the spellings that pydantic accepts, or `default` if it is not given.
    pub fn boolean(&mut self, name: &str, default: bool) -> bool {
        self.optional_boolean(name).unwrap_or(default)
    }

    /// A boolean in any of the spellings that pydantic accepts, if given.
    pub fn optional_boolean(&mut self, name: &str) -> Option<bool> {
        let text = self.text(name)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "on" | "yes" | "t" | "y" => Some(true),
            "false" | "0" | "off" | "no" | "f" | "n" => Some(false),
            _ => {
                let message = "Input should be a valid boolean, unable to interpret input";
                self.errors.push(FieldError::query(name, "bool_parsing", message));
                None
            }
        }
    }

    /// One of the listed values, if given. `expected` is the list as it appears in the error message.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)], expected: &str) -> Option<T> {
        let text = self.text(name)?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            self.errors.push(FieldError::query(name, "literal_error", format!("Input should be {expected}")));
        }
        found
    }

    /// Adds an error for a field that the reader's own checks cannot judge.
    pub fn reject(&mut self, error: FieldError) {
        self.errors.push(error);
    }
}

/// A set of query parameters.
pub trait FromQuery: Sized {
    /// Reads the fields. Errors are collected in the reader.
    fn from_query(reader: &mut QueryReader) -> Self;
}

/// Two sets of parameters in one query string; their errors are reported together.
impl<A: FromQuery, B: FromQuery> FromQuery for (A, B) {
    fn from_query(reader: &mut QueryReader) -> Self {
        let first = A::from_query(reader);
        (first, B::from_query(reader))
    }
}

/// The query parameters of a request.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: FromQuery, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let mut reader = QueryReader::new(parts.uri.query().unwrap_or_default());
        let params = T::from_query(&mut reader);
        if reader.errors.is_empty() { Ok(Self(params)) } else { Err(ApiError::Validation(reader.errors)) }
    }
}

/// A request body that is a JSON object of at most `LIMIT` bytes.
#[derive(Debug)]
pub struct JsonObject<const LIMIT: usize = BODY_LIMIT>(pub Map<String, Value>);

impl<S: Send + Sync, const LIMIT: usize> FromRequest<S> for JsonObject<LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(body, LIMIT).await?;
        parse_object(&parts.headers, &bytes).map(Self)
    }
}

/// Reads the whole body, or answers 413 if it is longer than `limit` bytes. If the announced length is too long,
/// nothing is read. The body is collected in a single buffer, so that many tiny chunks cost no more memory than one
/// large chunk.
pub async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut body = std::pin::pin!(body);
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > limit {
        return Err(ApiError::TooLarge { limit });
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let unreadable = |_| ApiError::bad_request(ErrorType::InvalidRequest, "The request body could not be read.");
        let Ok(chunk) = frame.map_err(unreadable)?.into_data() else { continue };
        if whole.len() + chunk.len() > limit {
            return Err(ApiError::TooLarge { limit });
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// Parses a body as a JSON object. Refuses it as the reference does: 422 for an empty body and for malformed JSON, 400
/// for a body that is not an object or is not declared as JSON.
pub fn parse_object(headers: &HeaderMap, bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    read_object(headers, bytes, |value: Value| match value {
        Value::Object(object) => Some(object),
        _ => None,
    })
}

/// Refuses the same bodies as [`parse_object`], but builds no tree of values. The tree of a large body would take a
/// hundred times as much memory as its bytes.
pub fn check_object(headers: &HeaderMap, bytes: &[u8]) -> Result<(), ApiError> {
    let is_object = bytes.trim_ascii_start().starts_with(b"{");
    read_object(headers, bytes, |_: IgnoredAny| is_object.then_some(()))
}

fn read_object<'a, T: Deserialize<'a>, O>(
    headers: &HeaderMap,
    bytes: &'a [u8],
    object: impl FnOnce(T) -> Option<O>,
) -> Result<O, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::Validation(vec![FieldError {
            kind: "missing",
            loc: vec![json!("body")],
            msg: "Field required".into(),
        }]));
    }
    match serde_json::from_slice::<T>(bytes).map(object) {
        Ok(Some(object)) if declares_json(headers) => Ok(object),
        Ok(Some(_)) => Err(ApiError::Validation(vec![FieldError {
            kind: "model_attributes_type",
            loc: vec![json!("body")],
            msg: "Input should be sent with the header Content-Type: application/json".into(),
        }])),
        Ok(None) => Err(invalid_payload("expected an object")),
        Err(error) if declares_json(headers) => Err(ApiError::Validation(vec![FieldError {
            kind: "json_invalid",
            loc: vec![json!("body"), json!(position(bytes, &error))],
            msg: "JSON decode error".into(),
        }])),
        Err(error) => Err(invalid_payload(&format!("not JSON: line {} column {}", error.line(), error.column()))),
    }
}

fn invalid_payload(what: &str) -> ApiError {
    ApiError::Refused {
        status: StatusCode::BAD_REQUEST,
        kind: ErrorType::InvalidRequest,
        message: format!("Invalid JSON payload: {what}"),
        param: Some("request_body".into()),
    }
}

/// Whether `Content-Type` declares JSON, or is missing.
pub fn declares_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The offset of a syntax error, in characters from the start of the text, counted as Python counts.
fn position(bytes: &[u8], error: &serde_json::Error) -> usize {
    let text = String::from_utf8_lossy(bytes);
    let before: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(|line| line.chars().count()).sum();
    before + error.column().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_reader_reports_every_bad_field() {
        let mut reader = QueryReader::new("page=0&page_size=x&summarize=maybe&name=a&name=b");
        assert_eq!(reader.integer("page", 1, 1, i64::MAX), 1);
        assert_eq!(reader.integer("page_size", 50, 1, 1000), 50);
        assert!(reader.boolean("summarize", true));
        assert_eq!(reader.text("name").as_deref(), Some("b"));
        let kinds: Vec<_> = reader.errors.iter().map(|error| error.kind).collect();
        assert_eq!(kinds, ["greater_than_equal", "int_parsing", "bool_parsing"]);
    }

    #[test]
    fn bodies_are_refused_as_the_reference_refuses_them() {
        let kind = |headers: &HeaderMap, body: &str| match parse_object(headers, body.as_bytes()) {
            Err(ApiError::Validation(errors)) => format!("422 {} {:?}", errors[0].kind, errors[0].loc.last()),
            Err(error) => error.status().as_u16().to_string(),
            Ok(_) => "200".into(),
        };
        let json = HeaderMap::new();
        let mut text = HeaderMap::new();
        text.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        for body in ["", "{not json", "[]", "7", "{}", " {\"a\": [1, {}]} ", "{} x"] {
            for headers in [&json, &text] {
                let light = check_object(headers, body.as_bytes()).map_err(|error| format!("{error:?}"));
                let tree = parse_object(headers, body.as_bytes()).map(|_| ()).map_err(|error| format!("{error:?}"));
                assert_eq!(light, tree, "{body}");
            }
        }
        assert_eq!(kind(&json, ""), "422 missing Some(String(\"body\"))");
        assert_eq!(kind(&json, "{not json"), "422 json_invalid Some(Number(1))");
        assert_eq!(kind(&json, "[]"), "400");
        assert_eq!(kind(&text, "model=gpt-4o"), "400");
        assert_eq!(kind(&text, "{}"), "422 model_attributes_type Some(String(\"body\"))");
        assert_eq!(kind(&json, "{}"), "200");
    }
}

#[cfg(test)]
mod fuzz;
