//! Metrics, the OpenAPI document, and the page that displays it.

use axum::body::Body;
use axum::http::Request;

use crate::support::{Answer, MASTER_KEY, TestApp, settings};

async fn bare(app: &TestApp, path: &str) -> Answer {
    app.send(Request::builder().uri(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_need_an_admins_key() {
    let app = TestApp::seeded().await;
    assert_eq!(bare(&app, "/metrics").await.status, 401);
    assert_eq!(app.get("/metrics", "sk-int-key-0001").await.status, 401);
    app.get("/spend/tags", MASTER_KEY).await;
    app.get("/spend/logs?start_date=junk&end_date=junk", MASTER_KEY).await;
    for number in 0..5 {
        bare(&app, &format!("/no/such/path/{number}")).await;
    }
    for key in [MASTER_KEY, "sk-admin-key-0001", "sk-viewer-key-0001"] {
        let answer = app.get("/metrics", key).await;
        assert_eq!(answer.status, 200, "{key}");
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
        for line in [
            r#"litespend_http_requests_total{route="/spend/tags",status="2xx"} 1"#,
            r#"litespend_http_requests_total{route="/spend/logs",status="4xx"} 1"#,
            r#"litespend_http_requests_total{route="-",status="4xx"} 5"#,
            r#"litespend_http_request_duration_seconds_count{route="/spend/tags",status="2xx"} 1"#,
            r#"litespend_http_request_duration_seconds_bucket{route="/spend/tags",status="2xx",le="30"} 1"#,
            "# TYPE litespend_database_connections gauge",
            "litespend_database_connections_idle ",
            "litespend_key_cache_entries ",
        ] {
            assert!(answer.text.contains(line), "{line}\n{}", answer.text);
        }
        // Invented paths get no metric series.
        assert!(!answer.text.contains("no/such"), "{}", answer.text);
    }
}

#[tokio::test]
async fn metrics_can_be_made_public() {
    let mut settings = settings();
    settings.metrics_public = true;
    let app = TestApp::with(settings).await;
    assert_eq!(bare(&app, "/metrics").await.status, 200);
    assert_eq!(bare(&app, "/spend/tags").await.status, 401);
}

/// Addresses on other hosts from which a page would load something.
fn external(text: &str) -> Vec<&str> {
    let start = |attribute: &str| {
        let starts = text.match_indices(attribute).map(|(at, _)| at + attribute.len()).collect::<Vec<_>>();
        starts.into_iter().map(|at| text[at..].split(['"', '\'', ')']).next().unwrap_or_default()).collect::<Vec<_>>()
    };
    ["src=\"", "src='", "href=\"", "url(", "url(\"", "@import \""]
        .into_iter()
        .flat_map(start)
        .filter(|address| address.starts_with("http") || address.starts_with("//"))
        .collect()
}

#[tokio::test]
async fn the_documentation_page_loads_nothing_from_elsewhere() {
    let app = TestApp::new().await;
    for path in ["/", "/docs", "/docs/"] {
        let page = bare(&app, path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"), "{path}");
        assert_eq!(external(&page.text), Vec::<&str>::new(), "{path}");
        let files: Vec<String> = page
            .text
            .split(['"', '\''])
            .filter(|part| part.starts_with("/docs/") && part.contains('.'))
            .map(str::to_owned)
            .collect();
        assert!(files.len() >= 4, "{files:?}");
        for file in files.iter().filter(|file| !file.ends_with(".png")) {
            let answer = bare(&app, file).await;
            assert_eq!(answer.status, 200, "{file}");
            if file.ends_with(".css") {
                assert_eq!(external(&answer.text), Vec::<&str>::new(), "{file}");
            }
        }
        let starter = files.iter().find(|file| file.contains("initializer")).unwrap();
        let starter = bare(&app, starter).await.text;
        assert!(starter.contains("/openapi.json"), "{starter}");
        assert!(!starter.contains("http://") && !starter.contains("https://"), "{starter}");
    }
}

#[tokio::test]
async fn the_document_is_served_as_it_is_generated() {
    let app = TestApp::new().await;
    let served = bare(&app, "/openapi.json").await.json();
    assert_eq!(served, serde_json::to_value(litespend::http::openapi::document()).unwrap());
}
