//! `litespend booking` on a database that LiteLLM owns, while a server runs.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{AS_LITELLM, MASTER_KEY, Run, Server, database, program, run};

/// Lists all objects in the database that belong to litespend.
const TRACES: &str = r#"
    SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'litespend')
         + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'litespend%')
         + (SELECT count(*) FROM pg_proc WHERE proname LIKE '%litespend%')"#;

fn booking(url: &str, action: &str) -> Run {
    run(program().args(["booking", action]).env("DATABASE_URL", url))
}

async fn post(server: &Server, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let sent = reqwest::Client::new().post(server.url(path)).bearer_auth(key).json(body).send().await.unwrap();
    (sent.status().as_u16(), sent.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn booking_comes_and_goes_on_litellms_database() {
    let database = database().await;
    let url = database.url();
    let pool = PgPool::connect(url).await.unwrap();
    sqlx::raw_sql(AS_LITELLM).execute(&pool).await.unwrap();
    let count = async |query: &'static str| sqlx::query_scalar::<_, i64>(query).fetch_one(&pool).await.unwrap();
    const ROWS: &str = r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#;
    let server = Server::on(url, &["--manage-litellm-keys"]);
    let make = async |permissions: Value| {
        let (status, made) = post(&server, "/key/generate", MASTER_KEY, &permissions).await;
        assert_eq!(status, 200, "{made}");
        made["key"].as_str().unwrap().to_owned()
    };
    let feed = make(json!({"user_id": "ada", "permissions": {"book_usage": true}})).await;
    let ordinary = make(json!({"user_id": "ben"})).await;
    let record = |id: &str| json!({"api_key": feed, "model": "gpt-4o", "cost": 0.5, "idempotency_key": id});
    let own = |id: &str| json!({"model": "gpt-4o", "prompt_tokens": 10, "idempotency_key": id});

    // Before the installation every booking is refused with a conflict that says what to do, and nothing is written.
    let refused = async |id: &str| {
        for key in [feed.as_str(), MASTER_KEY, ordinary.as_str()] {
            let body = if key == ordinary { own(id) } else { record(id) };
            let (status, answer) = post(&server, "/spend/usage", key, &body).await;
            assert_eq!(status, 409, "{answer}");
            assert!(answer["detail"]["error"].as_str().unwrap().contains("litespend booking install"), "{answer}");
        }
    };
    refused("before").await;
    let said = booking(url, "status");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("usage cannot be booked: run `litespend booking install`"), "{}", said.stdout);
    assert_eq!((count(ROWS).await, count(TRACES).await), (0, 0));

    // After the installation (which may run twice) the running server books at once, for keys that may book.
    for _ in 0..2 {
        let said = booking(url, "install");
        assert_eq!((said.code, said.stdout.trim()), (Some(0), "usage can be booked"), "{}", said.stderr);
    }
    let (status, answer) = post(&server, "/spend/usage", &feed, &record("call-1")).await;
    assert_eq!((status, &answer["recorded"]), (200, &json!(1)), "{answer}");
    let (status, answer) = post(&server, "/spend/usage", &feed, &record("call-1")).await;
    assert_eq!((status, &answer["duplicate"]), (200, &json!(1)), "{answer}");
    let (status, answer) = post(&server, "/spend/usage", MASTER_KEY, &record("call-2")).await;
    assert_eq!((status, &answer["recorded"]), (200, &json!(1)), "{answer}");
    let (status, answer) = post(&server, "/spend/usage", &ordinary, &own("call-3")).await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer["results"][0]["error"].as_str().unwrap().contains("book_usage"), "{answer}");
    let spent = r#"SELECT spend FROM "LiteLLM_VerificationToken" WHERE user_id = 'ada'"#;
    let spent: f64 = sqlx::query_scalar(spent).fetch_one(&pool).await.unwrap();
    assert!((spent - 1.0).abs() < 1e-9, "{spent}");
    assert_eq!(count(ROWS).await, 2);
    let said = booking(url, "status");
    assert!(said.stdout.contains("by keys with the permission book_usage"), "{}", said.stdout);
    assert!(said.stdout.contains("ids remembered"), "{}", said.stdout);

    // After the removal bookings are refused again. The booked rows stay; no other object of litespend stays.
    let said = booking(url, "remove");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("removed"), "{}", said.stdout);
    refused("after").await;
    assert_eq!((count(ROWS).await, count(TRACES).await), (2, 0));
    assert!(booking(url, "status").stdout.contains("cannot be booked"));
    assert_eq!(booking(url, "remove").code, Some(0), "removing once more is no error");
    assert_eq!(server.status("/health/readiness").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_our_own_is_booked_into_from_the_start() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let said = booking(database.url(), "remove");
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("litespend's own"), "{}", said.stderr);
    assert_eq!(booking(database.url(), "install").code, Some(0));
    assert!(booking(database.url(), "status").stdout.starts_with("usage can be booked\n"));
    let record = json!({"model": "gpt-4o", "cost": 0.5, "idempotency_key": "call-1"});
    let (status, answer) = post(&server, "/spend/usage", MASTER_KEY, &record).await;
    assert_eq!((status, &answer["recorded"]), (200, &json!(1)), "{answer}");
}
