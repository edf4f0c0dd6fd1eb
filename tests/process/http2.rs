//! HTTP/2 written by hand, for clients that misbehave in ways that no library supports.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Builds a frame of this type, flags, stream and payload.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The connection preface and a SETTINGS frame with this window for every stream.
pub(crate) fn greeting(window: u32) -> Vec<u8> {
    let mut setting = vec![0, 4];
    setting.extend(window.to_be_bytes());
    [PREFACE.to_vec(), frame(4, 0, 0, &setting)].concat()
}

/// The HEADERS frame of a GET, which is the whole request.
pub(crate) fn get(stream: u32, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    let mut text = |bytes: &[u8], text: &str| {
        block.extend(bytes);
        assert!(text.len() < 127);
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text.as_bytes());
    };
    text(&[0x04], path);
    text(&[0x01], "localhost");
    for (name, value) in headers {
        text(&[0x00], name);
        text(&[], value);
    }
    frame(1, 0x5, stream, &block)
}

/// Reads frames until the connection ends or the limit is over; returns their types and streams.
pub(crate) fn frames(connection: &mut TcpStream, limit: Duration) -> Vec<(u8, u32)> {
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        connection.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
        match connection.read(&mut buffer) {
            Ok(count) if count > 0 => bytes.extend(buffer.iter().take(count)),
            _ => break,
        }
    }
    let mut found = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some(([a, b, c, kind, _, one, two, three, four], more)) = rest.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap();
        found.push((*kind, u32::from_be_bytes([*one, *two, *three, *four])));
        rest = more.get(length..).unwrap_or_default();
    }
    found
}

/// Connects and sends the preface, the settings and `more`.
pub(crate) fn connect(address: std::net::SocketAddr, window: u32, more: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(&[&greeting(window), more].concat()).unwrap();
    connection
}
