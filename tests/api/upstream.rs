//! litespend in front of another server: forwarded requests and answers arrive unchanged and without delay, in both
//! directions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use litespend::settings::Settings;
use litespend::settings::upstream::Target;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::support::{MASTER_KEY, TestApp, settings};

/// The test's upstream: signals from the tests to it, and from it to the tests.
#[derive(Clone)]
struct Stub {
    /// Each permit releases one more token of a stream.
    tokens: Arc<Semaphore>,
    /// Notified when a request has begun.
    begun: Arc<Notify>,
    /// Notified when the work on a request was dropped.
    dropped: Arc<Notify>,
}

struct Work(Arc<Notify>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn echo(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let answer = json!({
        "method": parts.method.as_str(), "uri": parts.uri.to_string(), "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = (StatusCode::IM_A_TEAPOT, answer.to_string()).into_response();
    for cookie in ["a=1; Path=/", "b=2; HttpOnly"] {
        response.headers_mut().append(header::SET_COOKIE, cookie.parse().unwrap());
    }
    response.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
    response
}

async fn stream(State(stub): State<Stub>) -> Response {
    let tokens = async_stream::stream! {
        let _work = Work(stub.dropped.clone());
        for index in 0.. {
            yield Ok::<_, std::io::Error>(Bytes::from(format!("data: {index}\n\n")));
            stub.tokens.acquire().await.unwrap().forget();
        }
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(tokens)).into_response()
}

async fn think(State(stub): State<Stub>) {
    let _work = Work(stub.dropped.clone());
    stub.begun.notify_one();
    std::future::pending::<()>().await;
}

async fn upload(request: Request) -> String {
    let (mut body, mut length) = (request.into_body().into_data_stream(), 0);
    while let Some(piece) = body.next().await {
        length += piece.unwrap().len();
    }
    length.to_string()
}

/// Switches to a protocol that echoes every byte.
async fn upgrade(mut request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let on = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = hyper_util::rt::TokioIo::new(on.await.unwrap());
        let mut bytes = [0; 16];
        while let Ok(read @ 1..) = io.read(&mut bytes).await {
            io.write_all(&bytes[..read]).await.unwrap();
        }
    });
    // The answer to the key in RFC 6455's example; or, depending on the path, the answer to another key, or another
    // protocol.
    let accept = if path == "/ws-wrong" { "AAAAAAAAAAAAAAAAAAAAAAAAAAA=" } else { "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" };
    let protocol = if path == "/ws-other" { "h2c" } else { "websocket" };
    let headers =
        [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol), (header::SEC_WEBSOCKET_ACCEPT, accept)];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

/// Redirects as LiteLLM does for a missing slash: to the host name in the request.
async fn to_itself(headers: HeaderMap) -> (StatusCode, [(HeaderName, String); 1]) {
    let host = headers[header::HOST].to_str().unwrap();
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("http://{host}/to-itself/?a=b"))])
}

async fn stub() -> (Stub, SocketAddr) {
    let stub = Stub { tokens: Arc::new(Semaphore::new(0)), begun: Arc::default(), dropped: Arc::default() };
    let app = Router::new()
        .route("/v1/chat/completions", post(stream))
        .route("/think", get(think))
        .route("/upload", post(upload))
        .route("/ws", get(upgrade))
        .route("/ws-wrong", get(upgrade))
        .route("/ws-other", get(upgrade))
        .route("/redirect", get(|| async { (StatusCode::FOUND, [(header::LOCATION, "/sso?next=%2Fui")]) }))
        .route("/to-itself", get(to_itself))
        .route("/gzip", get(|| async { ([(header::CONTENT_ENCODING, "gzip")], vec![0x1f_u8, 0x8b, 0, 1]) }))
        .fallback(any(echo))
        .with_state(stub.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (stub, address)
}

fn behind(address: SocketAddr) -> Settings {
    Settings { upstream: Some(Target::parse(&format!("http://{address}")).unwrap()), ..settings() }
}

async fn start() -> (Stub, TestApp, String) {
    let (stub, address) = stub().await;
    let app = TestApp::with(behind(address)).await;
    let url = format!("http://{}", app.listen().await);
    (stub, app, url)
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn header_of(echoed: &Value, name: &str) -> Vec<String> {
    let headers = echoed["headers"].as_array().unwrap();
    let found = headers.iter().filter(|pair| pair[0] == name);
    found.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn requests_and_answers_arrive_as_they_were_sent() {
    let (_stub, _app, url) = start().await;
    let answer = client()
        .request(Method::PATCH, format!("{url}/key/a%2Fb%20c?x=1&x=%20&y"))
        .header("authorization", "Bearer sk-not-ours")
        .header("cookie", "token=t")
        .header("connection", "x-mine")
        .header("x-mine", "1")
        .header("te", "deflate")
        .header("x-forwarded-for", "10.9.9.9")
        .header("x-forwarded-proto", "https")
        .header("host", "spend.example.com")
        .body("{\"a\": 1}")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 418);
    let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(cookies, ["a=1; Path=/", "b=2; HttpOnly"]);
    assert!(answer.headers().get("keep-alive").is_none());
    let echoed: Value = answer.json().await.unwrap();
    assert_eq!(
        (echoed["method"].as_str(), echoed["uri"].as_str()),
        (Some("PATCH"), Some("/key/a%2Fb%20c?x=1&x=%20&y"))
    );
    assert_eq!(echoed["body"], "{\"a\": 1}");
    for (name, expected) in [
        ("authorization", "Bearer sk-not-ours"),
        ("cookie", "token=t"),
        ("content-length", "8"),
        // A client's claims about its own origin do not count.
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "spend.example.com"),
    ] {
        assert_eq!(header_of(&echoed, name), [expected], "{name}");
    }
    for name in ["x-mine", "te", "connection", "transfer-encoding"] {
        assert_eq!(header_of(&echoed, name), Vec::<String>::new(), "{name}");
    }
    let redirect = client().get(format!("{url}/redirect")).send().await.unwrap();
    assert_eq!(
        (redirect.status().as_u16(), &redirect.headers()["location"]),
        (302, &"/sso?next=%2Fui".parse().unwrap())
    );
    let redirect = client().get(format!("{url}/to-itself")).send().await.unwrap();
    assert_eq!(
        (redirect.status().as_u16(), &redirect.headers()["location"]),
        (307, &"/to-itself/?a=b".parse().unwrap())
    );
    let packed = client().get(format!("{url}/gzip")).header("accept-encoding", "zstd, gzip").send().await.unwrap();
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    assert_eq!(packed.bytes().await.unwrap().as_ref(), [0x1f, 0x8b, 0, 1]);
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_kept() {
    let (_stub, address) = stub().await;
    let settings = Settings {
        use_x_forwarded_for: true,
        trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
        ..behind(address)
    };
    let app = TestApp::with(settings).await;
    let url = format!("http://{}/x", app.listen().await);
    let request = client().get(url).header("x-forwarded-for", "203.0.113.7").header("x-forwarded-proto", "https");
    let echoed: Value =
        request.header("x-forwarded-host", "ui.example.com").send().await.unwrap().json().await.unwrap();
    assert_eq!(header_of(&echoed, "x-forwarded-for"), ["203.0.113.7"]);
    assert_eq!(header_of(&echoed, "x-forwarded-proto"), ["https"]);
    assert_eq!(header_of(&echoed, "x-forwarded-host"), ["ui.example.com"]);
}

#[tokio::test]
async fn our_paths_are_ours_by_their_methods_only() {
    let (_stub, app, _url) = start().await;
    assert_eq!(app.get("/spend/tags", MASTER_KEY).await.status, 200);
    assert_eq!(app.get("/spend/tags", "sk-nobody").await.status, 401);
    assert_eq!(app.get("/health/liveliness", MASTER_KEY).await.status, 200);
    assert_eq!(app.post("/spend/tags", MASTER_KEY, &json!({})).await.status, 418);
    assert_eq!(app.get("/key/info", "sk-nobody").await.status, 418);
}

#[tokio::test]
async fn only_the_chosen_paths_are_served() {
    let (_stub, address) = stub().await;
    let serve_only = vec!["/spend/logs".to_owned(), "/global/*".to_owned()];
    let app = TestApp::with(Settings { serve_only, ..behind(address) }).await;
    for (path, status) in [
        ("/spend/logs", 200),
        ("/spend/logs/v2", 418),
        ("/spend/tags", 418),
        ("/global/all_end_users", 200),
        ("/user/daily/activity", 418),
        ("/", 418),
        ("/health/readiness", 200),
    ] {
        assert_eq!(app.get(path, MASTER_KEY).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn a_stream_comes_token_by_token_and_ends_with_its_client() {
    let (stub, _app, url) = start().await;
    let answer = client().post(format!("{url}/v1/chat/completions")).body("{}").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut tokens = answer.bytes_stream();
    for index in 0..5 {
        // The next token is not produced before this one has arrived.
        let token =
            tokio::time::timeout(Duration::from_secs(5), tokens.next()).await.expect("a token").unwrap().unwrap();
        assert_eq!(token, format!("data: {index}\n\n"));
        stub.tokens.add_permits(1);
    }
    drop(tokens);
    tokio::time::timeout(Duration::from_secs(5), stub.dropped.notified()).await.expect("the work behind ends");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_work_behind() {
    let (stub, _app, url) = start().await;
    let request = tokio::spawn(client().get(format!("{url}/think")).send());
    tokio::time::timeout(Duration::from_secs(5), stub.begun.notified()).await.expect("the work begins");
    request.abort();
    tokio::time::timeout(Duration::from_secs(5), stub.dropped.notified()).await.expect("the work behind ends");
}

/// Sends a handshake in which `change` replaces a part. Returns the head of the answer, and the stream.
async fn handshake(url: &str, path: &str, change: (&str, &str)) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.replace(change.0, change.1).as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap().to_lowercase(), stream)
}

#[tokio::test]
async fn a_websocket_goes_through() {
    let (_stub, _app, url) = start().await;
    let (head, mut stream) = handshake(&url, "/ws", ("", "")).await;
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for message in ["one", "two"] {
        stream.write_all(message.as_bytes()).await.unwrap();
        let mut back = [0; 3];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, message.as_bytes());
    }
}

#[tokio::test]
async fn nothing_but_a_websocket_becomes_a_raw_connection() {
    let (_stub, _app, url) = start().await;
    for (path, change, status) in [
        // The upstream does not do what the request asked for.
        ("/ws", ("Upgrade: websocket", "Upgrade: h2c"), 502),
        ("/ws", ("Upgrade: websocket", "Upgrade: websocket, h2c"), 502),
        ("/ws", ("keep-alive, Upgrade", "keep-alive"), 502),
        ("/ws-wrong", ("", ""), 502),
        ("/ws-other", ("", ""), 502),
        ("/ws", ("Version: 13", "Version: 8"), 426),
        ("/ws", ("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        ("/ws", ("GET", "POST"), 400),
        ("/ws", ("Host: x", "Host: x\r\nContent-Length: 3"), 400),
        // Without a request for another protocol, it is an ordinary request.
        ("/echo", ("Upgrade: websocket", "Upgrade: h2c"), 418),
    ] {
        let (head, _stream) = handshake(&url, path, change).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path} {change:?}: {head}");
        assert!(!head.contains("upgrade: h2c"), "{head}");
    }
}

#[tokio::test]
async fn a_large_upload_goes_through() {
    let (_stub, _app, url) = start().await;
    let pieces = futures_util::stream::iter((0..64).map(|_| Ok::<_, std::io::Error>(vec![7_u8; 1024 * 1024])));
    let request = client().post(format!("{url}/upload")).body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(request.send().await.unwrap().text().await.unwrap(), (64 * 1024 * 1024).to_string());
}

#[tokio::test]
async fn without_the_server_behind_ours_go_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let app = TestApp::with(behind(address)).await;
    let answer = app.get("/key/info", MASTER_KEY).await;
    assert_eq!(answer.status, 502);
    let body = answer.json();
    assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&json!("upstream_unavailable"), &json!("502")));
    assert!(!answer.text.contains(&address.port().to_string()), "{}", answer.text);
    assert_eq!(app.get("/spend/tags", MASTER_KEY).await.status, 200);
}

#[tokio::test]
async fn the_list_of_addresses_holds_for_what_is_passed_on() {
    let (_stub, address) = stub().await;
    let app = TestApp::with(Settings { allowed_ips: Some(vec!["10.0.0.1".into()]), ..behind(address) }).await;
    let answer = app.get("/key/info", MASTER_KEY).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["type"]), (403, &json!("auth_error")));
}

/// Paths of ours that are left to the upstream are forwarded like any other: a body that pauses is waited for as long as
/// the upstream's own answer, and the 408 of our own routes does not apply.
#[tokio::test]
async fn a_body_for_the_upstream_may_pause_even_where_the_path_is_one_of_ours() {
    let (_stub, address) = stub().await;
    let mut settings = Settings { serve_only: vec!["/spend/logs".into()], ..behind(address) };
    settings.connections.body = Duration::from_millis(500);
    let app = TestApp::with(settings).await;
    let ours = app.listen().await;
    for path in ["/key/generate", "/spend/usage", "/spend/calculate", "/elsewhere"] {
        let mut client = TcpStream::connect(ours).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{");
        client.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        client.write_all(b"}").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 418"), "{path}: {answer}");
    }
}
