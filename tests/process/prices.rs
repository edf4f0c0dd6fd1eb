//! Prices over HTTP and on the command line: newer price tables, the config file's prices, and the breakdown of a
//! price.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use litespend::prices::{PriceSource, Prices, SAVED_TABLE};
use litespend::settings::ConfigFile;
use litespend_pricing::CalculateRequest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Directory, MASTER_KEY, Server, database, eventually, program, run};

/// A price table with one model.
fn table(input: f64) -> String {
    json!({ "brand-new-1": { "litellm_provider": "openai", "mode": "chat",
        "input_cost_per_token": input, "output_cost_per_token": 0.00001 } })
    .to_string()
}

/// A foreign HTTP server whose answer the test can change.
struct Source {
    url: String,
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Source {
    async fn new(body: String) -> Self {
        let answer = Arc::new(Mutex::new((StatusCode::OK, body)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (given, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let router = axum::Router::new().fallback(async move || {
            count.fetch_add(1, Ordering::SeqCst);
            given.lock().unwrap().clone()
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/prices.json", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, answer, asked }
    }

    fn set(&self, status: StatusCode, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    async fn asked_again(&self) {
        // Waits for two requests, because the first may have been sent before the change.
        let before = self.asked.load(Ordering::SeqCst);
        let asked = eventually(Duration::from_secs(10), async || self.asked.load(Ordering::SeqCst) >= before + 2);
        assert!(asked.await);
    }
}

async fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let answer = reqwest::Client::new().post(server.url(path)).header("x-api-key", MASTER_KEY).json(body).send();
    let answer = answer.await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn response(model: &str, usage: &Value) -> Value {
    json!({ "completion_response": { "model": model, "usage": usage } })
}

fn thousand(model: &str) -> Value {
    response(model, &json!({ "prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100 }))
}

fn cost(prices: &Prices, model: &str) -> Option<f64> {
    let Value::Object(body) = thousand(model) else { return None };
    let request = CalculateRequest::from_body(body).unwrap();
    prices.current().calculate(&request, chrono::Utc::now()).ok().map(|calculation| calculation.cost_f64())
}

#[tokio::test]
async fn a_source_is_read_again_and_a_broken_one_changes_nothing() {
    let (source, home) = (Source::new(table(0.000001)).await, Directory::new());
    let read = || PriceSource::parse(&source.url);
    let prices = Arc::new(Prices::new(&ConfigFile::default(), Some(read()), Some(home.path())).unwrap().trusting(true));
    assert_eq!(cost(&prices, "brand-new-1"), None);
    let (stop, often) = (CancellationToken::new(), Some(Duration::from_millis(30)));
    let task = tokio::spawn(Arc::clone(&prices).keep_fresh(true, often, stop.clone()));
    let becomes = async |expected: f64| {
        eventually(Duration::from_secs(10), async || cost(&prices, "brand-new-1") == Some(expected)).await
    };
    assert!(becomes(0.002).await);
    // The new table replaces the old one completely.
    assert_eq!(cost(&prices, "gpt-4o"), None);

    for (status, body) in [
        (StatusCode::OK, "{\"brand-new-1\": ".to_owned()),
        (StatusCode::OK, "[1, 2]".to_owned()),
        (StatusCode::OK, "{}".to_owned()),
        (StatusCode::OK, "<html>moved</html>".to_owned()),
        (StatusCode::INTERNAL_SERVER_ERROR, table(1.0)),
        (StatusCode::NOT_FOUND, table(1.0)),
    ] {
        source.set(status, body.clone());
        source.asked_again().await;
        assert_eq!(cost(&prices, "brand-new-1"), Some(0.002), "{status} {body}");
    }
    source.set(StatusCode::OK, table(0.000003));
    assert!(becomes(0.004).await);
    stop.cancel();
    task.await.unwrap();

    // If the source is unavailable at the next start, the last good table is used. It is as old as its file.
    source.set(StatusCode::BAD_GATEWAY, String::new());
    let day = Duration::from_secs(86_400);
    let file = std::fs::File::options().write(true).open(home.path().join(SAVED_TABLE)).unwrap();
    file.set_modified(std::time::SystemTime::now() - day).unwrap();
    let prices = Prices::new(&ConfigFile::default(), Some(read()), Some(home.path())).unwrap().trusting(true);
    assert_eq!(cost(&prices, "brand-new-1"), Some(0.004));
    let age = prices.status().age().unwrap();
    assert!(age >= day && age < day + Duration::from_secs(60), "{age:?}");
    assert!(prices.refresh().await.is_err());
    assert_eq!(cost(&prices, "brand-new-1"), Some(0.004));
}

#[tokio::test]
async fn a_server_prices_by_a_file_from_its_first_request_and_by_a_url_when_it_is_there() {
    let (database, directory) = (database().await, Directory::new());
    let file = directory.file("prices.json", &table(0.000001));
    let server = Server::on(database.url(), &["--prices", file.to_str().unwrap()]);
    assert_eq!(post(&server, "/spend/calculate", &thousand("brand-new-1")).await, (200, json!({ "cost": 0.002 })));
    drop(server);

    let source = Source::new(table(0.000005)).await;
    let home = directory.path().join("home").to_str().unwrap().to_owned();
    let start = || {
        let mut command = program();
        command.env("DATABASE_URL", database.url()).env("LITELLM_MASTER_KEY", MASTER_KEY);
        command.env("LITELLM_MODEL_COST_MAP_URL", &source.url).env("LITESPEND_PRICES_TRUST", "true");
        Server::start(command, &["--data-dir", &home])
    };
    std::fs::create_dir_all(&home).unwrap();
    let server = start();
    let priced = async || post(&server, "/spend/calculate", &thousand("brand-new-1")).await;
    assert!(eventually(Duration::from_secs(10), async || priced().await == (200, json!({ "cost": 0.006 }))).await);
    drop(server);

    source.set(StatusCode::SERVICE_UNAVAILABLE, "no".to_owned());
    let server = start();
    assert_eq!(post(&server, "/spend/calculate", &thousand("brand-new-1")).await, (200, json!({ "cost": 0.006 })));
    let logged = || server.log().matches("cannot load newer prices").count();
    assert!(eventually(Duration::from_secs(10), async || logged() == 1).await, "{}", server.log());
    drop(server);

    // A malformed file is reported once, and the built-in prices apply.
    let file = directory.file("broken.json", "{");
    let server = Server::on(database.url(), &["--prices", file.to_str().unwrap()]);
    assert_eq!(post(&server, "/spend/calculate", &thousand("gpt-4o")).await, (200, json!({ "cost": 0.0035 })));
    assert_eq!(server.log().matches("cannot load newer prices").count(), 1);
}

#[tokio::test]
async fn prices_and_aliases_of_the_config_file_hold_in_both_shapes() {
    let (database, directory) = (database().await, Directory::new());
    let config = directory.file(
        "config.yaml",
        "
model_list:
  - model_name: house
    litellm_params: {model: openai/our-llama, input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}
  - model_name: based
    litellm_params: {model: azure/deployment-7, api_key: os.environ/NOT_SET}
    model_info: {base_model: azure/gpt-4o}
router_settings:
  model_group_alias: {short: house}
",
    );
    let server = Server::on(database.url(), &["--config", config.to_str().unwrap()]);
    let messages = json!([{ "role": "user", "content": "Hey, how's it going?" }]);
    for (model, of_usage, of_messages) in
        [("house", 0.0012, 0.000014), ("short", 0.0012, 0.000014), ("based", 0.0035, 0.000035)]
    {
        assert_eq!(
            post(&server, "/spend/calculate", &thousand(model)).await,
            (200, json!({ "cost": of_usage })),
            "{model}"
        );
        let asked = json!({ "model": model, "messages": messages });
        assert_eq!(
            post(&server, "/spend/calculate", &asked).await,
            (200, json!({ "cost": of_messages })),
            "{model} by messages"
        );
    }
    assert_eq!(post(&server, "/spend/calculate", &thousand("nobody-has-this")).await.0, 400);
}

/// The lines of a breakdown: kind, quantity, unit price and cost.
fn lines(breakdown: &Value) -> Vec<(String, f64, f64, f64)> {
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap();
    breakdown["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            (
                line["kind"].as_str().unwrap().to_owned(),
                number(line, "quantity"),
                number(line, "unit_price"),
                number(line, "cost"),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_breakdown_adds_up_to_the_cost() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let explain = async |body: Value| {
        let (status, answer) = post(&server, "/spend/calculate?explain=true", &body).await;
        assert_eq!(status, 200, "{answer}");
        let sum: f64 = lines(&answer["breakdown"]).iter().map(|line| line.3).sum();
        let cost = answer["cost"].as_f64().unwrap();
        assert!((sum - cost).abs() <= cost * 1e-15, "{sum} is not {cost}");
        answer
    };
    let kinds = |answer: &Value| -> Vec<(String, f64, f64)> {
        lines(&answer["breakdown"]).into_iter().map(|(kind, quantity, price, _)| (kind, quantity, price)).collect()
    };
    let line = |kind: &str, quantity: f64, price: f64| (kind.to_owned(), quantity, price);

    // A cached Anthropic call with more than 200,000 tokens: all its prices are those of the tier above 200,000.
    let usage = json!({ "prompt_tokens": 260_000, "completion_tokens": 1000, "total_tokens": 261_000,
        "cache_read_input_tokens": 200_000, "cache_creation_input_tokens": 50_000 });
    let answer = explain(response("claude-4-sonnet-20250514", &usage)).await;
    assert_eq!(
        kinds(&answer),
        [
            line("input_tokens", 10_000.0, 0.000006),
            line("cache_read_tokens", 200_000.0, 0.0000006),
            line("cache_write_tokens", 50_000.0, 0.0000075),
            line("output_tokens", 1000.0, 0.0000225),
        ]
    );
    assert_eq!(answer["cost"], json!(0.5775));

    // The priority tier has its own prices.
    let mut call = thousand("gpt-5");
    call["completion_response"]["service_tier"] = json!("priority");
    let answer = explain(call).await;
    assert_eq!(kinds(&answer), [line("input_tokens", 1000.0, 0.0000025), line("output_tokens", 100.0, 0.00002)]);
    assert_eq!(explain(thousand("gpt-5")).await["cost"], json!(0.00225));

    // Audio input and output.
    let usage = json!({ "prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500,
        "prompt_tokens_details": { "audio_tokens": 800, "text_tokens": 200 },
        "completion_tokens_details": { "audio_tokens": 400, "text_tokens": 100 } });
    let answer = explain(response("gpt-4o-audio-preview", &usage)).await;
    assert_eq!(
        kinds(&answer),
        [
            line("input_tokens", 200.0, 0.0000025),
            line("input_audio_tokens", 800.0, 0.00004),
            line("output_tokens", 100.0, 0.00001),
            line("output_audio_tokens", 400.0, 0.00008),
        ]
    );

    // A model that LiteLLM has removed keeps its price, and the answer marks it as retired.
    let answer = explain(thousand("gpt-3.5-turbo-0301")).await;
    assert_eq!(answer["breakdown"]["retired"], json!(true));
    assert_eq!(answer["cost"], json!(0.0017));
}

#[test]
fn the_shell_prices_tokens_and_messages() {
    let directory = Directory::new();
    let ask = |arguments: &[&str]| run(program().arg("cost").args(arguments));
    let said = ask(&["gpt-4o", "--input", "1200", "--cached", "200", "--output", "300"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.starts_with("gpt-4o (openai)\n") && said.stdout.ends_with("0.00575 USD\n"), "{}", said.stdout);

    let messages = r#"[{"role": "user", "content": "Hey, how's it going?"}]"#;
    let list = directory.file("list.json", messages);
    let request = directory.file("request.json", &format!(r#"{{"model": "gpt-4o", "messages": {messages}}}"#));
    let (list, request) = (list.to_str().unwrap(), request.to_str().unwrap());
    for arguments in [&["gpt-4o", "--messages", list][..], &["--messages", request], &["gpt-4o", "--messages", request]]
    {
        let said = ask(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
        assert!(said.stdout.ends_with("0.000035 USD\n"), "{arguments:?}: {}", said.stdout);
    }
    let said = ask(&["--messages", request, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap()["cost"], json!(0.000035));

    for (arguments, code, message) in [
        (&["--messages", list][..], 2, "the model is missing"),
        (&["nobody-has-this", "--input", "1"], 1, "nobody-has-this"),
        (&["gpt-4o", "--messages", "/no/such/file"], 2, "cannot read"),
        (&[], 2, "required"),
    ] {
        let said = ask(arguments);
        assert_eq!(said.code, Some(code), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.contains(message), "{arguments:?}: {}", said.stderr);
        assert_eq!(said.stdout, "");
    }
}

#[test]
fn a_newer_table_is_compared_before_it_is_used() {
    let directory = Directory::new();
    let file = directory.file(
        "new.json",
        r#"{"gpt-4o": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-6,
            "output_cost_per_token": 1e-5}, "brand-new-1": {"litellm_provider": "openai", "mode": "chat",
            "input_cost_per_token": 1e-6}, "odd": {"litellm_provider": "openai", "input_cost_per_token": "much"}}"#,
    );
    let said = run(program().args(["prices", "check"]).arg(&file));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("+ brand-new-1\n"), "{}", said.stdout);
    assert!(said.stdout.contains("~ gpt-4o: input_cost_per_token 2.5e-6 -> 1e-6\n"), "{}", said.stdout);
    assert!(said.stdout.contains("! odd: left out"), "{}", said.stdout);
    assert!(said.stdout.lines().any(|line| line.starts_with("- claude")));
    let broken = directory.file("broken.json", "{");
    assert_eq!(run(program().args(["prices", "check"]).arg(broken)).code, Some(2));
}

/// The built-in table as a document, with one field of one model changed.
fn built_in_with(model: &str, field: &str, value: f64) -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/pricing/data/model_prices.json");
    let mut table: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    *table.pointer_mut(&format!("/{model}/{field}")).unwrap() = json!(value);
    table
}

#[tokio::test]
async fn a_newer_table_that_is_likely_broken_is_not_used() {
    let plausible = built_in_with("gpt-4o", "input_cost_per_token", 0.000002);
    let source = Source::new(plausible.to_string()).await;
    let read = || Some(PriceSource::parse(&source.url));
    let prices = Prices::new(&ConfigFile::default(), read(), None).unwrap();
    assert!(prices.status().source.starts_with("built in (LiteLLM 1."), "{:?}", prices.status());
    let models = prices.refresh().await.unwrap().unwrap();
    assert_eq!(prices.status().source, "url");
    assert!(prices.status().read_at.is_some() && prices.status().models == models);
    let before = cost(&prices, "gpt-4o").unwrap();

    let mut halved = plausible.clone();
    let names: Vec<String> = halved.as_object().unwrap().keys().step_by(2).cloned().collect();
    for name in names {
        halved.as_object_mut().unwrap().remove(&name);
    }
    let with_every_input_price = |change: fn(&mut Value)| {
        let mut table = plausible.clone();
        for entry in table.as_object_mut().unwrap().values_mut() {
            if let Some(price) = entry.pointer_mut("/input_cost_per_token") {
                change(price);
            }
        }
        table
    };
    let mut without_input_prices = plausible.clone();
    for entry in without_input_prices.as_object_mut().unwrap().values_mut().filter_map(Value::as_object_mut) {
        entry.remove("input_cost_per_token");
    }
    let mut of_strings = plausible.clone();
    of_strings["gpt-4o"]["input_cost_per_token"] = json!("0.002");
    for (table, reason) in [
        (built_in_with("gpt-4o", "input_cost_per_token", 0.002), "input_cost_per_token of gpt-4o"),
        (built_in_with("gpt-4o", "input_cost_per_token", 0.0), "input_cost_per_token of gpt-4o"),
        (of_strings, "input_cost_per_token of gpt-4o"),
        (halved, "lacks"),
        (without_input_prices, "lacks"),
        (with_every_input_price(|price| *price = Value::Null), "lacks"),
        (with_every_input_price(|price| *price = json!("n/a")), "lacks"),
    ] {
        source.set(StatusCode::OK, table.to_string());
        let refused = format!("{:#}", prices.refresh().await.unwrap_err());
        assert!(refused.contains(reason) && refused.contains("--prices-trust"), "{refused}");
        assert_eq!(cost(&prices, "gpt-4o"), Some(before));
        assert_eq!(prices.status().failure, Some(refused));
    }
    let prices = prices.trusting(true);
    source.set(StatusCode::OK, built_in_with("gpt-4o", "input_cost_per_token", 0.002).to_string());
    prices.refresh().await.unwrap();
    assert!(cost(&prices, "gpt-4o").unwrap() > 100.0 * before && prices.status().failure.is_none());
}

#[tokio::test]
async fn retired_models_keep_their_prices_and_the_server_says_where_its_prices_come_from() {
    let (database, directory) = (database().await, Directory::new());
    let file = directory.file("prices.json", &table(0.000001));
    let server = Server::on(database.url(), &["--prices", file.to_str().unwrap()]);
    let (status, answer) = post(&server, "/spend/calculate?explain=true", &thousand("gpt-4-32k")).await;
    assert_eq!((status, &answer["breakdown"]["retired"]), (200, &json!(true)), "{answer}");
    let get = async |path: &str| {
        let request = reqwest::Client::new().get(server.url(path)).header("x-api-key", MASTER_KEY);
        request.send().await.unwrap().text().await.unwrap()
    };
    let ready: Value = serde_json::from_str(&get("/health/readiness").await).unwrap();
    assert_eq!(ready["prices"]["source"], "file", "{ready}");
    assert!(ready["prices"]["age_seconds"].is_u64() && ready["prices"]["refresh_failed"] == false, "{ready}");
    let metrics = get("/metrics").await;
    for name in [
        "litespend_prices_age_seconds{source=\"file\"}",
        "litespend_prices_models{source=\"file\"}",
        "litespend_prices_refresh_failed 0",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    let status = program().args(["prices", "status", "--prices", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("built in    LiteLLM 1.") && text.contains("seconds old"), "{text}");
}
