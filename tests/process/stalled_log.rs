//! A reader of the log that stops reading blocks no request.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{MASTER_KEY, database, program};

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let database = database().await;
    let mut server = program()
        .env("DATABASE_URL", database.url())
        .env("LITELLM_MASTER_KEY", MASTER_KEY)
        .env("RUST_LOG", "trace")
        .args(["serve", "--port", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let block: Vec<String> = BufReader::new(server.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.contains("master key"))
        .collect();
    let address = block.iter().find_map(|line| line.split("listening on ").nth(1)).unwrap().trim_end_matches(')');
    let client = reqwest::Client::new();
    let metrics = async || {
        let answer = client.get(format!("http://{address}/metrics")).header("x-api-key", MASTER_KEY);
        let text = answer.send().await.unwrap().text().await.unwrap();
        let dropped = text.lines().find_map(|line| line.strip_prefix("litespend_log_lines_dropped_total "));
        dropped.unwrap().parse::<f64>().unwrap()
    };
    let started = Instant::now();
    let mut dropped = 0.0;
    while dropped == 0.0 && started.elapsed() < Duration::from_secs(30) {
        let id = "x".repeat(128);
        let request = format!("GET /health/liveness HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n");
        let requests = format!("{}{request}Connection: close\r\n\r\n", format!("{request}\r\n").repeat(499));
        let mut connection = std::net::TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut writing = connection.try_clone().unwrap();
        let writing = std::thread::spawn(move || writing.write_all(requests.as_bytes()));
        let mut answers = String::new();
        connection.read_to_string(&mut answers).unwrap();
        let _ = writing.join();
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 500);
        dropped = metrics().await;
    }
    assert!(dropped > 0.0, "more lines than the queue takes are dropped and counted");
    kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
    let started = Instant::now();
    while server.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(10) {
            server.kill().unwrap();
            panic!("the server does not stop while its log is not read");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
