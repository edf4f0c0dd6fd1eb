//! Input on a socket that is not valid HTTP.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::support::{MASTER_KEY, Server, database};

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\n{more}\r\n")
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_nobody_else_notices() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let huge_header = get("/spend/tags", &format!("X-Huge: {}\r\nConnection: close\r\n", "x".repeat(1_000_000)));
    let many_headers = get("/spend/tags", &format!("{}Connection: close\r\n", "X-One: 1\r\n".repeat(2_000)));
    let long_target = get(&format!("/spend/tags?{}", "x".repeat(200_000)), "Connection: close\r\n");
    for (bytes, expected) in [
        (b"\r\n\r\n\r\n garbage \r\n\r\n".to_vec(), &["HTTP/1.1 400", ""][..]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting \r\n\r\n".to_vec(), &["HTTP/1.1 400", ""]),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), &["HTTP/1.1 400", ""]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n then no frame at all".to_vec(), &[""]),
        (b"GET /spend/tags HTTP/1.1\r\nBad Header: x\r\n\r\n".to_vec(), &["HTTP/1.1 400"]),
        (b"GET /spend/tags HTTP/1.1\r\nHost: x\r\nContent-Length: junk\r\n\r\n".to_vec(), &["HTTP/1.1 400"]),
        (
            b"POST /add/allowed_ip HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n".to_vec(),
            &["HTTP/1.1 4"],
        ),
        (huge_header.into_bytes(), &["HTTP/1.1 431", ""]),
        (many_headers.into_bytes(), &["HTTP/1.1 431"]),
        (long_target.into_bytes(), &["HTTP/1.1 414", "HTTP/1.1 431", ""]),
        (vec![0; 100_000], &["HTTP/1.1 400", ""]),
    ] {
        let started = Instant::now();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let mut bytes = bytes;
        if !shown.contains("Connection") && shown.starts_with("GET /spend") {
            bytes = String::from_utf8(bytes).unwrap().replacen("\r\n", "\r\nConnection: close\r\n", 1).into_bytes();
        }
        let answer = server.exchange(&bytes);
        assert!(started.elapsed() < Duration::from_secs(18), "{shown:?} took {:?}", started.elapsed());
        let starts = |start: &&str| {
            if start.is_empty() {
                answer.is_empty() || !answer.starts_with("HTTP/1.1")
            } else {
                answer.starts_with(start)
            }
        };
        assert!(expected.iter().any(starts), "{shown:?}: {answer:.100}");
        assert_eq!(server.status("/spend/tags").await, 200);
    }
    assert!(!server.log().contains("panic"), "{}", server.log());
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_is_cut_off_and_one_that_leaves_is_forgotten() {
    let database = database().await;
    let server = Server::on(database.url(), &["--request-timeout", "2", "--head-timeout", "4"]);
    let mut half_headers = server.connect();
    half_headers.write_all(b"GET /spend/tags HTTP/1.1\r\nHost: x\r\nApi-K").unwrap();
    let mut half_body = server.connect();
    let head = format!(
        "POST /add/allowed_ip HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\nContent-Type: application/json\r\n"
    );
    half_body.write_all(format!("{head}Content-Length: 100\r\n\r\n{{\"ip\":").as_bytes()).unwrap();
    for _ in 0..50 {
        // The client disconnects at once, after half a request.
        server.connect().write_all(b"POST /add/allowed_ip HTTP/1.1\r\nContent-Length: 10\r\n\r\n{").unwrap();
    }
    assert_eq!(server.status("/spend/tags").await, 200);

    let started = Instant::now();
    let mut answer = [0; 12];
    half_body.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 504");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let mut rest = Vec::new();
    let _ = half_headers.read_to_end(&mut rest);
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let requests: String = (0..50)
        .map(|number| {
            get(if number % 2 == 0 { "/spend/tags" } else { "/nope" }, &format!("X-Request-Id: n-{number}\r\n"))
        })
        .collect();
    let answer = server.exchange(format!("{requests}{}", get("/health/liveness", "Connection: close\r\n")).as_bytes());
    let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    let mut expected: Vec<_> = (0..50).map(|number| if number % 2 == 0 { "200" } else { "404" }).collect();
    expected.push("200");
    assert_eq!(statuses, expected);
    let ids: Vec<_> =
        answer.match_indices("x-request-id: n-").map(|(at, text)| &answer[at + text.len()..][..2]).collect();
    assert!(ids.iter().enumerate().all(|(number, id)| id.trim() == number.to_string()), "{ids:?}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told_so() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let body = " ".repeat(4 * 1024 * 1024);
    let head = format!(
        "POST /add/allowed_ip HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\nContent-Type: application/json\r\n"
    );
    for _ in 0..5 {
        let declared = server
            .exchange(format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert!(declared.starts_with("HTTP/1.1 413"), "{declared:.100}");
        let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let chunked =
            server.exchange(format!("{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}").as_bytes());
        assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked:.100}");
    }
    assert_eq!(server.status("/spend/tags").await, 200);
}
