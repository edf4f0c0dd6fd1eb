//! `POST /v1/traces`: OpenTelemetry's spans become bookings.

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use litespend::identity::hash_key;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::sums::{assert_consistent, rows};
use crate::support::{MASTER_KEY, TestApp, insert, owners, request, settings};

const PATH: &str = "/v1/traces";
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// An answer with its bytes.
struct Raw {
    status: StatusCode,
    content_type: String,
    retry_after: bool,
    body: Bytes,
}

impl Raw {
    /// The number of rejected spans and the message of an answer in Protocol Buffers.
    fn rejected(&self) -> (i64, String) {
        assert_eq!((self.status, self.content_type.as_str()), (StatusCode::OK, PROTOBUF), "{:?}", self.body);
        let response = ExportTraceServiceResponse::decode(self.body.clone()).unwrap();
        response.partial_success.map_or((0, String::new()), |partial| (partial.rejected_spans, partial.error_message))
    }

    /// The status of an error in Protocol Buffers.
    fn refusal(&self) -> (u16, i32, String) {
        assert_eq!(self.content_type, PROTOBUF, "{:?}", self.body);
        let status = RpcStatus::decode(self.body.clone()).unwrap();
        (self.status.as_u16(), status.code, status.message)
    }

    fn json(&self) -> Value {
        assert_eq!(self.content_type, JSON);
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn app() -> TestApp {
    let app = TestApp::new().await;
    owners::create(&app.pool, 3).await;
    app
}

async fn send(app: &TestApp, key: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Raw {
    let mut builder = request(Method::POST, PATH, key);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let mut request = builder.body(body.into()).unwrap();
    request.extensions_mut().insert(ConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 50000))));
    let router = litespend::http::router::build(app.state.clone());
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    let content_type = parts.headers.get("content-type").map_or("", |value| value.to_str().unwrap()).to_owned();
    let retry_after = parts.headers.contains_key("retry-after");
    Raw { status: parts.status, content_type, retry_after, body: body.collect().await.unwrap().to_bytes() }
}

async fn export(app: &TestApp, key: &str, request: &ExportTraceServiceRequest) -> Raw {
    send(app, key, &[("content-type", PROTOBUF)], request.encode_to_vec()).await
}

fn attribute(name: &str, value: Any) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, Any::StringValue(value.to_owned()))
}

fn count(name: &str, value: i64) -> KeyValue {
    attribute(name, Any::IntValue(value))
}

/// A span of an operation with these attributes.
fn span(number: u8, operation: &str, attributes: &[KeyValue]) -> Span {
    let start = u64::try_from(chrono::Utc::now().timestamp_nanos_opt().unwrap()).unwrap() - 3_600_000_000_000;
    // Whole seconds, so that the same span can be made again.
    let start = start / 86_400_000_000_000 * 86_400_000_000_000;
    Span {
        trace_id: vec![7; 16],
        span_id: vec![1, 2, 3, 4, 5, 6, 7, number],
        name: format!("{operation} gpt-4o"),
        kind: 3,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_500_000_000,
        attributes: [&[text("gen_ai.operation.name", operation)], attributes].concat(),
        ..Span::default()
    }
}

/// The attributes of a call with 1000 and 200 tokens.
fn used() -> Vec<KeyValue> {
    vec![
        text("gen_ai.provider.name", "openai"),
        text("gen_ai.request.model", "gpt-4o"),
        text("gen_ai.response.model", "gpt-4o-2024-08-06"),
        count("gen_ai.usage.input_tokens", 1000),
        count("gen_ai.usage.output_tokens", 200),
    ]
}

/// The cost of that call: 1000 * 2.5e-6 + 200 * 10e-6 USD.
const COST: f64 = 0.0045;

fn batch(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![text("service.name", "shop"), text("deployment.environment.name", "prod")],
        ..Resource::default()
    };
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }],
    }
}

fn id(number: u8) -> String {
    format!("otel-{}-01020304050607{number:02x}", "07".repeat(16))
}

async fn row(app: &TestApp, number: u8) -> Value {
    app.get(&format!("/spend/logs?request_id={}", id(number)), MASTER_KEY).await.json()[0].clone()
}

#[tokio::test]
async fn an_inference_span_becomes_a_row_and_counts_everywhere() {
    let mut told = settings();
    told.otlp.tag_attributes = vec!["service.name".to_owned(), "team".to_owned()];
    let app = TestApp::with(told).await;
    owners::create(&app.pool, 3).await;
    let more = [text("enduser.id", "customer-7"), text("team", "search"), text("gen_ai.conversation.id", "talk-1")];
    let mut first = span(1, "chat", &[used(), more.to_vec()].concat());
    // What real spans carry besides.
    first.attributes.push(attribute(
        "gen_ai.input.messages",
        Any::ArrayValue(ArrayValue {
            values: vec![AnyValue { value: Some(Any::KvlistValue(KeyValueList { values: used() })) }],
        }),
    ));
    first.events.push(Event { name: "gen_ai.choice".to_owned(), attributes: used(), ..Event::default() });
    first.links.push(Link { trace_id: vec![9; 16], span_id: vec![9; 8], ..Link::default() });
    let answer = export(&app, &owners::key(0), &batch(vec![first])).await;
    assert_eq!(answer.rejected(), (0, String::new()));
    assert_eq!(answer.body, "", "an empty message");
    let row = row(&app, 1).await;
    for (field, expected) in [
        ("request_id", json!(id(1))),
        ("api_key", json!(hash_key(&owners::key(0)))),
        ("spend", json!(COST)),
        ("prompt_tokens", json!(1000)),
        ("completion_tokens", json!(200)),
        ("request_duration_ms", json!(1500)),
        ("model", json!("gpt-4o-2024-08-06")),
        ("model_group", json!("gpt-4o")),
        ("custom_llm_provider", json!("openai")),
        ("user", json!("user-0")),
        ("team_id", json!("team-0")),
        ("organization_id", json!("org-1")),
        ("end_user", json!("customer-7")),
        ("session_id", json!("talk-1")),
        ("request_tags", json!(["service.name:shop", "team:search"])),
        ("status", json!("success")),
        ("call_type", json!("acompletion")),
    ] {
        assert_eq!(row[field], expected, "{field}");
    }
    assert_eq!(row["metadata"]["opentelemetry"]["trace_id"], "07".repeat(16));
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn a_span_counts_once_however_often_and_in_whatever_encoding_it_comes() {
    let app = app().await;
    let spans = |numbers: &[u8]| batch(numbers.iter().map(|number| span(*number, "chat", &used())).collect());
    for numbers in [&[1, 2][..], &[1, 2], &[2, 3, 3]] {
        assert_eq!(export(&app, MASTER_KEY, &spans(numbers)).await.rejected(), (0, String::new()));
    }
    let body = serde_json::to_vec(&spans(&[1, 3, 4])).unwrap();
    let answer = send(&app, MASTER_KEY, &[("content-type", "application/json; charset=utf-8")], body).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({})));
    assert_eq!(rows(&app.pool).await, 4);
    assert_consistent(&app.pool).await;
    // The same ids with other tokens are another span.
    let mut other = spans(&[1]);
    other.resource_spans[0].scope_spans[0].spans[0].attributes[4] = count("gen_ai.usage.input_tokens", 1);
    let (rejected, message) = export(&app, MASTER_KEY, &other).await.rejected();
    assert!(rejected == 1 && message.starts_with("trace_id, span_id: "), "{message}");
    assert_eq!(rows(&app.pool).await, 4);
}

#[tokio::test]
async fn batches_that_arrive_together_count_once() {
    let app = app().await;
    let spans = batch((0..50).map(|number| span(number, "chat", &used())).collect());
    let (key, spans) = (owners::key(1), &spans);
    let sent = (0..6).map(|_| export(&app, &key, spans));
    for answer in futures_util::future::join_all(sent).await {
        assert_eq!(answer.rejected(), (0, String::new()));
    }
    assert_eq!(rows(&app.pool).await, 50);
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn only_inferences_count_and_not_the_agents_around_them() {
    let app = app().await;
    let mut spans: Vec<Span> =
        ["invoke_agent", "create_agent", "execute_tool", "invoke_workflow", "retrieval", "GET /"]
            .into_iter()
            .enumerate()
            .map(|(number, operation)| span(u8::try_from(number).unwrap(), operation, &used()))
            .collect();
    spans.push(Span { attributes: used(), ..span(10, "chat", &[]) });
    let warning = (0, "2 spans with token counts but without a known gen_ai.operation.name were ignored".to_owned());
    assert_eq!(export(&app, MASTER_KEY, &batch(spans.clone())).await.rejected(), warning);
    assert_eq!(rows(&app.pool).await, 0);
    for (number, operation) in (20..).zip(["chat", "text_completion", "generate_content"]) {
        spans.push(span(number, operation, &used()));
    }
    let embeddings = [text("gen_ai.request.model", "text-embedding-3-small"), count("gen_ai.usage.input_tokens", 1000)];
    spans.push(span(30, "embeddings", &embeddings));
    assert_eq!(export(&app, MASTER_KEY, &batch(spans)).await.rejected(), warning);
    assert_eq!(rows(&app.pool).await, 4);
    let kinds = r#"SELECT string_agg(call_type, ' ' ORDER BY call_type) FROM "LiteLLM_SpendLogs""#;
    assert_eq!(app.scalar(kinds).await, "acompletion aembedding agenerate_content atext_completion");
    assert_eq!(row(&app, 30).await["spend"], 0.00002);
}

#[tokio::test]
async fn earlier_names_and_failures_count() {
    let app = app().await;
    let old = [
        text("gen_ai.system", "openai"),
        text("gen_ai.request.model", "gpt-4o"),
        count("gen_ai.usage.prompt_tokens", 1000),
        count("gen_ai.usage.completion_tokens", 200),
    ];
    let cached = [
        text("gen_ai.system", "anthropic"),
        text("gen_ai.response.model", "claude-sonnet-4-20250514"),
        count("gen_ai.usage.input_tokens", 1000),
        count("gen_ai.usage.output_tokens", 100),
        count("gen_ai.usage.cache_read_input_tokens", 600),
        count("gen_ai.usage.cache_creation_input_tokens", 300),
    ];
    let limited = [text("gen_ai.request.model", "gpt-4o"), text("error.type", "429")];
    let mut broken = span(4, "chat", &used());
    broken.status = Some(Status { code: 2, message: "secret".to_owned() });
    let spans = vec![span(1, "chat", &old), span(2, "chat", &cached), span(3, "chat", &limited), broken];
    assert_eq!(export(&app, MASTER_KEY, &batch(spans)).await.rejected(), (0, String::new()));
    assert_eq!(row(&app, 1).await["spend"], COST);
    let row_2 = row(&app, 2).await;
    // 100 * 3e-6 + 600 * 0.3e-6 + 300 * 3.75e-6 + 100 * 15e-6 USD.
    assert!((row_2["spend"].as_f64().unwrap() - 0.003105).abs() < 1e-12, "{row_2}");
    assert_eq!(row_2["prompt_tokens"], 1000);
    let row_3 = row(&app, 3).await;
    assert_eq!((&row_3["status"], row_3["spend"].as_f64()), (&json!("failure"), Some(0.0)));
    assert_eq!(row_3["metadata"]["error_information"]["error_class"], "429");
    let row_4 = row(&app, 4).await;
    assert_eq!((&row_4["status"], &row_4["spend"]), (&json!("failure"), &json!(COST)));
    assert!(!row_4.to_string().contains("secret"));
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn spans_that_cannot_be_booked_are_counted_and_the_others_are_booked() {
    let app = app().await;
    let model = |name: &str| vec![text("gen_ai.request.model", name), count("gen_ai.usage.input_tokens", 5)];
    let spans = || {
        let mut spans = vec![
            span(1, "chat", &used()),
            span(2, "chat", &model("no-such-model-a")),
            span(3, "chat", &[text("gen_ai.request.model", "gpt-4o")]),
            span(4, "chat", &[text("gen_ai.request.model", "gpt-4o"), count("gen_ai.usage.input_tokens", -5)]),
            span(5, "chat", &[count("gen_ai.usage.input_tokens", 5)]),
            span(6, "chat", &[text("gen_ai.request.model", "gpt-4o"), count("gen_ai.usage.input_tokens", 1 << 31)]),
            Span { span_id: vec![1, 2], ..span(7, "chat", &used()) },
            Span { start_time_unix_nano: 1, ..span(8, "chat", &used()) },
            Span { start_time_unix_nano: u64::MAX, end_time_unix_nano: u64::MAX, ..span(9, "chat", &used()) },
        ];
        spans.extend([span(10, "chat", &used())]);
        batch(spans)
    };
    for _ in 0..2 {
        let (rejected, message) = export(&app, &owners::key(0), &spans()).await.rejected();
        assert_eq!(rejected, 8, "{message}");
        assert!(message.contains("cost: is missing, and: ") && message.ends_with("and 3 more"), "{message}");
    }
    assert_eq!(rows(&app.pool).await, 2);
    let body = serde_json::to_vec(&spans()).unwrap();
    let answer = send(&app, &owners::key(0), &[("content-type", JSON)], body).await;
    assert_eq!(answer.json()["partialSuccess"]["rejectedSpans"], "8");
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_its_own_encoding() {
    let app = app().await;
    for (body, encoding) in [(&b"\x0a\x05\x01"[..], ""), (&b"{}"[..], ""), (&b"{}"[..], "gzip")] {
        let headers = [("content-type", PROTOBUF), ("content-encoding", encoding)];
        let (status, code, message) = send(&app, MASTER_KEY, &headers, body.to_vec()).await.refusal();
        assert_eq!((status, code), (400, 3), "{message}");
    }
    for body in ["", "[]", "{\"resourceSpans\": 5}", "{"] {
        let answer = send(&app, MASTER_KEY, &[("content-type", JSON)], body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (400, &json!(3)), "{body}");
    }
    for headers in [
        &[][..],
        &[("content-type", "text/plain")],
        &[("content-type", "application/grpc")],
        &[("content-type", PROTOBUF), ("content-encoding", "zstd")],
        &[("content-type", PROTOBUF), ("content-encoding", "gzip, gzip")],
        &[("content-type", PROTOBUF), ("content-encoding", "gzip"), ("content-encoding", "gzip")],
    ] {
        assert_eq!(send(&app, MASTER_KEY, headers, "").await.status, 415, "{headers:?}");
    }
    assert_eq!(send(&app, MASTER_KEY, &[("content-type", PROTOBUF)], "").await.rejected(), (0, String::new()));
    let unknown = send(&app, "sk-unknown", &[("content-type", PROTOBUF)], "").await;
    assert_eq!((unknown.status.as_u16(), unknown.content_type.as_str()), (401, JSON));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn gzip_is_unpacked_within_the_limit_of_a_body() {
    let app = app().await;
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    let packed = gzip(&batch(vec![span(1, "chat", &used())]).encode_to_vec());
    assert_eq!(send(&app, MASTER_KEY, &headers, packed).await.rejected(), (0, String::new()));
    assert_eq!(rows(&app.pool).await, 1);
    // Fields that are not read cost nothing until the body is too large.
    let ignored = |bytes: usize| {
        let mut body = vec![0x7a, 0, 0, 0, 0];
        // The length of what follows, in four bytes of seven bits.
        for (place, byte) in body[1..].iter_mut().enumerate() {
            *byte = u8::try_from(((bytes - 5) >> (7 * place)) & 0x7f).unwrap() | if place < 3 { 0x80 } else { 0 };
        }
        body.resize(bytes, 0);
        body
    };
    for (headers, body) in [(&headers[..1], ignored(64 << 20)), (&headers[..], gzip(&ignored(64 << 20)))] {
        assert_eq!(send(&app, MASTER_KEY, headers, body).await.rejected(), (0, String::new()));
    }
    for (headers, body) in [(&headers[..1], ignored((64 << 20) + 1)), (&headers[..], gzip(&ignored((64 << 20) + 1)))] {
        let (status, code, message) = send(&app, MASTER_KEY, headers, body).await.refusal();
        assert_eq!((status, code), (413, 3), "{message}");
    }
    let (status, ..) = send(&app, MASTER_KEY, &headers, gzip(&vec![0; 200 << 20])).await.refusal();
    assert_eq!(status, 413, "a bomb");
    let many = batch(vec![span(2, "chat", &used()); 10_001]);
    let (status, _, message) = send(&app, MASTER_KEY, &headers, gzip(&many.encode_to_vec())).await.refusal();
    assert!(status == 413 && message.contains("more than 10000"), "{message}");
    assert_eq!(rows(&app.pool).await, 1);
    // Members that unpack to nothing are read one by one, and take their time.
    let members = |count: usize| {
        gzip(&batch(vec![span(3, "chat", &used())]).encode_to_vec()).into_iter().chain(gzip(b"").repeat(count))
    };
    let (status, _, message) = send(&app, MASTER_KEY, &headers, members(800_000).collect::<Vec<u8>>()).await.refusal();
    assert!(status == 400 && message.contains("more than 1000 gzip members"), "{message}");
    assert_eq!(rows(&app.pool).await, 1);
    let some = members(999).collect::<Vec<u8>>();
    assert_eq!(send(&app, MASTER_KEY, &headers, some).await.rejected(), (0, String::new()));
    assert_eq!(rows(&app.pool).await, 2);
}

/// Python's exporter sends 512 spans at once.
#[tokio::test]
async fn a_batch_of_spans_with_the_texts_of_their_calls_is_booked() {
    let app = app().await;
    let texts = text("gen_ai.input.messages", &"What does a call cost? ".repeat(5000));
    let spans: Vec<Span> = (0..=255)
        .flat_map(|number| {
            let one = span(number, "chat", &[used(), vec![texts.clone()]].concat());
            [Span { trace_id: vec![8; 16], ..one.clone() }, one]
        })
        .collect();
    assert_eq!(spans.len(), 512);
    let answer = export(&app, &owners::key(0), &batch(spans)).await;
    assert_eq!(answer.rejected(), (0, String::new()));
    assert_eq!(rows(&app.pool).await, 512);
}

/// What was logged while it was the subscriber.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_says_why_spans_were_not_booked() {
    let app = app().await;
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let warnings = || {
        let text = String::from_utf8(std::mem::take(&mut *lines.0.lock().unwrap())).unwrap();
        text.lines().filter(|line| line.contains(" WARN ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let secret = text("gen_ai.input.messages", "the-secret-prompt");
    let of_model = |name: &str| [text("gen_ai.request.model", name), count("gen_ai.usage.input_tokens", 5)];
    let unpriced = |number: u8| {
        let attributes = [&of_model(&format!("no-such\nmodel-{number}"))[..], std::slice::from_ref(&secret)].concat();
        span(number, "chat", &attributes)
    };
    let booked = span(1, "chat", &used());
    assert_eq!(export(&app, MASTER_KEY, &batch(vec![booked.clone()])).await.rejected(), (0, String::new()));
    assert_eq!(warnings(), Vec::<String>::new());
    let untold = span(30, "chat", &[text("gen_ai.request.model", "gpt-4o"), secret.clone()]);
    export(&app, &owners::key(0), &batch(vec![booked, untold, unpriced(2)])).await;
    let [line]: [String; 1] = warnings().try_into().unwrap();
    for part in [
        "spans were not booked",
        &format!(r#"key="{}""#, &hash_key(&owners::key(0))[..8]),
        "rejected=2 unnamed=0",
        "both are missing; cost: is missing, and: ",
        r"no-such\nmodel-2",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // Many reasons are one line of bounded length, without texts of the call.
    let long = span(40, "chat", &of_model(&"x".repeat(2000)));
    let many = (2..30).map(unpriced).chain([long, Span { attributes: used(), ..span(41, "", &[]) }]);
    export(&app, MASTER_KEY, &batch(many.rev().collect())).await;
    let [line]: [String; 1] = warnings().try_into().unwrap();
    assert!(line.contains(r#"key="master" rejected=29 unnamed=1"#) && line.contains("and 24 more"), "{line}");
    assert!(line.len() < 5 * 400 + 400 && !line.contains("the-secret-prompt"), "{line}");
    // Spans that are ignored because they do not say what they are.
    export(&app, MASTER_KEY, &batch(vec![Span { attributes: used(), ..span(42, "", &[]) }])).await;
    let [line]: [String; 1] = warnings().try_into().unwrap();
    assert!(line.contains("rejected=0 unnamed=1") && line.contains("without a known gen_ai.operation.name"), "{line}");
}

#[tokio::test]
async fn a_value_that_cannot_be_read_spoils_only_the_span_that_needs_it() {
    let app = app().await;
    let chat = |number: u8| serde_json::to_string(&span(number, "chat", &used())).unwrap();
    // The spans of a request, where `VALUE` is a value that cannot be read.
    let body = |spans: &[String], value: &str| {
        let spans = spans.join(",").replace(r#""VALUE""#, value);
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#)
    };
    let odd = [
        r#"{"stringValue": "hello \ud83d"}"#,
        r#"{"intValue": 1e21}"#,
        r#"{"intValue": 1.5}"#,
        r#"{"intValue": "12.0"}"#,
        r#"{"boolValue": "true"}"#,
        r#"{"stringValue": 7}"#,
    ];
    for (number, value) in (1..).zip(odd) {
        let ignored = r#"{"name": "GET \udc00", "attributes": [{"key": "url", "value": "VALUE"}, {"key": "gen_ai.request.model", "value": "VALUE"}]}"#;
        let own = chat(number).replacen(r#""attributes":["#, r#""attributes":[{"key": "url", "value": "VALUE"},"#, 1);
        let answer = send(&app, MASTER_KEY, &[("content-type", JSON)], body(&[ignored.to_owned(), own], value)).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({})), "{value}");
        assert_eq!(rows(&app.pool).await, i64::from(number), "{value}");
    }
    // A span that needs the value is rejected, because its cost or its times are not known.
    let mut spans = vec![chat(10)];
    for (number, changed) in [(11, "gen_ai.usage.input_tokens"), (12, "gen_ai.response.model")] {
        let mut span = span(number, "chat", &used());
        span.attributes.retain(|attribute| attribute.key != changed);
        let more = format!(r#""attributes":[{{"key":"{changed}","value":"VALUE"}},"#);
        spans.push(serde_json::to_string(&span).unwrap().replacen(r#""attributes":["#, &more, 1));
    }
    let timed = serde_json::to_value(span(13, "chat", &used())).unwrap();
    spans.push(timed.to_string().replace(&timed["startTimeUnixNano"].to_string(), r#""soon""#));
    let answer = send(&app, MASTER_KEY, &[("content-type", JSON)], body(&spans, r#"{"intValue": 1.5}"#)).await.json();
    assert_eq!(answer["partialSuccess"]["rejectedSpans"], "3", "{answer}");
    let message = answer["partialSuccess"]["errorMessage"].as_str().unwrap();
    for named in ["gen_ai.usage.input_tokens: ", "gen_ai.response.model: ", "start_time_unix_nano: cannot be read"] {
        assert!(message.contains(named), "{message}");
    }
    assert_eq!(rows(&app.pool).await, 7);
    // In Protocol Buffers, a string that is not UTF-8.
    let named = span(20, "chat", &[used(), vec![text("enduser.id", "caf!")]].concat());
    let mut wrong = span(21, "chat", &used());
    wrong.attributes[3] = text("gen_ai.response.model", "gpt-4o!");
    let mut bytes = batch(vec![named, wrong]).encode_to_vec();
    for text in ["caf!", "gpt-4o!"] {
        let at = bytes.windows(text.len()).position(|found| found == text.as_bytes()).unwrap();
        bytes[at + text.len() - 1] = 0xe9;
    }
    let answer = send(&app, MASTER_KEY, &[("content-type", PROTOBUF)], bytes).await;
    assert_eq!(answer.rejected(), (0, String::new()));
    assert_eq!(row(&app, 20).await["end_user"], "caf\u{fffd}");
    assert_eq!(row(&app, 21).await["model"], "gpt-4o");
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn new_names_beyond_the_limit_are_left_out_and_the_spend_is_booked() {
    let mut told = settings();
    told.booking.new_names_a_day = 3;
    told.otlp.tag_attributes = vec!["team".to_owned(), "service.name".to_owned()];
    let app = TestApp::with(told).await;
    owners::create(&app.pool, 3).await;
    let of = |number: u8, customer: &str, team: &str| {
        span(number, "chat", &[used(), vec![text("user.id", customer), text("team", team)]].concat())
    };
    // The model, the first customer and its team are the three new names.
    let spans = || {
        batch(vec![
            of(1, "customer-1", "a"),
            of(2, "customer-2", "a"),
            of(3, "customer-1", "b"),
            of(4, "customer-1", "a"),
        ])
    };
    for _ in 0..2 {
        assert_eq!(export(&app, &owners::key(0), &spans()).await.rejected(), (0, String::new()));
    }
    assert_eq!(rows(&app.pool).await, 4);
    for (number, customer, tags, left_out) in [
        (1, "customer-1", json!(["team:a"]), json!(["request_tags"])),
        (2, "", json!(["team:a"]), json!(["end_user", "request_tags"])),
        (3, "customer-1", json!([]), json!(["request_tags"])),
        (4, "customer-1", json!(["team:a"]), json!(["request_tags"])),
    ] {
        let row = row(&app, number).await;
        assert_eq!((&row["spend"], row["end_user"].as_str().unwrap_or_default()), (&json!(COST), customer), "{row}");
        assert_eq!((&row["request_tags"], &row["metadata"]["left_out"]), (&tags, &left_out), "{row}");
    }
    // A model is a name, too.
    let tuned = span(
        5,
        "chat",
        &[text("gen_ai.request.model", "ft:gpt-4o-2024-08-06:acme:shoes:1"), count("gen_ai.usage.input_tokens", 1000)],
    );
    assert_eq!(export(&app, &owners::key(0), &batch(vec![tuned])).await.rejected(), (0, String::new()));
    let row = row(&app, 5).await;
    assert_eq!((&row["model"], &row["model_group"]), (&json!(""), &json!("ft:gpt-4o-2024-08-06:acme:shoes:1")));
    assert!(row["spend"].as_f64().unwrap() > 0.0);
    assert_eq!(row["metadata"]["left_out"], json!(["model", "request_tags"]));
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn the_provider_and_the_model_of_a_row_are_those_that_have_the_price() {
    let app = app().await;
    let of = |number: u8, operation: &str, provider: &str, models: [&str; 2]| {
        let attributes = [
            text("gen_ai.system", provider),
            text("gen_ai.request.model", models[0]),
            text("gen_ai.response.model", models[1]),
            count("gen_ai.usage.input_tokens", 0),
            count("gen_ai.usage.output_tokens", 0),
        ];
        span(number, operation, &attributes)
    };
    let mut failed = of(5, "chat", "another-name", ["invented", "invented too"]);
    failed.attributes.push(text("error.type", &"x".repeat(300)));
    let spans = vec![
        of(1, "chat", "cohere", ["command-a-03-2025", "command-a-03-2025"]),
        of(2, "text_completion", "openai", ["gpt-3.5-turbo-instruct", "gpt-3.5-turbo-instruct:20230824-v2"]),
        of(3, "chat", "ChatOpenAI", ["gpt-4o", "gpt-4o-2024-08-06"]),
        of(4, "chat", "openai", ["gpt-4o", "invented-1"]),
        failed,
        of(6, "chat", "groq", ["gpt-4o", "gpt-4o"]),
    ];
    let (rejected, message) = export(&app, &owners::key(0), &batch(spans)).await.rejected();
    assert!(rejected == 1 && message.contains("groq"), "{message}");
    for (number, model, provider) in [
        (1, "command-a-03-2025", "cohere_chat"),
        (2, "gpt-3.5-turbo-instruct", "text-completion-openai"),
        (3, "gpt-4o-2024-08-06", "openai"),
        (4, "gpt-4o", "openai"),
        (5, "", ""),
    ] {
        let row = row(&app, number).await;
        let found = (row["model"].as_str().unwrap(), row["custom_llm_provider"].as_str().unwrap_or_default());
        assert_eq!(found, (model, provider), "{row}");
    }
    let stated = |row: Value| row["metadata"]["opentelemetry"].clone();
    assert_eq!(stated(row(&app, 3).await)["provider"], "chatopenai");
    assert_eq!(stated(row(&app, 4).await)["response_model"], "invented-1");
    let failed = row(&app, 5).await;
    assert_eq!((&failed["status"], &failed["model_group"]), (&json!("failure"), &json!("invented")));
    assert_eq!(failed["metadata"]["left_out"], json!(["error.type"]));
    let names = r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs" WHERE model LIKE 'invented%'"#;
    assert_eq!(app.scalar(names).await, "0");
}

#[tokio::test]
async fn inferences_of_other_conventions_count() {
    let app = app().await;
    let bare = |number: u8, attributes: &[KeyValue]| Span { attributes: attributes.to_vec(), ..span(number, "", &[]) };
    let openllmetry = [
        text("llm.request.type", "chat"),
        text("gen_ai.system", "OpenAI"),
        text("gen_ai.request.model", "gpt-4o"),
        text("gen_ai.response.model", "gpt-4o-2024-08-06"),
        count("gen_ai.usage.prompt_tokens", 1000),
        count("gen_ai.usage.completion_tokens", 200),
        count("llm.usage.total_tokens", 1200),
    ];
    let openinference = [
        text("openinference.span.kind", "LLM"),
        text("llm.provider", "anthropic"),
        text("llm.system", "anthropic"),
        text("llm.model_name", "claude-sonnet-4-20250514"),
        count("llm.token_count.prompt", 1000),
        count("llm.token_count.completion", 100),
        count("llm.token_count.prompt_details.cache_read", 600),
        count("llm.token_count.prompt_details.cache_write", 300),
    ];
    let embedding = [
        text("openinference.span.kind", "EMBEDDING"),
        text("embedding.model_name", "text-embedding-3-small"),
        count("llm.token_count.prompt", 1000),
    ];
    let chain = [text("openinference.span.kind", "CHAIN"), count("llm.token_count.prompt", 1000)];
    let mut agent = span(5, "invoke_agent", &openinference);
    agent.attributes.push(text("llm.request.type", "chat"));
    let spans = vec![bare(1, &openllmetry), bare(2, &openinference), bare(3, &embedding), bare(4, &chain), agent];
    assert_eq!(export(&app, MASTER_KEY, &batch(spans.clone())).await.rejected(), (0, String::new()));
    assert_eq!(rows(&app.pool).await, 3);
    assert_eq!(row(&app, 1).await["spend"], COST);
    let row_2 = row(&app, 2).await;
    // 100 * 3e-6 + 600 * 0.3e-6 + 300 * 3.75e-6 + 100 * 15e-6 USD.
    assert!((row_2["spend"].as_f64().unwrap() - 0.003105).abs() < 1e-12, "{row_2}");
    assert_eq!((&row_2["model"], &row_2["call_type"]), (&json!("claude-sonnet-4-20250514"), &json!("acompletion")));
    let row_3 = row(&app, 3).await;
    assert_eq!((&row_3["spend"], &row_3["call_type"]), (&json!(0.00002), &json!("aembedding")));
    // Spans that may be inferences are not ignored without a word.
    let unnamed = [bare(6, &used()), bare(7, &used()), bare(8, &used()[..3]), spans[0].clone()];
    let warning = "2 spans with token counts but without a known gen_ai.operation.name were ignored";
    let answer = export(&app, MASTER_KEY, &batch(unnamed.to_vec())).await;
    assert_eq!(answer.rejected(), (0, warning.to_owned()));
    let body = serde_json::to_vec(&batch(unnamed.to_vec())).unwrap();
    let answer = send(&app, MASTER_KEY, &[("content-type", JSON)], body).await.json();
    assert_eq!(answer, json!({"partialSuccess": {"rejectedSpans": "0", "errorMessage": warning}}));
    assert_eq!(rows(&app.pool).await, 3);
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn bookings_and_refusals_are_counted_once() {
    let app = app().await;
    let count = async |line: &str| {
        let text = app.get("/metrics", MASTER_KEY).await.text;
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<u64>().ok());
        found.unwrap_or_else(|| panic!("{line}: {text}"))
    };
    let booked = async |status: &str| count(&format!(r#"litespend_booked_records_total{{status="{status}"}}"#)).await;
    let refused = async |reason: &str| count(&format!(r#"litespend_refusals_total{{reason="{reason}"}}"#)).await;
    let unpriced = [text("gen_ai.request.model", "no-such-model"), self::count("gen_ai.usage.input_tokens", 5)];
    let spans = batch(vec![span(1, "chat", &used()), span(2, "chat", &unpriced), span(3, "chat", &unpriced[..1])]);
    for _ in 0..2 {
        assert_eq!(export(&app, MASTER_KEY, &spans).await.rejected().0, 2);
    }
    assert_eq!((booked("recorded").await, booked("duplicate").await, booked("error").await), (1, 1, 4));
    assert_eq!(refused("invalid").await, 0);
    let unnamed = batch(vec![Span { attributes: used(), ..span(4, "", &[]) }, span(5, "invoke_agent", &used())]);
    assert_eq!(export(&app, MASTER_KEY, &unnamed).await.rejected().0, 0);
    let became = async |outcome: &str| count(&format!(r#"litespend_otlp_spans_total{{outcome="{outcome}"}}"#)).await;
    for (outcome, expected) in [("recorded", 1), ("duplicate", 1), ("rejected", 4), ("unnamed", 1)] {
        assert_eq!(became(outcome).await, expected, "{outcome}");
    }
    assert_eq!(export(&app, "sk-unknown", &spans).await.status, 401);
    assert_eq!(send(&app, MASTER_KEY, &[("content-type", PROTOBUF)], "{").await.status, 400);
    assert_eq!((refused("unauthorized").await, refused("invalid").await), (1, 1));
    // Answers that state a reason for each record are refusals, too.
    let record = json!({"model": "no-such-model", "prompt_tokens": 5});
    assert_eq!(app.post("/spend/usage", MASTER_KEY, &record).await.status, 422);
    assert_eq!((refused("invalid").await, booked("error").await), (2, 5));
    assert_eq!(app.get("/no/such/path", MASTER_KEY).await.status, 404);
    assert_eq!(refused("not_found").await, 1);
}

#[tokio::test]
async fn viewers_and_keys_without_the_route_book_nothing() {
    let app = app().await;
    let users = json!([{"user_id": "viewer", "user_role": "internal_user_viewer"}]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_UserTable", &users).await;
    let keys = json!([{"token": hash_key("sk-viewer"), "user_id": "viewer"},
                      {"token": hash_key("sk-logs"), "user_id": "user-0", "allowed_routes": ["/spend/logs"]},
                      {"token": hash_key("sk-traces"), "user_id": "user-0", "allowed_routes": ["/v1/traces"]}]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &keys).await;
    let spans = batch(vec![span(1, "chat", &used())]);
    let (status, code, message) = export(&app, "sk-viewer", &spans).await.refusal();
    assert!((status, code) == (403, 7) && message.contains("read-only"), "{message}");
    assert_eq!(export(&app, "sk-logs", &spans).await.status, 403);
    assert_eq!(rows(&app.pool).await, 0);
    assert_eq!(export(&app, "sk-traces", &spans).await.rejected(), (0, String::new()));
    assert_eq!(rows(&app.pool).await, 1);
}

#[tokio::test]
async fn on_litellms_database_spans_are_booked_only_when_told_so() {
    let app = app().await;
    app.execute("CREATE TABLE _prisma_migrations (id text)").await;
    let spans = batch(vec![span(1, "chat", &used())]);
    let (status, code, message) = export(&app, MASTER_KEY, &spans).await.refusal();
    assert!((status, code) == (409, 9) && message.contains("--otlp"), "{message}");
    let mut told = settings();
    told.otlp.on_litellm_database = true;
    let told = app.beside(told);
    let (status, _, message) = export(&told, MASTER_KEY, &spans).await.refusal();
    assert!(status == 409 && message.contains("litespend booking install"), "{message}");
    assert!(litespend::store::booking::ids::install(&mut app.pool.acquire().await.unwrap()).await.unwrap());
    assert_eq!(export(&told, MASTER_KEY, &spans).await.rejected(), (0, String::new()));
    // There, an ordinary key may book nothing, as with `POST /spend/usage`.
    let (status, _, message) = export(&told, &owners::key(0), &spans).await.refusal();
    assert!(status == 403 && message.contains("book_usage"), "{message}");
    assert_eq!(rows(&app.pool).await, 1);
}

#[tokio::test]
async fn while_the_database_is_away_exporters_are_told_to_send_again() {
    let app = app().await;
    let spans = batch(vec![span(1, "chat", &used())]);
    assert_eq!(export(&app, MASTER_KEY, &batch(Vec::new())).await.rejected(), (0, String::new()));
    app.pool.close().await;
    let answer = export(&app, MASTER_KEY, &spans).await;
    let (status, code, message) = answer.refusal();
    assert_eq!((status, code), (503, 14), "{message}");
    assert!(answer.retry_after);
}

/// The decoders agree with OpenTelemetry's own types, whatever the spans contain.
#[test]
fn both_encodings_are_read_as_opentelemetry_writes_them() {
    use litespend::otlp::{json, protobuf};
    use rand::{RngExt, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let told = settings().otlp;
    for _ in 0..300 {
        let spans = (0..random.random_range(0..4))
            .map(|number| {
                let mut span = span(number, ["chat", "invoke_agent"][random.random_range(0..2)], &[]);
                span.trace_id = (0..16).map(|_| random.random()).collect();
                span.start_time_unix_nano = random.random();
                span.status = random.random_bool(0.5).then(|| Status {
                    code: random.random_range(0..3),
                    message: "m".repeat(random.random_range(0..300)),
                });
                for name in ["gen_ai.request.model", "gen_ai.usage.input_tokens", "user.id", "other"] {
                    let value = match random.random_range(0..7) {
                        0 => Any::StringValue("é".repeat(random.random_range(0..1500))),
                        1 => Any::BoolValue(random.random()),
                        2 => Any::IntValue(random.random()),
                        3 => Any::DoubleValue(random.random()),
                        4 => Any::ArrayValue(ArrayValue { values: vec![AnyValue { value: None }] }),
                        5 => Any::KvlistValue(KeyValueList { values: used() }),
                        _ => Any::BytesValue(vec![0, 255]),
                    };
                    span.attributes.push(attribute(name, value));
                }
                span
            })
            .collect();
        let request = batch(spans);
        let of_protobuf = protobuf::decode(&request.encode_to_vec(), &told).unwrap();
        let of_json = json::decode(&serde_json::to_vec(&request).unwrap(), &told).unwrap();
        assert_eq!(of_protobuf, of_json);
        let sent = request.resource_spans[0].scope_spans[0].spans.iter();
        let sent: Vec<_> = sent.filter(|span| span.attributes[0] == text("gen_ai.operation.name", "chat")).collect();
        let kept: Vec<_> = of_protobuf.resources.iter().flat_map(|resource| &resource.spans).collect();
        assert_eq!(kept.len(), sent.len());
        for (kept, sent) in kept.iter().zip(sent) {
            assert_eq!((kept.trace_id.to_vec(), kept.span_id.to_vec()), (sent.trace_id.clone(), sent.span_id.clone()));
            assert_eq!((kept.start_time, kept.end_time), (sent.start_time_unix_nano, sent.end_time_unix_nano));
            assert_eq!(kept.is_error, sent.status.as_ref().is_some_and(|status| status.code == 2));
        }
        // Whatever is cut off or changed, nothing panics.
        let mut bytes = request.encode_to_vec();
        for _ in 0..20 {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
            let _ = protobuf::decode(&bytes, &told);
            let _ = protobuf::decode(&bytes[..at], &told);
            let _ = json::decode(&bytes, &told);
        }
    }
}
