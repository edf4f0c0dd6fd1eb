//! Malformed and ambiguous bytes on their way to the upstream. Whatever a client sends, the upstream gets complete
//! requests that can be read in only one way, as many as are answered. It learns about the client only what this server
//! knows.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litespend::settings::Settings;
use litespend::settings::upstream::Target;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{TestApp, settings};

/// A request as the upstream read it.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// An upstream that reads strictly, records every request, and answers all of them alike.
#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Input that violates the strict rules.
    broken: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    async fn start() -> (Self, SocketAddr) {
        let recorder = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let of_listener = recorder.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let recorder = of_listener.clone();
                tokio::spawn(async move { recorder.serve(stream).await });
            }
        });
        (recorder, address)
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            match strict(&bytes) {
                Read::Whole(seen, length) => {
                    bytes.drain(..length);
                    self.seen.lock().unwrap().push(seen);
                    let answer = b"HTTP/1.1 200 OK\r\nx-recorded: 1\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
                Read::Broken(why) => {
                    return self.broken.lock().unwrap().push(format!("{why}: {:?}", String::from_utf8_lossy(&bytes)));
                }
                Read::Partial => {
                    let mut buffer = [0; 4096];
                    match stream.read(&mut buffer).await {
                        Ok(read @ 1..) => bytes.extend_from_slice(&buffer[..read]),
                        // A client of this server that disconnects cancels its request.
                        _ => return,
                    }
                }
            }
        }
    }
}

/// Reads everything that arrives: waits for `first` for the first bytes, and briefly for more after each read. The
/// client must not close its own side, because that would cancel its requests.
async fn read_all(stream: &mut TcpStream, first: Duration) -> Vec<u8> {
    let (mut answer, mut buffer, mut patience) = (Vec::new(), [0; 4096], first);
    while let Ok(Ok(read @ 1..)) = tokio::time::timeout(patience, stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..read]);
        patience = Duration::from_millis(150);
    }
    answer
}

enum Read {
    Whole(Seen, usize),
    Partial,
    Broken(&'static str),
}

/// Parses a request by a strict reading of RFC 9112.
fn strict(bytes: &[u8]) -> Read {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Read::Partial };
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return Read::Broken("a head that is no text") };
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    for header in lines {
        let Some((name, value)) = header.split_once(':') else { return Read::Broken("a header without a colon") };
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Read::Broken("a name that is no token");
        }
        if value.bytes().any(|byte| byte == b'\n' || byte == b'\r' || byte == 0) {
            return Read::Broken("a value with a line end in it");
        }
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let parts: Vec<&str> = line.split(' ').collect();
    if parts.len() != 3 || parts[2] != "HTTP/1.1" || !parts[1].starts_with(['/', '*']) {
        return Read::Broken("no request line");
    }
    let all = |wanted: &str| -> Vec<String> {
        headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone()).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    if all("host").len() != 1 {
        return Read::Broken("not one Host");
    }
    let rest = &bytes[end + 4..];
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Read::Whole(Seen { line, headers, body: Vec::new() }, end + 4),
        ([length], []) => {
            let Ok(length) = length.parse::<usize>() else { return Read::Broken("a length that is no number") };
            match rest.get(..length) {
                Some(body) => {
                    Read::Whole(Seen { line, body: body.to_vec(), headers: headers.clone() }, end + 4 + length)
                }
                None => Read::Partial,
            }
        }
        ([], [coding]) if coding == "chunked" => match chunks(rest) {
            Ok(Some((body, length))) => Read::Whole(Seen { line, headers: headers.clone(), body }, end + 4 + length),
            Ok(None) => Read::Partial,
            Err(why) => Read::Broken(why),
        },
        _ => Read::Broken("more than one framing"),
    }
}

/// Parses a chunked body without extensions; returns it with its length including the framing.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| "a chunk size that is no text")?;
        let size = usize::from_str_radix(size, 16).map_err(|_| "a chunk size that is no number")?;
        at += end + 2;
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if &chunk[size..] != b"\r\n" {
            return Err("a chunk without an end");
        }
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// How long a test waits for an answer that must arrive.
const ANSWERED: Duration = Duration::from_secs(3);

struct Between {
    recorder: Recorder,
    _app: TestApp,
    address: SocketAddr,
}

impl Between {
    async fn start() -> Self {
        let (recorder, behind) = Recorder::start().await;
        let target = Target::parse(&format!("http://{behind}")).unwrap();
        let app = TestApp::with(Settings { upstream: Some(target), ..settings() }).await;
        let address = app.listen().await;
        Self { recorder, _app: app, address }
    }

    /// Sends bytes unchanged. Returns how many of the upstream's answers came back, everything that arrived, and the
    /// requests that the upstream recorded.
    async fn send(&self, bytes: &[u8], first: Duration) -> (usize, String, Vec<Seen>) {
        self.recorder.seen.lock().unwrap().clear();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server may close the connection while the rest is still being sent.
        let _ = stream.write_all(bytes).await;
        let answer = read_all(&mut stream, first).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let seen = self.recorder.seen.lock().unwrap().clone();
        (answer.matches("x-recorded: 1").count(), answer, seen)
    }

    /// Checks what must hold whatever was sent.
    fn check(&self, what: &str, answers: usize, seen: &[Seen]) {
        let broken = std::mem::take(&mut *self.recorder.broken.lock().unwrap());
        assert!(broken.is_empty(), "{what}: the server behind could not read: {broken:?}");
        assert_eq!(answers, seen.len(), "{what}: answers and requests: {seen:?}");
        for request in seen {
            let all = |wanted: &str| -> Vec<&str> {
                request.headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
            };
            assert_eq!(all("x-forwarded-for"), ["127.0.0.1"], "{what}: {request:?}");
            assert_eq!(all("x-forwarded-proto"), ["http"], "{what}: {request:?}");
            assert!(all("x-forwarded-host").len() <= 1, "{what}: {request:?}");
            for name in FORGED {
                let normal = name.to_ascii_lowercase().replace('_', "-");
                if !["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].contains(&normal.as_str()) {
                    assert!(all(&name.to_ascii_lowercase()).is_empty(), "{what}, {name}: {request:?}");
                }
            }
            for (_, value) in &request.headers {
                assert!(!value.contains("6.6.6.6"), "{what}: a client's word went on: {request:?}");
            }
        }
    }
}

/// Headers in which a client might claim an origin.
const FORGED: [&str; 22] = [
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "X-Forwarded",
    "X_Forwarded_For",
    "x-forwarded_for",
    "Forwarded",
    "X-Real-IP",
    "X_Real_IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Cluster-Client-IP",
    "X-Original-Forwarded-For",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Fastly-Client-IP",
    "X-Remote-IP",
    "Client-IP",
];

#[tokio::test]
async fn what_a_client_says_of_itself_does_not_go_on_and_what_is_said_here_cannot_be_taken_away() {
    let between = Between::start().await;
    for name in FORGED {
        for connection in ["keep-alive", "x-forwarded-for, x-forwarded-proto, x-forwarded-host", name] {
            let request = format!(
                "GET /key/info HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n{name}: 6.6.6.6\r\n{name}: 6.6.6.6, 7.7.7.7\r\n\r\n"
            );
            let (answers, answer, seen) = between.send(request.as_bytes(), ANSWERED).await;
            assert_eq!(answers, 1, "{name} {connection}: {answer}");
            between.check(name, answers, &seen);
        }
    }
    // A full URL in the request line takes precedence over Host.
    let (answers, _, seen) =
        between.send(b"GET http://one.example/x HTTP/1.1\r\nHost: two.example\r\n\r\n", ANSWERED).await;
    between.check("absolute form", answers, &seen);
    assert!(seen[0].headers.contains(&("x-forwarded-host".into(), "one.example".into())), "{seen:?}");
}

/// Inputs, with the numbers of requests that each may bring to the upstream: 0 if it must be refused, the number of its
/// requests if it is valid, and both if either is correct.
const CORPUS: [(&str, &[u8], &[usize]); 35] = [
    ("sound", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", &[1]),
    ("sound, chunked", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", &[1]),
    ("two at once", b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n", &[2]),
    ("length, then chunked", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", &[0, 1]),
    ("chunked, then length", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nX: ", &[0, 1]),
    ("two lengths", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n", &[0]),
    ("two lengths in one", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 30\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n", &[0]),
    ("a signed length", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", &[0]),
    ("a negative length", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", &[0]),
    ("a hexadecimal length", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc", &[0]),
    ("an immense length", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", &[0]),
    ("two codings", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", &[0, 1]),
    ("chunked not last", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", &[0]),
    ("a coding nobody knows", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[0]),
    ("identity", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", &[0]),
    ("a tab before chunked", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", &[0, 1]),
    ("a space before the colon", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[0]),
    ("a vertical tab", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", &[0]),
    ("a folded header", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", &[0]),
    ("a folded value", b"GET /x HTTP/1.1\r\nHost: a\r\nX: 1\r\n Transfer-Encoding: chunked\r\n\r\n", &[0]),
    ("a bare CR", b"GET /x HTTP/1.1\r\nHost: a\r\nX: 1\rTransfer-Encoding: chunked\r\n\r\n", &[0]),
    ("bare LFs", b"GET /x HTTP/1.1\nHost: a\n\n", &[0, 1]),
    ("a NUL in a value", b"GET /x HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", &[0]),
    ("a NUL in a name", b"GET /x HTTP/1.1\r\nHost: a\r\nX\0Y: a\r\n\r\n", &[0]),
    ("two Hosts", b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &[0]),
    ("chunk extensions", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", &[0, 1]),
    ("an LF in a chunk extension", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n4c\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n0\r\n\r\n", &[0]),
    ("an overlong chunk size", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", &[0]),
    ("a chunk size with a sign", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", &[0]),
    ("HTTP/1.0 with chunked", b"POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", &[0]),
    ("HTTP/9.9", b"GET /x HTTP/9.9\r\nHost: a\r\n\r\n", &[0]),
    ("a space in the path", b"GET /x y HTTP/1.1\r\nHost: a\r\n\r\n", &[0]),
    ("CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", &[0]),
    ("TRACE", b"TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n", &[0]),
    ("trailers", b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n\r\n3\r\nabc\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", &[0, 1]),
];

#[tokio::test]
async fn requests_that_can_be_read_in_two_ways_reach_the_server_behind_in_one_or_not_at_all() {
    let between = Between::start().await;
    for (what, bytes, expected) in CORPUS {
        let (answers, answer, seen) = between.send(bytes, ANSWERED).await;
        between.check(what, answers, &seen);
        assert!(expected.contains(&seen.len()), "{what}: {} requests behind; {answer}", seen.len());
        assert!(seen.iter().all(|request| !request.line.contains("smuggled")), "{what}: {seen:?}");
        // No part of it remains in a connection to the upstream.
        let (answers, answer, seen) = between.send(b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n", ANSWERED).await;
        between.check(what, answers, &seen);
        assert_eq!((answers, seen.len()), (1, 1), "after {what}: {answer}");
        assert!(seen[0].line.starts_with("GET /after ") && seen[0].body.is_empty(), "after {what}: {seen:?}");
    }
}

/// Parts that the test combines at random.
const LINES: [&str; 24] = [
    "Host: a",
    "Host: b",
    "Content-Length: 3",
    "Content-Length: 5",
    "content-length:0",
    "Content-Length: 3 ",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: CHUNKED",
    "Transfer-Encoding: identity",
    " Transfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    "X-Forwarded-For: 6.6.6.6",
    "x_forwarded_for: 6.6.6.6",
    "Forwarded: for=6.6.6.6",
    "Connection: x-forwarded-for, host, content-length, transfer-encoding",
    "Connection: close",
    "Connection: upgrade",
    "Upgrade: h2c",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "TE: trailers",
    "X: \u{e9}",
    "X",
];

#[tokio::test]
async fn random_requests_reach_the_server_behind_in_one_reading() {
    let seed = std::env::var("LITESPEND_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    println!("LITESPEND_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let between = Between::start().await;
    for number in 0..120 {
        let mut text = String::new();
        for _ in 0..random.random_range(1..3) {
            let method = ["GET", "POST", "PUT", "DELETE", "OPTIONS"].choose(&mut random).unwrap();
            let path =
                ["/x", "/a/../x", "//x", "/x?y=%00", "/%2e%2e/x", "*", "http://b/x"].choose(&mut random).unwrap();
            let end = if random.random_bool(0.9) { "\r\n" } else { "\n" };
            text.push_str(&format!("{method} {path} HTTP/1.1{end}"));
            if random.random_bool(0.8) {
                text.push_str("Host: a\r\n");
            }
            for _ in 0..random.random_range(0..4) {
                text.push_str(LINES.choose(&mut random).unwrap());
                text.push_str(end);
            }
            text.push_str(end);
            text.push_str(["", "abc", "3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\n", "abcde"].choose(&mut random).unwrap());
        }
        let (answers, answer, seen) = between.send(text.as_bytes(), Duration::from_millis(300)).await;
        let what = format!("request {number} of seed {seed}: {text:?}, answered {answer:?}");
        // A request still counts if its answer was cut off by an error later in the same bytes.
        assert!(answers <= seen.len(), "{what}: {seen:?}");
        between.check(&what, seen.len(), &seen);
    }
}
