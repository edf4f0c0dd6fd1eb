//! The OpenAPI document: the committed file, the document that clients are generated from, and the served one are the
//! same.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::Request;
use litespend::route_table::Access;
use litespend::route_table::{self, Part, ROUTES};
use serde_json::{Value, json};

use crate::support::TestApp;

fn document() -> Value {
    serde_json::to_value(litespend::http::openapi::document()).unwrap()
}

/// The path, method and description of every operation in the document.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((path.clone(), method.to_uppercase(), operation.clone()));
        }
    }
    found
}

#[test]
fn the_committed_document_is_the_generated_one() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
    assert!(
        committed == litespend::http::openapi::yaml().unwrap(),
        "openapi.yaml is out of date: cargo run -- openapi >openapi.yaml"
    );
}

#[test]
fn the_published_operations_keep_their_names() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let expected = BTreeMap::from([
        ("add_allowed_ip_add_allowed_ip_post", "POST /add/allowed_ip"),
        ("calculate_spend_spend_calculate_post", "POST /spend/calculate"),
        ("delete_allowed_ip_delete_allowed_ip_post", "POST /delete/allowed_ip"),
        ("get_global_spend_report_global_spend_report_get", "GET /global/spend/report"),
        ("get_user_daily_activity_user_daily_activity_get", "GET /user/daily/activity"),
        ("global_spend_reset_global_spend_reset_post", "POST /global/spend/reset"),
        ("global_view_spend_tags_global_spend_tags_get", "GET /global/spend/tags"),
        ("view_spend_logs_spend_logs_get", "GET /spend/logs"),
        ("view_spend_tags_spend_tags_get", "GET /spend/tags"),
    ]);
    let operations = operations(&document);
    for (id, place) in expected {
        let (_, _, operation) = operations.iter().find(|(_, _, operation)| operation["operationId"] == id).unwrap();
        assert_eq!(operation["tags"], json!(["Budget & Spend Tracking"]), "{id}");
        let (path, method, _) = operations.iter().find(|(_, _, other)| other == operation).unwrap();
        assert_eq!(format!("{method} {path}"), place);
    }
    let ids: BTreeSet<_> = operations.iter().map(|(_, _, operation)| operation["operationId"].to_string()).collect();
    assert_eq!(ids.len(), operations.len(), "operation ids are unique");
}

#[test]
fn keys_are_sent_in_litellms_header() {
    let document = document();
    let scheme = &document["components"]["securitySchemes"]["APIKeyHeader"];
    assert_eq!(
        (&scheme["type"], &scheme["in"], &scheme["name"]),
        (&json!("apiKey"), &json!("header"), &json!("x-litellm-api-key"))
    );
    for (path, _, operation) in operations(&document) {
        let route = route_table::api().find(|route| route.path == path).unwrap();
        let open = matches!(route.access, Access::Probe | Access::Public);
        let expected = if open { Value::Null } else { json!([{ "APIKeyHeader": [] }]) };
        assert_eq!(operation["security"], expected, "{path}");
    }
}

#[test]
fn every_parameter_says_what_it_is_and_which_values_it_takes() {
    let document = document();
    let mut parameters = BTreeMap::new();
    for (path, _, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = format!("{path} {}", parameter["name"].as_str().unwrap());
            assert!(parameter["description"].as_str().is_some_and(|text| text.len() > 5), "{name}");
            assert!(parameter["schema"]["type"].is_string(), "{name}: {}", parameter["schema"]);
            let place =
                if path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap())) { "path" } else { "query" };
            assert_eq!(parameter["in"], place, "{name}");
            parameters.insert(name, parameter.clone());
        }
    }
    for (name, expected) in [
        ("/user/daily/activity page", json!({ "type": "integer", "minimum": 1, "default": 1, "format": "int64" })),
        (
            "/user/daily/activity page_size",
            json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 50, "format": "int64" }),
        ),
        ("/spend/logs summarize", json!({ "type": "boolean", "default": true })),
        ("/add/allowed_ip force", json!({ "type": "boolean", "default": false })),
    ] {
        let schema = &parameters[name]["schema"];
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(
                schema[field].as_f64().map_or(schema[field].clone(), |number| json!(number)),
                value.as_f64().map_or(value.clone(), |number| json!(number)),
                "{name} {field}"
            );
        }
        assert_eq!(parameters[name]["required"], false, "{name}");
    }
    let group_by = &parameters["/global/spend/report group_by"]["schema"];
    assert_eq!(group_by["enum"], json!(["team", "customer", "api_key", "user", "model_name"]));
    assert_eq!(group_by["default"], "team");
}

#[test]
fn every_operation_says_how_it_answers_and_refuses() {
    let document = document();
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        assert!(operation["summary"].is_string(), "{name}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(response["description"].is_string(), "{name} {status}");
            let schemas: Vec<_> = response["content"].as_object().into_iter().flatten().collect();
            assert!(!schemas.is_empty(), "{name} {status} has no body");
        }
        if operation.get("security").is_some() {
            for status in ["200", "401", "403", "503", "504"] {
                assert!(operation["responses"].get(status).is_some(), "{name} {status}");
            }
        }
    }
    // Every reference has a target.
    let text = document.to_string();
    for part in text.split("#/components/schemas/").skip(1) {
        let schema = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(schema).is_some(), "{schema}");
    }
}

#[tokio::test]
async fn the_route_table_the_router_and_the_document_agree() {
    let document = document();
    let documented: BTreeSet<_> =
        operations(&document).into_iter().map(|(path, method, _)| format!("{method} {path}")).collect();
    let undocumented = ["/openapi.json", "/", "/docs", "/docs/", "/docs/{*rest}"];
    let of_table: BTreeSet<_> = route_table::api()
        .filter(|route| !undocumented.contains(&route.path))
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    assert_eq!(documented, of_table);
    // A line of the table without a handler would be answered 404. One with a method that its handler does not support
    // would be answered with an empty 405.
    let app = TestApp::new().await;
    for route in route_table::api() {
        let path = route.path.replace("{*rest}", "index.html");
        let request = Request::builder().method(route.method).uri(&path).header("api-key", "sk-master-1234");
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        // A handler may answer 404 for an object that it looked up, but in other words than the router.
        let no_handler = answer.status == 404 && answer.text == r#"{"detail":"Not Found"}"#;
        assert!(!no_handler && answer.status != 405, "{} {path}: {}", route.method, answer.status);
    }
    // Without the dashboard, its routes do not exist although they are in the table.
    let is_api = |path: &str| route_table::api().any(|route| route.path == path);
    let absent =
        ROUTES.iter().filter(|route| route.part != Part::Api && !route.path.contains('{') && !is_api(route.path));
    for route in absent {
        let request = Request::builder().method(route.method).uri(route.path).header("api-key", "sk-master-1234");
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text.as_str()),
            (404, r#"{"detail":"Not Found"}"#),
            "{}",
            route.path
        );
    }
}

#[test]
fn no_route_stands_in_the_table_twice() {
    let paths: BTreeSet<_> = ROUTES.iter().map(|route| (route.path, route.method)).collect();
    assert_eq!(paths.len(), ROUTES.len());
    // Whoever looks for a path alone finds the API's route.
    for route in route_table::api() {
        assert_eq!(route_table::find(route.path).map(|found| found.method), Some(route.method), "{}", route.path);
    }
}

/// Checks a JSON value against a schema, as far as this document uses JSON Schema.
fn mismatch(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return mismatch(document, &document["components"]["schemas"][name], value, at);
    }
    for word in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[word].as_array() {
            let found: Vec<_> = choices.iter().filter_map(|choice| mismatch(document, choice, value, at)).collect();
            return (found.len() == choices.len()).then(|| found.join(" / "));
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let fits = types.contains(&kind) || (kind == "integer" && types.contains(&"number"));
    if !fits {
        return Some(format!("{at}: {kind} instead of {types:?}"));
    }
    if let Value::Array(items) = value {
        return items
            .iter()
            .enumerate()
            .find_map(|(n, item)| mismatch(document, &schema["items"], item, &format!("{at}[{n}]")));
    }
    let object = value.as_object()?;
    let missing = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(missing) = missing.into_iter().find(|name| !object.contains_key(*name)) {
        return Some(format!("{at}.{missing}: missing"));
    }
    object.iter().find_map(|(name, value)| {
        let at = format!("{at}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(property), _) => mismatch(document, property, value, &at),
            (None, Value::Object(_)) => mismatch(document, &schema["additionalProperties"], value, &at),
            (None, _) if schema["properties"].is_object() => Some(format!("{at}: not in the schema")),
            _ => None,
        }
    })
}

#[tokio::test]
async fn answers_have_the_shape_that_the_document_gives_them() {
    let app = TestApp::seeded().await;
    let document = document();
    let check = |method: &str, path: &str, answer: &crate::support::Answer| {
        let route = path.split('?').next().unwrap();
        let responses = &document["paths"][route][method.to_lowercase()]["responses"];
        let response = &responses[answer.status.as_u16().to_string()];
        assert!(response.is_object(), "{method} {path}: {} is not in the document", answer.status);
        let schema = &response["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {path} {}", answer.status);
        assert_eq!(mismatch(&document, schema, &answer.json(), "$"), None, "{method} {path}");
    };
    let dates = "start_date=2026-01-01&end_date=2026-03-31";
    for path in [
        "/spend/logs".to_owned(),
        "/spend/logs?request_id=nope".to_owned(),
        "/spend/logs?summarize=junk".to_owned(),
        "/spend/logs?start_date=junk&end_date=junk".to_owned(),
        format!("/spend/logs?{dates}"),
        format!("/spend/logs?{dates}&summarize=false"),
        "/spend/tags".to_owned(),
        "/spend/tags?start_date=junk".to_owned(),
        format!("/global/spend/tags?{dates}"),
        "/global/spend/tags".to_owned(),
        format!("/global/spend/report?{dates}"),
        format!("/global/spend/report?{dates}&group_by=customer"),
        format!("/global/spend/report?{dates}&group_by=api_key"),
        format!("/global/spend/report?{dates}&group_by=junk"),
        format!("/global/spend/report?{dates}&team_id=team-alpha&customer_id=palantir"),
        format!("/user/daily/activity?{dates}&page_size=1000"),
        format!("/user/daily/activity?{dates}&page=0"),
        "/user/daily/activity".to_owned(),
        "/get/allowed_ips".to_owned(),
        "/health/readiness".to_owned(),
        "/health/liveness".to_owned(),
        "/health/liveliness".to_owned(),
    ] {
        for key in [crate::support::MASTER_KEY, "sk-int-key-0001", "sk-nobody"] {
            check("GET", &path, &app.get(&path, key).await);
        }
    }
    for (path, body) in [
        ("/add/allowed_ip", json!({ "ip": "127.0.0.1" })),
        ("/add/allowed_ip", json!({ "ip": "127.0.0.1" })),
        ("/add/allowed_ip", json!({ "ip": 5 })),
        ("/get/allowed_ips", json!(null)),
        ("/delete/allowed_ip", json!({ "ip": "127.0.0.1" })),
        ("/delete/allowed_ip", json!({ "ip": "127.0.0.1" })),
        ("/delete/allowed_ip", json!([])),
        ("/add/allowed_ip", json!({ "ip": "10.0.0.1" })),
        ("/global/spend/reset", json!({})),
    ] {
        let answer = app.post(path, crate::support::MASTER_KEY, &body).await;
        if answer.status != 405 {
            check("POST", path, &answer);
        }
    }
}

#[tokio::test]
async fn days_that_have_to_be_given_are_marked_as_such_and_no_others() {
    let app = TestApp::seeded().await;
    let document = document();
    let mut seen = BTreeMap::new();
    for (path, method, operation) in operations(&document) {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let Some(day) = parameters.iter().find(|parameter| parameter["name"] == "start_date") else { continue };
        // Instants are required there unless a request id is given.
        if path.starts_with("/spend/logs/") {
            assert!(day["schema"]["pattern"].is_string(), "{path}");
            continue;
        }
        assert_eq!((method.as_str(), &day["schema"]["format"]), ("GET", &json!("date")), "{path}");
        let others: Vec<String> = parameters
            .iter()
            .filter(|parameter| {
                parameter["required"] == true && !parameter["name"].as_str().unwrap().ends_with("_date")
            })
            .map(|parameter| format!("{}=x", parameter["name"].as_str().unwrap()))
            .collect();
        // The master key has no team, so the request has to name one.
        let team = if path == "/team/spend/report" { "team_id=x" } else { "" };
        let others = format!("{}&{team}", others.join("&"));
        let without = app.get(&format!("{path}?{others}"), crate::support::MASTER_KEY).await;
        assert_eq!(day["required"] == true, without.status == 400, "{path}: {} {}", without.status, without.text);
        let days = "start_date=2026-02-01&end_date=2026-02-03";
        let with = app.get(&format!("{path}?{others}&{days}"), crate::support::MASTER_KEY).await;
        assert_eq!(with.status, 200, "{path}: {}", with.text);
        *seen.entry(day["required"] == true).or_insert(0) += 1;
    }
    assert!(seen[&true] > 10 && seen[&false] >= 2, "{seen:?}");
}
