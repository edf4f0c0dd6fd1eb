//! A master key that anyone can guess is refused if other machines can reach the server, unless the operator insists.

use std::process::Command;
use std::time::Duration;

use crate::support::{Directory, Server, database, eventually, program, run};

const WEAK: &str = "sk-1234";
const INSIST: &str = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY";

fn command(url: &str, key: &str) -> Command {
    let mut command = program();
    command.env("DATABASE_URL", url).env("LITELLM_MASTER_KEY", key);
    command
}

#[tokio::test]
async fn a_weak_master_key_does_not_start_where_others_can_reach_the_server() {
    let database = database().await;
    for host in ["0.0.0.0", "::", "192.0.2.7"] {
        for key in [WEAK, "sk-", "sk-password"] {
            let said = run(command(database.url(), key).args(["serve", "--port", "0", "--host", host]));
            assert_eq!(said.code, Some(2), "{host} {key}: {}", said.stderr);
            assert_eq!(said.stdout, "", "{host} {key}");
            let line = said.stderr.trim_end();
            assert_eq!(line.lines().count(), 1, "{line}");
            for part in ["litespend: the master key", host, "openssl rand -hex 32", INSIST] {
                assert!(line.contains(part), "{host} {key}: {line}");
            }
        }
    }
    // The same for the config file's key and for UI_PASSWORD, and for a value that does not count as insisting.
    let directory = Directory::new();
    let config = directory.file("config.yaml", "general_settings: {master_key: sk-1234}");
    let mut of_config = program();
    of_config.env("DATABASE_URL", database.url()).args(["serve", "--port", "0", "--host", "0.0.0.0", "--config"]);
    assert_eq!(run(of_config.arg(config)).code, Some(2));
    let mut of_password = command(database.url(), "sk-a-master-key-of-some-length");
    of_password.env("UI_PASSWORD", "admin").args(["serve", "--port", "0", "--host", "0.0.0.0", "--ui", "/"]);
    let said = run(&mut of_password);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("UI_PASSWORD is publicly known"), "{}", said.stderr);
    for no in ["false", "0", ""] {
        let mut command = command(database.url(), WEAK);
        let said = run(command.env(INSIST, no).args(["serve", "--port", "0", "--host", "0.0.0.0"]));
        assert_eq!(said.code, Some(2), "{no}: {}", said.stderr);
    }
}

#[tokio::test]
async fn it_starts_where_somebody_insists_and_on_this_machine_with_a_warning() {
    let (database, directory) = (database().await, Directory::new());
    let config = directory.file("config.yaml", "general_settings: {dangerously_permit_weak_or_unset_master_key: true}");
    let mut insisting = command(database.url(), WEAK);
    insisting.env(INSIST, "true");
    for (command, arguments) in [
        (insisting, &["--host", "0.0.0.0"][..]),
        (command(database.url(), WEAK), &["--host", "0.0.0.0", "--config", config.to_str().unwrap()]),
        (command(database.url(), WEAK), &["--host", "127.0.0.1"]),
        (command(database.url(), WEAK), &[]),
        (command(database.url(), WEAK), &["--host", "::1"]),
    ] {
        let server = Server::start(command, arguments);
        let port = server.address.port();
        let host = if arguments.contains(&"::1") { "[::1]" } else { "127.0.0.1" };
        let url = format!("http://{host}:{port}/spend/tags");
        let answer = reqwest::Client::new().get(url).bearer_auth(WEAK).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{arguments:?}");
        let warned = async || server.log().contains("the master key is publicly known: never use it where other");
        assert!(eventually(Duration::from_secs(5), warned).await, "{arguments:?}: {}", server.log());
        assert!(!server.log().contains(WEAK) && !server.block.contains(WEAK), "{}", server.log());
    }
    let strong = Server::start(command(database.url(), "sk-a-master-key-of-some-length"), &["--host", "0.0.0.0"]);
    assert!(!strong.log().contains("the master key"), "{}", strong.log());
}
