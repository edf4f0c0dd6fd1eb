//! Stopping: running requests finish, no new ones are accepted, and nothing is left behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sqlx::Connection;

use crate::support::{Directory, MASTER_KEY, Server, database, is_alive, program};

#[tokio::test]
async fn a_request_that_runs_is_finished_and_the_exit_code_is_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let database = database().await;
        let mut server = Server::on(database.url(), &[]);
        let mut holder = sqlx::PgConnection::connect(database.url()).await.unwrap();
        let mut lock = holder.begin().await.unwrap();
        sqlx::raw_sql(r#"LOCK TABLE litespend.deltas"#).execute(&mut *lock).await.unwrap();
        let request = reqwest::Client::new().get(server.url("/spend/tags")).header("x-api-key", MASTER_KEY);
        let running = tokio::spawn(request.send());
        // An idle connection must not delay the stop.
        let idle = server.connect();
        tokio::time::sleep(Duration::from_millis(400)).await;
        server.signal(signal);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(TcpStream::connect(server.address).is_err(), "still accepts connections");
        assert!(!running.is_finished());
        lock.rollback().await.unwrap();
        let answer = running.await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text().await.unwrap(), "[]");
        let ended = Instant::now();
        assert_eq!(server.exit(Duration::from_secs(10)), Some(0), "{signal}: {}", server.log());
        assert!(ended.elapsed() < Duration::from_secs(5));
        assert!(server.log().contains("stopped"), "{}", server.log());
        drop(idle);
    }
}

#[tokio::test]
async fn an_answer_in_the_middle_is_finished_before_the_embedded_database_stops() {
    let home = Directory::new();
    let mut command = program();
    command.env("LITESPEND_DATA_DIR", home.path().join("home")).env("LITELLM_MASTER_KEY", MASTER_KEY);
    let mut server = Server::start(command, &[]);
    let socket = std::fs::read_link(home.path().join("home/run")).unwrap_or_else(|_| home.path().join("home/run"));
    let url = format!("postgresql://litespend@localhost:5432/litespend?host={}&sslmode=disable", socket.display());
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", messages)
           SELECT 'r' || n, 'x', now(), now(), to_jsonb(repeat('x', 20000)) FROM generate_series(1, 1000) AS n"#,
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    let pid: u32 = {
        let text = std::fs::read_to_string(home.path().join("home/data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    };

    let mut stream = server.connect();
    write!(stream, "GET /spend/logs HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut start = [0; 1000];
    stream.read_exact(&mut start).unwrap();
    server.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_alive(pid));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > 20_000_000 && rest.ends_with(b"]\r\n0\r\n\r\n"), "{} bytes", rest.len());
    assert_eq!(server.exit(Duration::from_secs(20)), Some(0), "{}", server.log());
    assert!(!is_alive(pid), "PostgreSQL is still running");
}

#[tokio::test]
async fn ctrl_c_reaches_the_server_and_its_database_stops_with_it() {
    let home = Directory::new();
    let mut command = program();
    command.env("LITESPEND_DATA_DIR", home.path().join("home")).env("LITELLM_MASTER_KEY", MASTER_KEY);
    let mut server = Server::start(command, &[]);
    let text = std::fs::read_to_string(home.path().join("home/data/postmaster.pid")).unwrap();
    let pid: u32 = text.lines().next().unwrap().parse().unwrap();
    // As a terminal does, the signal goes to the whole process group.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(i32::try_from(server.pid()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(server.exit(Duration::from_secs(20)), Some(0), "{}", server.log());
    assert!(!is_alive(pid));
}
