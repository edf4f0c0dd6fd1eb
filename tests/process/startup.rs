//! Starting: settings, the block of information that the server prints, the master key, and refusals.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Directory, MASTER_KEY, Run, Server, database, is_alive, program, run};

/// Checks that a wrong setting was refused with exit code 2, and returns the one line that says so.
fn refusal(run: &Run) -> &str {
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert_eq!(run.stdout, "", "{}", run.stdout);
    let line = run.stderr.trim_end();
    assert!(!line.contains('\n'), "more than one line: {line}");
    line
}

#[tokio::test]
async fn the_block_says_where_everything_is_and_no_secret() {
    let database = database().await;
    let url = database.url().replacen("litespend@", "litespend:hunter2-password@", 1);
    let server = Server::on(&url, &[]);
    for part in [
        &format!("address     http://127.0.0.1:{}", server.address.port()),
        "database    PostgreSQL ",
        "litespend_test_",
        "litespend's own tables",
        &format!("docs        http://127.0.0.1:{}/", server.address.port()),
        "master key  LITELLM_MASTER_KEY",
    ] {
        assert!(server.block.contains(part), "{part}\n{}", server.block);
    }
    assert!(!server.block.contains(MASTER_KEY) && !server.block.contains("hunter2"), "{}", server.block);
    assert!(server.started_in < Duration::from_secs(2), "{:?}", server.started_in);
}

#[tokio::test]
async fn the_embedded_database_keeps_its_master_key_and_its_data() {
    let home = Directory::new();
    let start = || {
        let mut command = program();
        command.env("LITESPEND_DATA_DIR", home.path().join("home"));
        Server::start(command, &["--database-connections", "60"])
    };
    let mut server = start();
    let configuration = std::fs::read_to_string(home.path().join("home/data/litespend.conf")).unwrap();
    assert!(configuration.contains("max_connections = 90\n"), "{configuration}");
    let file = home.path().join("home/master_key");
    assert!(server.block.contains(&format!("created on this first start: {}", file.display())), "{}", server.block);
    assert!(server.block.contains(&format!("embedded in {}", home.path().join("home").display())), "{}", server.block);
    // Commands work beside the server.
    for arguments in [["rollups", "verify"], ["indexes", "advise"], ["books", "status"]] {
        let said = run(program().args(arguments).env("LITESPEND_DATA_DIR", home.path().join("home")));
        assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}");
    }
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(key.starts_with("sk-") && key.len() > 40);
    assert!(!server.block.contains(&key) && !server.log().contains(&key));

    let client = reqwest::Client::new();
    let add =
        client.post(server.url("/add/allowed_ip")).header("api-key", &key).header("content-type", "application/json");
    assert_eq!(add.body(r#"{"ip":"127.0.0.0/8"}"#).send().await.unwrap().status(), 200);
    let pid: u32 = {
        let text = std::fs::read_to_string(home.path().join("home/data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    };
    assert!(is_alive(pid));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit(Duration::from_secs(20)), Some(0));
    assert!(!is_alive(pid), "PostgreSQL is still running");
    assert!(!home.path().join("home/data/postmaster.pid").exists());

    let mut server = start();
    let mut quickest = server.started_in;
    // On a busy machine, take the quickest of a few starts.
    for _ in 0..3 {
        if quickest < Duration::from_secs(2) {
            break;
        }
        drop(server);
        server = start();
        quickest = quickest.min(server.started_in);
    }
    println!("a further start took {quickest:?}");
    assert!(quickest < Duration::from_secs(2), "a further start took {quickest:?}");
    assert!(server.block.contains(&format!("read from {}", file.display())), "{}", server.block);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), key);
    let list = client.get(server.url("/get/allowed_ips")).header("api-key", &key).send().await.unwrap();
    assert_eq!(list.text().await.unwrap(), r#"{"data":["127.0.0.0/8"]}"#);
}

#[tokio::test]
async fn a_given_database_needs_a_given_master_key() {
    let database = database().await;
    for empty in [None, Some("")] {
        let mut command = program();
        command.arg("serve").env("DATABASE_URL", database.url());
        if let Some(key) = empty {
            command.env("LITELLM_MASTER_KEY", key);
        }
        let said = run(&mut command);
        assert!(refusal(&said).contains("LITELLM_MASTER_KEY"), "{}", said.stderr);
    }
}

#[tokio::test]
async fn a_wrong_setting_is_one_line_and_exit_code_2() {
    let directory = Directory::new();
    let config = |name: &str, content: &str| directory.file(name, content).display().to_string();
    let not_yaml = config("a.yaml", "general_settings: [unclosed");
    let not_a_mapping = config("b.yaml", "- 1\n");
    let bad_address = config("c.yaml", "general_settings: {allowed_ips: ['not an address']}");
    let bad_type = config("d.yaml", "general_settings: {master_key: 5}");
    for (arguments, word) in [
        (&["serve", "--port", "junk"][..], "--port"),
        (&["serve", "--port", "70000"], "--port"),
        (&["serve", "--host", "nowhere"], "--host"),
        (&["serve", "--trusted-proxies", "10.0.0.0/8,junk"], "--trusted-proxies"),
        (&["serve", "--request-timeout", "0"], "--request-timeout"),
        (&["serve", "--database-connections", "1"], "--database-connections"),
        (&["serve", "--log-format", "xml"], "--log-format"),
        (&["serve", "--otlp-tag-attribute", "service name"], "--otlp-tag-attribute"),
        (&["serve", "--demo-calls", "5"], "required"),
        (&["serve", "--demo", "--demo-calls", "0"], "--demo-calls"),
        (&["serve", "--no-such-flag"], "--no-such-flag"),
        (&["serve", "--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (&["serve", "--config", &not_yaml], "not YAML"),
        (&["serve", "--config", &not_a_mapping], "mapping"),
        (&["serve", "--config", &bad_address], "not an address"),
        (&["serve", "--config", &bad_type], "master_key"),
        (&["serve", "--master-key", "with space"], "master key"),
        (&["serve", "--master-key", "sk-1", "--database-url", "mysql://u:hunter2@h/db"], "PostgreSQL URL"),
        (&["serve", "--master-key", "sk-1", "--database-url", "postgres://u:hunter2@h:port/db"], "PostgreSQL URL"),
        (&["serve", "--master-key", "sk-1", "--database-url", "postgres://h/d?pool_timeout=hunter2"], "pool_timeout"),
        (&["migrate", "--database-url", "postgres://h/d", "--direct-url", "sqlite:hunter2"], "DIRECT_URL"),
        (&["migrate", "--database-url", "sqlite:file.db"], "PostgreSQL URL"),
        (&["no-such-command"], "no-such-command"),
    ] {
        let said = run(program().env("LITESPEND_DATA_DIR", directory.path().join("home")).args(arguments));
        let line = refusal(&said);
        assert!(line.starts_with("litespend: ") && line.contains(word), "{arguments:?}: {line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    for (name, value, word) in [("PORT", "junk", "port"), ("HOST", "x", "host"), ("TRUSTED_PROXIES", "junk", "trusted")]
    {
        let said =
            run(program().arg("serve").env(name, value).env("LITESPEND_DATA_DIR", directory.path().join("home")));
        assert!(refusal(&said).contains(word), "{name}: {}", said.stderr);
    }
    // Nothing was created before the refusal.
    assert!(!directory.path().join("home").exists());
}

#[tokio::test]
async fn labels_of_metrics_are_taken_once_and_customers_are_labels_where_they_are_asked_for() {
    let database = database().await;
    for (labels, has_customers) in [("team_alias,model,team_alias", false), ("model,end_user,team_alias,model", true)] {
        let server = Server::on(database.url(), &["--metrics-labels", labels]);
        let book = r#"{"model": "gpt-4o", "prompt_tokens": 1, "completion_tokens": 1, "end_user_id": "someone"}"#;
        let client = reqwest::Client::new().post(server.url("/spend/usage")).header("x-api-key", MASTER_KEY);
        assert_eq!(client.header("content-type", "application/json").body(book).send().await.unwrap().status(), 200);
        let text = server.get("/metrics/spend").await.text().await.unwrap();
        let sample = text.lines().find(|line| line.starts_with("litellm_requests_metric_total{")).unwrap();
        for label in ["team=", "team_alias=", "model="] {
            assert_eq!(sample.matches(&format!(r#"{label}""#)).count(), 1, "{sample}");
        }
        assert_eq!(sample.contains(r#"end_user=""#), has_customers, "{sample}");
        assert_eq!(text.contains("customer_budget"), has_customers, "{text}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_one_line_and_exit_code_2() {
    let database = database().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = program();
    command.env("DATABASE_URL", database.url()).env("LITELLM_MASTER_KEY", MASTER_KEY);
    let said = run(command.args(["serve", "--port", &port]));
    assert!(refusal(&said).contains(&format!("127.0.0.1:{port}")), "{}", said.stderr);
}

#[tokio::test]
async fn the_config_file_is_litellms_and_what_is_unknown_in_it_is_named_once() {
    let (database, directory) = (database().await, Directory::new());
    let config = directory.file(
        "config.yaml",
        "model_list: []\nlitellm_settings: {drop_params: true}\ngeneral_settings:\n  master_key: os.environ/MY_KEY\n  \
         database_url: os.environ/MY_DATABASE\n  allowed_ips: ['127.0.0.1']\n  alerting: [slack]\n  \
         use_x_forwarded_for: false\nrouter_settings: {num_retries: 2}\n",
    );
    let mut command = program();
    command.env("MY_KEY", MASTER_KEY).env("MY_DATABASE", database.url());
    let server = Server::start(command, &["--config", config.to_str().unwrap()]);
    assert!(server.block.contains("master key  general_settings.master_key of the config file"), "{}", server.block);
    assert_eq!(server.get("/get/allowed_ips").await.text().await.unwrap(), r#"{"data":["127.0.0.1"]}"#);
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("litespend ignores")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for name in ["litellm_settings", "general_settings.alerting", "router_settings.num_retries"] {
        assert!(lines[0].contains(name), "{}", lines[0]);
    }
    assert!(!log.contains("general_settings.master_key"), "{log}");

    // A flag or environment variable takes precedence over the file.
    let mut command = program();
    command.env("MY_KEY", "sk-of-the-file").env("MY_DATABASE", database.url()).env("LITELLM_MASTER_KEY", MASTER_KEY);
    let server = Server::start(command, &["--config", config.to_str().unwrap()]);
    assert_eq!(server.status("/spend/tags").await, 200);
    // A reference to an unset variable gives no key.
    let mut command = program();
    command.env("MY_DATABASE", database.url()).args(["serve", "--config", config.to_str().unwrap()]);
    let said = run(&mut command);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.lines().last().unwrap().contains("no master key"), "{}", said.stderr);
}

#[tokio::test]
async fn two_servers_do_not_share_a_home() {
    let home = Directory::new();
    let command = || {
        let mut command = program();
        command.env("LITESPEND_DATA_DIR", home.path().join("home")).env("LITELLM_MASTER_KEY", MASTER_KEY);
        command
    };
    let first = Server::start(command(), &[]);
    let said = run(command().args(["serve", "--port", "0"]));
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("another litespend"), "{}", said.stderr);
    assert_eq!(first.status("/health/readiness").await, 200);
}

/// A supervisor that starts it again would not help: [`refusal`] expects the exit code of a wrong setting.
#[test]
fn data_that_no_installed_postgresql_can_read_is_one_line_and_exit_code_2() {
    let home = Directory::new();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for (version, expected) in [(None, "is not a PostgreSQL data directory"), (Some("9\n"), "belongs to PostgreSQL 9")]
    {
        std::fs::write(data.join("mine"), "mine").unwrap();
        if let Some(version) = version {
            std::fs::write(data.join("PG_VERSION"), version).unwrap();
        }
        for arguments in [&["serve", "--port", "0"][..], &["books", "status"]] {
            let run = run(program().args(arguments).env("LITESPEND_DATA_DIR", home.path()));
            assert!(refusal(&run).contains(expected), "{arguments:?}: {}", run.stderr);
        }
        assert_eq!(std::fs::read_to_string(data.join("mine")).unwrap(), "mine");
    }
}

#[tokio::test]
async fn the_zone_of_the_server_and_its_database_change_no_answer() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let insert = r#"
        INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, "user")
        VALUES ('a', 'x', 'k', 1, '2026-02-28 23:30:00', '2026-02-28 23:30:01.25', 'm', 'u'),
               ('b', 'x', 'k', 2, '2026-03-01 00:30:00', '2026-03-01 00:30:00', 'm', 'u');
        INSERT INTO "LiteLLM_DailyUserSpend" (id, date, api_key, spend, updated_at) VALUES ('1', '2026-02-28', 'k', 1, now())"#;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(database.url()).await.unwrap();
    sqlx::raw_sql(insert).execute(&mut connection).await.unwrap();
    let dates = "start_date=2026-02-28&end_date=2026-03-02";
    let paths = [
        "/spend/logs".to_owned(),
        format!("/spend/logs?{dates}"),
        format!("/spend/logs?{dates}&summarize=false"),
        format!("/global/spend/report?{dates}"),
        format!("/global/spend/report?{dates}&group_by=api_key"),
        format!("/user/daily/activity?{dates}"),
    ];
    let answers = async |server: &Server| {
        let mut answers = Vec::new();
        for path in &paths {
            answers.push(server.get(path).await.text().await.unwrap());
        }
        answers
    };
    let expected = answers(&server).await;
    assert!(expected[0].contains("2026-02-28T23:30:01.250000Z"), "{}", expected[0]);
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut connection).await.unwrap();
    let statement = format!("ALTER DATABASE {name} SET timezone = 'Asia/Kolkata'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    let mut command = program();
    command.env("DATABASE_URL", database.url()).env("LITELLM_MASTER_KEY", MASTER_KEY);
    command.env("TZ", "Asia/Kolkata").env("PGTZ", "Asia/Kolkata");
    assert_eq!(answers(&Server::start(command, &[])).await, expected);
}
