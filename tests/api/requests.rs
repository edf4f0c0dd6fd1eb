//! Properties of every request: its id, methods, compression, and the handling of panics.

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use litespend::route_table;
use litespend::route_table::Access;

use crate::support::{Answer, MASTER_KEY, TestApp, request};

async fn send(app: &TestApp, method: &str, path: &str) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    app.send(request(method, path, MASTER_KEY).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_request_id_is_taken_over_and_returned() {
    let app = TestApp::new().await;
    let with_id = |path: &str, id: &[u8]| {
        let value = axum::http::HeaderValue::from_bytes(id).unwrap();
        Request::builder().uri(path).header("x-request-id", value).body(Body::empty()).unwrap()
    };
    let longest = "x".repeat(128);
    for id in ["abc", "4bf92f35-77b3", "Root=1-67891233:abc/+.", longest.as_str()] {
        for path in ["/health/liveliness", "/spend/tags", "/no/such/path"] {
            let answer = app.send(with_id(path, id.as_bytes())).await;
            assert_eq!(answer.headers["x-request-id"], id, "{path}");
        }
    }
    let too_long = "x".repeat(129);
    for id in [&b""[..], b"two words", b"<script>", b"a\"b", b"\xff", b"a,b", too_long.as_bytes()] {
        let answer = app.send(with_id("/health/liveliness", id)).await;
        let returned = answer.headers["x-request-id"].to_str().unwrap();
        assert_eq!(returned.len(), 36, "{id:?}: {returned}");
    }
    let ids: Vec<_> = [send(&app, "GET", "/").await, send(&app, "GET", "/").await]
        .iter()
        .map(|answer| answer.headers["x-request-id"].clone())
        .collect();
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_wrong_method_is_405_with_allow_before_any_key() {
    let app = TestApp::new().await;
    for route in route_table::api() {
        let path = route.path.replace("{*rest}", "index.html");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
            let bare = Request::builder().method(method).uri(&path).body(Body::empty()).unwrap();
            let answer = app.send(bare).await;
            let allowed = route.method == method;
            assert_eq!(answer.status == 405, !allowed, "{method} {path}");
            if !allowed {
                assert_eq!(answer.headers["allow"], route.method, "{method} {path}");
                assert_eq!(answer.json(), serde_json::json!({ "detail": "Method Not Allowed" }));
            }
        }
    }
}

#[tokio::test]
async fn head_is_get_without_a_body_for_probes_and_pages_and_405_for_the_api() {
    let app = TestApp::new().await;
    for route in route_table::api().filter(|route| route.method == "GET") {
        let path = route.path.replace("{*rest}", "index.html");
        let answer = send(&app, "HEAD", &path).await;
        let open = matches!(route.access, Access::Probe | Access::Public);
        assert_eq!(answer.status, if open { 200 } else { 405 }, "{path}");
        if open {
            assert_eq!(answer.text, "", "{path}");
        }
    }
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_can_read_it() {
    let app = TestApp::seeded().await;
    app.state.refresh_rollups().await.unwrap();
    for path in ["/spend/logs", "/metrics/spend"] {
        let plain = app.get(path, MASTER_KEY).await;
        assert!(!plain.headers.contains_key("content-encoding"));
        for (accepted, encoding) in [("gzip", "gzip"), ("zstd", "zstd"), ("br", ""), ("identity", ""), ("gzip;q=0", "")]
        {
            let asked = request(Method::GET, path, MASTER_KEY).header("accept-encoding", accepted);
            let asked = asked.body(Body::empty()).unwrap();
            let response =
                tower::ServiceExt::oneshot(litespend::http::router::build(app.state.clone()), asked).await.unwrap();
            assert_eq!(response.status(), 200);
            let sent =
                response.headers().get("content-encoding").map_or("", |value| value.to_str().unwrap()).to_owned();
            assert_eq!(sent, encoding, "{accepted}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let text = match encoding {
                "gzip" => std::io::read_to_string(flate2::read::GzDecoder::new(&bytes[..])).unwrap(),
                "zstd" => {
                    assert_eq!(bytes[..4], [0x28, 0xb5, 0x2f, 0xfd]);
                    assert!(bytes.len() < plain.text.len() / 4);
                    continue;
                }
                _ => String::from_utf8(bytes.to_vec()).unwrap(),
            };
            assert_eq!(text, plain.text, "{accepted}");
        }
    }
}

#[tokio::test]
async fn unknown_paths_are_404_in_json() {
    let app = TestApp::new().await;
    for path in ["/nope", "/spend", "/spend/logs/", "//", "/spend/logs/../logs", "/docs/nope.js", "/%ff", "/docs/%ff"] {
        let answer = send(&app, "GET", path).await;
        assert!([400, 404].contains(&answer.status.as_u16()), "{path}");
        assert!(answer.json()["detail"].is_string(), "{path}: {}", answer.text);
    }
}
