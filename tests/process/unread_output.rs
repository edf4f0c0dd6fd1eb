//! Whoever reads a command's output may stop early. The command then says nothing about it, and does its work.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use crate::support::{Directory, database, program, run};

/// Runs a command, reads the first line of its output, and closes the pipe.
fn first_line(command: &mut Command) -> (String, Output) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (line, child.wait_with_output().unwrap())
}

/// Runs a command whose output is a pipe that nobody reads, not even at the start.
fn unread(command: &mut Command) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().unwrap()
}

fn assert_quiet(output: &Output, what: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""), "{what:?}");
}

/// A price table so long that a pipe cannot hold the list of its models.
fn long_table() -> String {
    let prices = r#"{"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-6}"#;
    let entries: Vec<String> = (0..5000).map(|n| format!(r#""a-model-with-a-name-{n}": {prices}"#)).collect();
    format!("{{{}}}", entries.join(","))
}

#[test]
fn a_command_ends_quietly_if_its_reader_stops_after_a_line() {
    let directory = Directory::new();
    let table = directory.file("prices.json", &long_table());
    for (arguments, expected) in [
        (&["openapi"][..], "openapi: 3.1.0\n"),
        (&["prices", "check", table.to_str().unwrap()], "+ a-model-with-a-name-"),
    ] {
        let (line, output) = first_line(program().args(arguments));
        assert!(line.starts_with(expected), "{line}");
        assert_quiet(&output, arguments);
    }
}

#[test]
fn a_command_ends_quietly_if_nobody_reads() {
    let directory = Directory::new();
    let table = directory.file("prices.json", &long_table());
    let cost = ["cost", "gpt-4o", "--input", "1200", "--output", "300"];
    for arguments in [
        &cost[..],
        &[&cost[..], &["--json"]].concat(),
        &["prices", "status"],
        &["prices", "check", table.to_str().unwrap()],
        &["openapi"],
        &["--help"],
        &["--version"],
    ] {
        assert_quiet(&unread(program().args(arguments)), arguments);
    }
}

#[tokio::test]
async fn a_command_does_its_work_even_if_nobody_reads() {
    let database = database().await;
    let litespend = || {
        let mut command = program();
        command.env("DATABASE_URL", database.url());
        command
    };
    for arguments in [
        &["migrate"][..],
        &["team", "create", "--id", "unread-team", "Unread"],
        &["user", "create", "--id", "unread-user"],
        &["key", "create", "--alias", "unread-key", "--team", "unread-team"],
        &["demo-data", "--days", "1", "--calls", "10"],
        &["team", "list"],
        &["user", "list"],
        &["key", "list"],
        &["rollups", "status"],
        &["rollups", "rebuild"],
        &["booking", "status"],
        &["indexes", "advise"],
    ] {
        assert_quiet(&unread(litespend().args(arguments)), arguments);
    }
    for (list, expected) in [("team", "unread-team"), ("user", "unread-user"), ("key", "unread-key")] {
        let said = run(litespend().args([list, "list"]));
        assert!(said.stdout.contains(expected), "{}", said.stdout);
    }
}

/// A full disk is not a reader that has seen enough.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_for_another_reason_is_an_error() {
    for arguments in [&["openapi"][..], &["cost", "gpt-4o", "--input", "1200"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = program().args(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("litespend: cannot write to standard output"), "{said}");
    }
}
