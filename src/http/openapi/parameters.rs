//! Adds the constraints of parameters and records that their Rust types do not express: days, instants, strings that
//! PostgreSQL can store, and which parameters are required.

use utoipa::openapi::path::{Operation, Parameter};
use utoipa::openapi::schema::{ArrayItems, SchemaType};
use utoipa::openapi::{Components, KnownFormat, RefOr, Required, Schema, SchemaFormat, Type};

use crate::route_table;

/// The pattern of a string without a NUL.
const TEXT: &str = r"^[^\u0000]*$";

/// The pattern of a day and a time of day. (The server also accepts them without leading zeros.)
const INSTANT: &str = concat!(
    r"^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-",
    r"((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)",
    r" ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$"
);

/// Adds to every parameter of an operation which values it accepts.
pub(super) fn complete(path: &str, operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            complete_parameter(path, parameter);
        }
    }
}

fn complete_parameter(path: &str, parameter: &mut Parameter) {
    let is_date = matches!(parameter.name.as_str(), "start_date" | "end_date");
    if is_date && route_table::find(path).is_some_and(|route| route.needs_days) {
        parameter.required = Required::True;
    }
    let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema else { return };
    let is_text = matches!(&schema.schema_type, SchemaType::Type(Type::String));
    if !is_text || schema.format.is_some() || schema.pattern.is_some() || schema.enum_values.is_some() {
        return;
    }
    match (is_date, path.starts_with("/spend/logs/")) {
        (true, false) => schema.format = Some(SchemaFormat::KnownFormat(KnownFormat::Date)),
        (true, true) => schema.pattern = Some(INSTANT.to_owned()),
        (false, _) => schema.pattern = Some(TEXT.to_owned()),
    }
}

/// Adds to the string fields of records that they must not contain a NUL, as for parameters.
pub(super) fn complete_records(components: &mut Components) {
    for name in ["UsageRecord", "StandardLoggingPayload"] {
        if let Some(RefOr::T(Schema::Object(record))) = components.schemas.get_mut(name) {
            record.properties.values_mut().for_each(complete_text);
        }
    }
}

fn complete_text(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(schema)) => {
            let is_text = match &schema.schema_type {
                SchemaType::Type(schema_type) => *schema_type == Type::String,
                SchemaType::Array(types) => types.contains(&Type::String),
                SchemaType::AnyValue => false,
            };
            if is_text && schema.format.is_none() && schema.enum_values.is_none() {
                schema.pattern = Some(TEXT.to_owned());
            }
        }
        RefOr::T(Schema::Array(list)) => {
            if let ArrayItems::RefOrSchema(item) = &mut list.items {
                complete_text(item);
            }
        }
        _ => {}
    }
}
