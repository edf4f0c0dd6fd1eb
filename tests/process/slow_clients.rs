//! Clients that send nothing, stop half-way or receive nothing: each is disconnected, and meanwhile all other clients
//! are served.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::http2;
use crate::support::{MASTER_KEY, Server, database};

/// Short limits, to keep the tests short.
const LIMITS: [&str; 10] = [
    "--head-timeout",
    "1",
    "--idle-timeout",
    "2",
    "--body-timeout",
    "1",
    "--answer-timeout",
    "2",
    "--max-connections-per-address",
    "64",
];

/// Readiness and a small read are each answered within a second.
pub(crate) async fn others_are_served(server: &Server) {
    for path in ["/health/readiness", "/spend/tags"] {
        let started = Instant::now();
        assert_eq!(server.status(path).await, 200, "{path}");
        assert!(started.elapsed() < Duration::from_secs(1), "{path} took {:?}", started.elapsed());
    }
}

/// Reads until the server ends a connection; returns how long that took, and what the server sent.
fn ended(mut connection: &TcpStream, limit: Duration) -> (Duration, Vec<u8>) {
    let started = Instant::now();
    connection.set_read_timeout(Some(limit)).unwrap();
    let mut bytes = Vec::new();
    if let Err(error) = connection.read_to_end(&mut bytes) {
        assert!(started.elapsed() < limit, "the connection stays: {error}");
    }
    (started.elapsed(), bytes)
}

#[tokio::test]
async fn who_sends_no_request_is_let_go() {
    let database = database().await;
    let server = Server::on(database.url(), &LIMITS);
    let whole_preface = http2::greeting(65_535);
    let kinds: [&[u8]; 8] = [
        b"",
        b"G",
        b"GET /spend/tags HTTP/1.1\r\nHost: x\r\nApi-K",
        b"PRI",
        b"PRI * HTTP/2.0\r\n",
        http2::PREFACE,
        &whole_preface,
        &whole_preface[..30],
    ];
    let started = Instant::now();
    let connections: Vec<_> = kinds
        .iter()
        .flat_map(|kind| [*kind, *kind])
        .map(|kind| {
            let mut connection = server.connect();
            connection.write_all(kind).unwrap();
            connection
        })
        .collect();
    others_are_served(&server).await;
    for (number, connection) in connections.iter().enumerate() {
        ended(connection, Duration::from_secs(5));
        assert!(started.elapsed() < Duration::from_secs(6), "connection {number}: {:?}", started.elapsed());
    }
    others_are_served(&server).await;
}

#[tokio::test]
async fn a_head_that_drips_has_a_deadline_and_a_kept_connection_too() {
    let database = database().await;
    let server = Server::on(database.url(), &LIMITS);
    let started = Instant::now();
    let mut dripping = server.connect();
    for byte in b"GET /spend/tags HTTP/1.1\r\nHost: localhost\r\nX-Long: xxxxxxxxxxxxxxxxx".chunks(1) {
        if dripping.write_all(byte).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(60));
    }
    assert!(started.elapsed() < Duration::from_millis(3500), "{:?}", started.elapsed());

    let kept = server.connect();
    (&kept).write_all(b"GET /health/liveness HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut pings = http2::connect(server.address, 65_535, &http2::get(1, "/health/liveness", &[]));
    let (lasted, answer) = ended(&kept, Duration::from_secs(6));
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!((1500..4500).contains(&lasted.as_millis()), "{lasted:?}");
    for _ in 0..20 {
        // A ping does not count as a request.
        if pings.write_all(&http2::frame(6, 0, 0, &[0; 8])).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let frames = http2::frames(&mut pings, Duration::from_secs(3));
    assert!(frames.iter().any(|(kind, _)| *kind == 7), "a goodbye: {frames:?}");
}

#[tokio::test]
async fn a_flood_of_silent_connections_pushes_out_only_its_own_kind() {
    let database = database().await;
    let server = Server::on(database.url(), &["--max-connections-per-address", "32"]);
    let mut busy = server.connect();
    let head = format!("POST /spend/usage HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\n");
    busy.write_all(format!("{head}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    // The server says so once the request runs; until then the connection is as silent as those that follow.
    let begun = answer(&mut busy);
    assert!(begun.starts_with("http/1.1 100"), "{begun}");
    busy.write_all(b"{").unwrap();
    let mut flood = Vec::new();
    for _ in 0..6 {
        flood.extend((0..50).map(|_| server.connect()));
        others_are_served(&server).await;
    }
    let open = server.get("/metrics").await.text().await.unwrap();
    let open = open.lines().find_map(|line| line.strip_prefix("litespend_connections ")).unwrap().to_owned();
    assert!(open.parse::<f64>().unwrap() <= 33.0, "{open}");
    busy.write_all(b"}").unwrap();
    let head = answer(&mut busy);
    assert!(head.starts_with("http/1.1 "), "a running request keeps its connection: {head}");
}

#[tokio::test]
async fn announced_bodies_hold_nobody_up_and_end_in_408() {
    let database = database().await;
    let server = Server::on(database.url(), &LIMITS);
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\n");
    let mut waiting = Vec::new();
    for path in ["/spend/usage", "/spend/usage/litellm", "/spend/calculate", "/add/allowed_ip"] {
        for announced in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
            for sent in ["", if announced.starts_with('T') { "1\r\n{\r\n" } else { "{" }] {
                let mut connection = server.connect();
                connection.write_all(format!("{}{announced}\r\n\r\n{sent}", head(path)).as_bytes()).unwrap();
                waiting.push(connection);
            }
        }
    }
    for _ in 0..16 {
        let mut connection = server.connect();
        connection.write_all(format!("{}Content-Length: 16000000\r\n\r\n", head("/spend/usage")).as_bytes()).unwrap();
        waiting.push(connection);
    }
    let started = Instant::now();
    let booking = reqwest::Client::new().post(server.url("/spend/usage")).header("x-api-key", MASTER_KEY);
    let record = serde_json::json!({ "model": "gpt-4o", "cost": 0.5, "idempotency_key": "honest" });
    let booked = booking.json(&record).send().await.unwrap();
    assert!(booked.text().await.unwrap().contains("\"recorded\":1"));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    others_are_served(&server).await;
    for connection in &waiting {
        let (_, answer) = ended(connection, Duration::from_secs(6));
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(answer.starts_with("http/1.1 408") && answer.contains("connection: close"), "{answer}");
    }
    // A body that arrives very slowly.
    let mut dripping = server.connect();
    dripping.write_all(format!("{}Content-Length: 1000\r\n\r\n", head("/spend/calculate")).as_bytes()).unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) && dripping.write_all(b" ").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let (_, answer) = ended(&dripping, Duration::from_secs(2));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

/// Reads one answer with a content length from a connection.
fn answer(connection: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && connection.read_exact(&mut byte).is_ok() {
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    let _ = connection.read_exact(&mut body);
    head
}

#[tokio::test]
async fn a_refused_body_never_costs_the_next_request() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let cases = [
        ("POST", "/spend/usage", "sk-unknown", "401"),
        ("POST", "/no/such/path", MASTER_KEY, "404"),
        ("POST", "/spend/tags", MASTER_KEY, "405"),
        ("PUT", "/spend/usage", MASTER_KEY, "405"),
        ("POST", "/", MASTER_KEY, "405"),
    ];
    let mut kept = 0;
    for (method, path, key, status) in cases {
        let mut connection = server.connect();
        for (number, size) in [10, 100, 60_000, 10, 3_000_000].into_iter().enumerate() {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nApi-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
            );
            connection.write_all(head.as_bytes()).unwrap();
            // The body is sent later than the head.
            std::thread::sleep(Duration::from_millis(30));
            let _ = connection.write_all(&vec![b' '; size]);
            let head = answer(&mut connection);
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{method} {path} {number}: {head}");
            if head.contains("connection: close") {
                assert!(size > 64 * 1024, "{method} {path} {number}: {head}");
                connection = server.connect();
                continue;
            }
            kept += 1;
            connection.write_all(b"GET /health/liveness HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let next = answer(&mut connection);
            assert!(next.starts_with("http/1.1 200"), "{method} {path} {number}: {next}");
        }
    }
    assert_eq!(kept, cases.len() * 4);
    // The server does not wait for a body that the client never sends.
    let mut connection = server.connect();
    let started = Instant::now();
    connection.write_all(b"POST /spend/usage HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n").unwrap();
    let head = answer(&mut connection);
    assert!(head.starts_with("http/1.1 401") && head.contains("connection: close"), "{head}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_body_that_will_be_refused_is_not_asked_for() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    for (method, path, key, size, expected) in [
        ("POST", "/spend/usage", "sk-unknown", 10, "http/1.1 401"),
        ("POST", "/no/such/path", MASTER_KEY, 10, "http/1.1 404"),
        ("POST", "/spend/tags", MASTER_KEY, 10, "http/1.1 405"),
        ("POST", "/spend/usage", MASTER_KEY, 20_000_000, "http/1.1 413"),
        ("POST", "/spend/calculate", MASTER_KEY, 2_000_000, "http/1.1 413"),
        ("POST", "/add/allowed_ip", MASTER_KEY, 2_000_000, "http/1.1 413"),
        ("POST", "/spend/usage", MASTER_KEY, 10, "http/1.1 100"),
    ] {
        let mut connection = server.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nApi-Key: {key}\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).unwrap();
        let head = answer(&mut connection);
        assert!(head.starts_with(expected), "{method} {path} {size}: {head}");
        assert!(expected.ends_with("100") || head.contains("connection: close"), "{method} {path} {size}: {head}");
    }
}

#[tokio::test]
async fn static_files_for_clients_that_take_nothing_cost_little() {
    let database = database().await;
    let server = Server::on(database.url(), &LIMITS);
    let path = "/docs/swagger-ui-bundle.js";
    let accepted = ["zstd", "gzip", "identity"];
    for encoding in accepted {
        let warm = reqwest::Client::new().get(server.url(path)).header("accept-encoding", encoding);
        assert!(warm.send().await.unwrap().bytes().await.unwrap().len() > 100_000);
    }
    let before = server.memory("VmRSS");
    let mut connections: Vec<_> = (0..6)
        .map(|number| {
            let encoding = [("accept-encoding", accepted[number % 3])];
            let requests: Vec<u8> = (0..100).flat_map(|stream| http2::get(2 * stream + 1, path, &encoding)).collect();
            http2::connect(server.address, 0, &requests)
        })
        .collect();
    let half_closed = server.connect();
    (&half_closed).write_all(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    others_are_served(&server).await;
    let after = server.memory("VmRSS");
    println!("resident: {before} kB before, {after} kB with 600 answers that nobody takes");
    assert!(after < before + 50_000, "{before} kB, then {after} kB");
    let frames = http2::frames(&mut connections[0], Duration::from_secs(5));
    let reset = frames.iter().filter(|(kind, _)| *kind == 3).count();
    assert_eq!(reset, 100, "each stream is reset by itself");
    others_are_served(&server).await;
}

#[tokio::test]
async fn one_stream_that_is_not_taken_leaves_its_neighbours_alone() {
    let database = database().await;
    let server = Server::on(database.url(), &LIMITS);
    // A file is unpacked at its first use.
    for path in ["/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"] {
        assert_eq!(server.get(path).await.status(), 200);
    }
    let mut connection = http2::connect(server.address, 0, &http2::get(1, "/docs/swagger-ui-bundle.js", &[]));
    let mut reading = connection.try_clone().unwrap();
    let reading = std::thread::spawn(move || http2::frames(&mut reading, Duration::from_secs(5)));
    let mut stream = 3;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        connection.write_all(&http2::get(stream, "/docs/swagger-ui.css", &[])).unwrap();
        // Opens the window of this stream.
        let mut window = http2::frame(8, 0, stream, &1_000_000_u32.to_be_bytes());
        window.extend(http2::frame(8, 0, 0, &300_000_u32.to_be_bytes()));
        connection.write_all(&window).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream += 2;
    }
    let frames = reading.join().unwrap();
    let of = |kind: u8, stream: u32| frames.iter().filter(|frame| **frame == (kind, stream)).count();
    assert_eq!(of(3, 1), 1, "the stream that nobody takes is reset");
    for neighbour in (3..stream).step_by(2) {
        assert!(of(0, neighbour) >= 1 && of(3, neighbour) == 0, "stream {neighbour}");
    }
}

#[tokio::test]
async fn a_tunnel_is_refused_and_private_answers_are_not_kept() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let answer =
        server.exchange(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    for (path, kept) in [("/spend/tags", false), ("/nope", false), ("/openapi.json", true), ("/docs", true)] {
        let answer = server.get(path).await;
        let headers = answer.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(!headers.contains_key("cache-control"), kept, "{path}");
        if path == "/docs" {
            assert_eq!(headers["x-frame-options"], "DENY");
            assert_eq!(headers["content-security-policy"], "frame-ancestors 'none'");
        }
    }
    assert_eq!(server.get("/spend/tags").await.headers()["cache-control"], "no-store");
}
