//! A commit whose answer is lost: PostgreSQL has booked, and the connection is cut before the server learns of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use litespend::clock::Clock;
use litespend::identity::hash_key;
use litespend::store::database;
use litespend::store::database::PoolLimits;
use litespend::store::database_url::DatabaseUrl;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::support::sums::{assert_consistent, rows};
use crate::support::{MASTER_KEY, TestApp, database as test_database, insert, owners, settings};

/// The protocol message that requests a commit.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// What the proxy does to the next commits.
#[derive(Default)]
struct Plan {
    /// This many commits are passed on; the proxy drops their answers and closes the connection.
    unanswered: AtomicUsize,
    /// This many commits are dropped themselves.
    unheard: AtomicUsize,
    /// The number of commits cut off so far.
    cut: AtomicUsize,
}

fn take(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Relays everything between a client and PostgreSQL, except the commits that are to be cut off.
async fn relay(mut client: TcpStream, mut server: Box<dyn Stream>, plan: Arc<Plan>) {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                if asked[..count].ends_with(COMMIT) {
                    if take(&plan.unheard) {
                        plan.cut.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    if take(&plan.unanswered) {
                        server.write_all(&asked[..count]).await.unwrap();
                        // The first byte of the answer arrives when the commit is done.
                        assert!(server.read(&mut answered).await.unwrap() > 0);
                        plan.cut.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                }
                if server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A server that reaches its database through such a proxy, and a pool that bypasses the proxy.
async fn behind_proxy() -> (TestApp, Arc<Plan>, PgPool) {
    let database = Arc::new(test_database().await);
    let options = DatabaseUrl::parse(database.url()).unwrap().options;
    let plan = Arc::new(Plan::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (socket, place) = (options.get_socket().cloned(), (options.get_host().to_owned(), options.get_port()));
    tokio::spawn({
        let plan = Arc::clone(&plan);
        async move {
            while let Ok((client, _)) = listener.accept().await {
                let server: Box<dyn Stream> = match &socket {
                    Some(directory) => {
                        let path = directory.join(format!(".s.PGSQL.{}", place.1));
                        Box::new(UnixStream::connect(path).await.unwrap())
                    }
                    None => Box::new(TcpStream::connect(&place).await.unwrap()),
                };
                tokio::spawn(relay(client, server, Arc::clone(&plan)));
            }
        }
    });
    let url = format!(
        "postgresql://{}@{address}/{}?sslmode=disable",
        options.get_username(),
        options.get_database().unwrap()
    );
    let limits = PoolLimits { connections: 3, wait: Duration::from_secs(10) };
    let direct = database::pool(database.url(), limits).unwrap();
    owners::create(&direct, 6).await;
    let pool = database::pool(&url, limits).unwrap();
    (TestApp::on_pool(database, pool, settings(), Clock::system()).await, plan, direct)
}

async fn book(app: &TestApp, records: Value) -> (u16, Value) {
    let answer = app.post("/spend/usage", MASTER_KEY, &json!({ "records": records })).await;
    (answer.status.as_u16(), answer.json())
}

fn record(key: usize, id: Option<&str>, cost: f64) -> Value {
    let mut record = json!({"api_key": owners::key(key), "model": "gpt-4o", "cost": cost, "tags": ["t"],
                            "prompt_tokens": 10, "start_time": "2026-03-01T12:00:00Z"});
    if let Some(id) = id {
        record["idempotency_key"] = json!(id);
    }
    record
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_recorded_once_and_said_to_be() {
    let (app, plan, direct) = behind_proxy().await;
    for (name, count) in [("unanswered", &plan.unanswered), ("unheard", &plan.unheard)] {
        let before = rows(&direct).await;
        let (id, cut) = (format!("call-{name}"), plan.cut.load(Ordering::SeqCst));
        count.store(1, Ordering::SeqCst);
        let records = json!([
            record(0, Some(&id), 0.25),
            record(1, None, 0.5),
            record(2, None, 0.5),
            record(0, Some(&id), 0.25),
            record(3, Some(&id), 4.0)
        ]);
        let (status, answer) = book(&app, records.clone()).await;
        assert_eq!(plan.cut.load(Ordering::SeqCst), cut + 1, "the commit was cut off");
        assert_eq!(status, 200, "{name}: {answer}");
        let results = answer["results"].as_array().unwrap();
        let said: Vec<(&str, &Value)> =
            results.iter().map(|result| (result["status"].as_str().unwrap(), &result["spend"])).collect();
        let expected = [
            ("recorded", &json!(0.25)),
            ("recorded", &json!(0.5)),
            ("recorded", &json!(0.5)),
            ("duplicate", &json!(0.25)),
            ("error", &Value::Null),
        ];
        assert_eq!(said, expected, "{name}");
        assert_eq!((&results[0]["request_id"], &results[4]["code"]), (&json!(id), &json!(409)), "{name}");
        assert_eq!(rows(&direct).await, before + 3, "{name}");
        for result in &results[..3] {
            let found: (f64, i64) =
                sqlx::query_as(r#"SELECT sum(spend), count(*) FROM "LiteLLM_SpendLogs" WHERE request_id = $1"#)
                    .bind(result["request_id"].as_str().unwrap())
                    .fetch_one(&direct)
                    .await
                    .unwrap();
            assert_eq!((json!(found.0), found.1), (result["spend"].clone(), 1), "{name}");
        }
        assert_consistent(&direct).await;
        // If it is sent again, a record with an id is a duplicate.
        let (_, again) = book(&app, json!([records[0]])).await;
        assert_eq!((&again["duplicate"], &again["results"][0]["request_id"]), (&json!(1), &json!(id)), "{name}");
        assert_eq!(rows(&direct).await, before + 3, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_somebody_else_is_not_taken_for_what_was_lost() {
    let (app, plan, direct) = behind_proxy().await;
    // Rows that LiteLLM or another feed wrote under the same ids: with another key, and at the same cost.
    let foreign = |id: &str, key: usize| {
        json!({"request_id": id, "call_type": "acompletion", "api_key": hash_key(&owners::key(key)), "spend": 0.25,
               "total_tokens": 10, "prompt_tokens": 10, "completion_tokens": 0, "startTime": "2026-03-01T12:00:00",
               "endTime": "2026-03-01T12:00:00", "model": "gpt-4o", "user": format!("user-{key}"), "status": "success"})
    };
    let rows_before = json!([foreign("call-1", 4), foreign("call-2", 4)]);
    insert(&mut direct.acquire().await.unwrap(), "LiteLLM_SpendLogs", &rows_before).await;
    plan.unanswered.store(1, Ordering::SeqCst);
    let records =
        json!([record(0, Some("call-1"), 0.25), record(1, Some("call-2"), 0.25), record(0, Some("call-3"), 0.25)]);
    let (status, answer) = book(&app, records.clone()).await;
    assert_eq!((status, plan.cut.load(Ordering::SeqCst)), (200, 1), "{answer}");
    assert_eq!((&answer["recorded"], &answer["error"]), (&json!(3), &json!(0)), "{answer}");
    for (place, key) in [(0, 0), (1, 1)] {
        let id = answer["results"][place]["request_id"].as_str().unwrap();
        assert!(id.starts_with(&format!("call-{}~", place + 1)), "{answer}");
        let owner: String = sqlx::query_scalar(r#"SELECT api_key FROM "LiteLLM_SpendLogs" WHERE request_id = $1"#)
            .bind(id)
            .fetch_one(&direct)
            .await
            .unwrap();
        assert_eq!(owner, hash_key(&owners::key(key)));
    }
    assert_eq!(answer["results"][2]["request_id"], "call-3");
    assert_eq!(rows(&direct).await, 5);
    let spent = async |key: usize| -> f64 {
        sqlx::query_scalar(r#"SELECT spend FROM "LiteLLM_VerificationToken" WHERE token = $1"#)
            .bind(hash_key(&owners::key(key)))
            .fetch_one(&direct)
            .await
            .unwrap()
    };
    assert_eq!((spent(0).await, spent(1).await, spent(4).await), (0.5, 0.25, 0.0));
    let (_, again) = book(&app, records).await;
    assert_eq!((&again["duplicate"], rows(&direct).await), (&json!(3), 5), "{again}");
    assert_eq!((spent(0).await, spent(1).await), (0.5, 0.25));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_answer_comes_at_all_nobody_is_told_that_it_was_or_was_not_booked() {
    let (app, plan, direct) = behind_proxy().await;
    plan.unanswered.store(usize::MAX, Ordering::SeqCst);
    let records = json!([record(0, Some("call-1"), 0.25), record(1, Some("call-2"), 0.5)]);
    let (status, answer) = book(&app, records.clone()).await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("safe to send the same records again"), "{answer}");
    assert!(plan.cut.load(Ordering::SeqCst) > 1, "it was tried again");
    assert_eq!(rows(&direct).await, 2, "the first commit stands");
    plan.unanswered.store(0, Ordering::SeqCst);
    let (status, answer) = book(&app, records).await;
    assert_eq!((status, &answer["duplicate"], &answer["recorded"]), (200, &json!(2), &json!(0)), "{answer}");
    assert_eq!(rows(&direct).await, 2);
    assert_consistent(&direct).await;
}
