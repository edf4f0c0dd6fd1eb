//! The command line, with and without a running server: keys, users, teams, and importing a spend log.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

#[path = "api/support/place.rs"]
mod place;

const KEY: &str = "sk-master-1234";

fn litespend(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_litespend"))
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("CONFIG_FILE_PATH")
        .env("LITESPEND_DATA_DIR", home)
        .current_dir(home)
        .output()
        .unwrap()
}

fn done(home: &Path, arguments: &[&str]) -> String {
    let output = litespend(home, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A running server; killed when dropped.
struct Server(Child, String);

impl Server {
    fn start(home: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_litespend"))
            .args(["serve", "--port", "0"])
            .env_remove("DATABASE_URL")
            .env_remove("DATABASE_URL_READ_REPLICA")
            .env_remove("CONFIG_FILE_PATH")
            .env("LITESPEND_DATA_DIR", home)
            .env("LITELLM_MASTER_KEY", KEY)
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.map(Result::unwrap).find(|line| line.contains("address")).unwrap();
        let address = address.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        Self(child, address)
    }

    /// Requests `path` with this `Accept` header and returns the body of the answer.
    fn export(&self, path: &str, key: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(&self.1).unwrap();
        // With HTTP/1.0 the body is not chunked and ends when the connection closes.
        write!(stream, "GET {path} HTTP/1.0\r\nauthorization: Bearer {key}\r\naccept: {accept}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200"), "{text}");
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn get(&self, path: &str, key: &str) -> Value {
        let mut stream = TcpStream::connect(&self.1).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        let start = body.find(['{', '[']).unwrap_or_else(|| panic!("{text}"));
        serde_json::Deserializer::from_str(&body[start..]).into_iter().next().unwrap().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

fn row(id: usize) -> Value {
    json!({"request_id": format!("row-{id}"), "call_type": "acompletion", "api_key": "hash", "spend": 0.5,
           "total_tokens": 3, "prompt_tokens": 1, "completion_tokens": 2, "startTime": "2026-03-01T10:00:00.500000Z",
           "endTime": "2026-03-01T10:00:01Z", "model": "gpt-4o", "user": "u", "team_id": "t", "metadata": {"a": 1},
           "request_tags": ["x"], "status": "success"})
}

#[test]
fn everything_works_beside_a_running_server_and_without_one() {
    let home = tempfile::Builder::new().prefix("litespend-cli-").tempdir_in(place::of_homes()).unwrap();
    let home = home.path();
    // Without a running server.
    assert_eq!(done(home, &["team", "create", "Search", "--id", "search", "--admins", "ada"]), "search");
    // With a running server.
    let server = Server::start(home);
    assert_eq!(done(home, &["user", "create", "--id", "ben", "--teams", "search"]), "ben");
    let key = done(home, &["key", "create", "--alias", "bens", "--user", "ben", "--team", "search"]);
    assert!(key.starts_with("sk-"));
    assert_eq!(
        server.get("/user/daily/activity?start_date=2026-03-01&end_date=2026-03-02", &key)["results"],
        json!([])
    );
    assert!(done(home, &["key", "list"]).contains("bens"));
    assert!(!done(home, &["key", "list"]).contains(&key));
    assert!(done(home, &["team", "list"]).contains("Search"));
    assert!(done(home, &["user", "list"]).contains("ada"));
    assert_eq!(done(home, &["key", "block", "bens"]), "blocked");
    assert_eq!(done(home, &["key", "unblock", &key]), "unblocked");
    assert_eq!(done(home, &["key", "delete", "bens"]), "deleted");
    assert!(!litespend(home, &["key", "block", "bens"]).status.success());
    assert!(!litespend(home, &["key", "create", "--user", "nobody"]).status.success());

    // JSON lines, some of them invalid: the valid ones are imported, and a second run imports nothing again.
    let mut lines: Vec<String> = (0..10).map(|id| row(id).to_string()).collect();
    lines.insert(3, "{not json".into());
    lines.insert(5, json!({"request_id": "bad", "startTime": "never"}).to_string());
    std::fs::write(home.join("log.jsonl"), lines.join("\n")).unwrap();
    let output = litespend(home, &["import", "log.jsonl"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("10 imported, 0 already there, 2 bad"), "{said}");
    let bad = std::fs::read_to_string(home.join("log.jsonl.errors.jsonl")).unwrap();
    let bad: Vec<Value> = bad.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&bad[0]["line"], &bad[1]["line"]), (&json!(4), &json!(6)));
    assert!(bad[1]["error"].as_str().unwrap().contains("startTime"));
    let again = litespend(home, &["import", "log.jsonl"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("0 imported, 10 already there, 2 bad"));

    // The answer of GET /spend/logs, compressed with gzip.
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(json!([row(8), row(20), 7]).to_string().as_bytes()).unwrap();
    std::fs::write(home.join("log.json.gz"), packed.finish().unwrap()).unwrap();
    let output = litespend(home, &["import", "log.json.gz", "--errors", "e"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 imported, 1 already there, 1 bad"), "{output:?}");

    // CSV in the form that \copy writes.
    let csv = "request_id,call_type,api_key,spend,total_tokens,startTime,endTime,model,user,metadata,request_tags,cache_hit\n\
               csv-1,acompletion,h,0.25,3,2026-03-02 10:00:00.5,2026-03-02 10:00:01,\"gpt-4o\",u,\"{\"\"a\"\": 1}\",\"[\"\"x\"\", \"\"y\"\"]\",\n\
               csv-2,acompletion,h,cheap,3,2026-03-02 10:00:00.5,2026-03-02 10:00:01,m,u,{},[],\n";
    std::fs::write(home.join("log.csv"), csv).unwrap();
    let output = litespend(home, &["import", "log.csv"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 imported, 0 already there, 1 bad"), "{output:?}");
    let bad = std::fs::read_to_string(home.join("log.csv.errors.jsonl")).unwrap();
    assert!(bad.contains("\"line\":3") && bad.contains("spend: expected a number"), "{bad}");

    let logs = server.get("/spend/logs?request_id=csv-1", KEY);
    assert_eq!(
        (&logs[0]["request_tags"], &logs[0]["startTime"]),
        (&json!(["x", "y"]), &json!("2026-03-02T10:00:00.500000Z"))
    );
    assert!(litespend(home, &["import", "missing.jsonl"]).status.code() == Some(2));

    // Another server imports what this server exports: the rows are the same in every format.
    let rows = server.get("/spend/logs", KEY);
    let other = tempfile::Builder::new().prefix("litespend-cli-").tempdir_in(place::of_homes()).unwrap();
    let second = Server::start(other.path());
    for (accept, name) in [("application/x-ndjson", "export.jsonl"), ("text/csv", "export.csv")] {
        std::fs::write(other.path().join(name), server.export("/spend/logs?limit=1000000", KEY, accept)).unwrap();
        let output = litespend(other.path(), &["import", name]);
        assert!(output.status.success(), "{output:?}");
    }
    let taken = second.get("/spend/logs", KEY);
    let without = |rows: &Value| -> Vec<Value> {
        let mut rows = rows.as_array().unwrap().clone();
        // The database decides when a row was written, so these times differ.
        rows.iter_mut().for_each(|row| row.as_object_mut().unwrap().retain(|name, _| !name.ends_with("ated_at")));
        rows
    };
    assert_eq!(without(&taken), without(&rows));
    std::fs::write(other.path().join("again.csv"), second.export("/spend/logs", KEY, "text/csv")).unwrap();
    let third = tempfile::Builder::new().prefix("litespend-cli-").tempdir_in(place::of_homes()).unwrap();
    std::fs::copy(other.path().join("again.csv"), third.path().join("again.csv")).unwrap();
    let output = litespend(third.path(), &["import", "again.csv"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("{} imported, 0 already there, 0 bad", without(&rows).len())), "{said}");
    drop(second);
    drop(server);

    // From stdin, without a running server. The exported log equals the imported one.
    let mut child = Command::new(env!("CARGO_BIN_EXE_litespend"))
        .args(["import", "-"])
        .env_remove("DATABASE_URL")
        .env_remove("CONFIG_FILE_PATH")
        .env("LITESPEND_DATA_DIR", home)
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{}\n", row(30)).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 imported"), "{output:?}");
}
