//! Times forwarding to an upstream, next to requests sent directly to the same upstream. Run by `./dev bench upstream`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a measuring program fails by panicking"
)]

#[path = "common/figures.rs"]
mod figures;
#[path = "common/server.rs"]
mod server;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use figures::percentile;
use futures_util::{StreamExt, stream};
use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{LocalPostgres, LocalPostgresOptions};
use server::Server;

/// Requests of each kind, sent one after another.
const REQUESTS: usize = 5_000;

/// Streams at the same time.
const STREAMS: usize = 1_000;

/// Events of a stream, and the pause between two of them.
const EVENTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(250);

/// An upstream with a small answer, and with a stream as slow as a model that generates text.
fn stub() -> Router {
    Router::new()
        .route("/v1/models", get(|| async { r#"{"data":[{"id":"gpt-4o","object":"model"}],"object":"list"}"# }))
        .route(
            "/v1/slow",
            get(|| async {
                let events = stream::iter(0..EVENTS).then(|number| async move {
                    tokio::time::sleep(PAUSE).await;
                    Ok::<_, Infallible>(Bytes::from(format!("data: {{\"token\":{number}}}\n\n")))
                });
                ([("content-type", "text/event-stream")], Body::from_stream(events))
            }),
        )
}

/// Milliseconds of one request. The connection is used again for the next one.
async fn ask(client: &reqwest::Client, url: &str) -> f64 {
    let started = Instant::now();
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{url}");
    answer.bytes().await.unwrap();
    started.elapsed().as_secs_f64() * 1000.0
}

/// The longest pause before an event of a stream, in milliseconds. Every event must arrive.
async fn follow(client: &reqwest::Client, url: &str) -> f64 {
    let mut pieces = client.get(url).send().await.unwrap().bytes_stream();
    let (mut text, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    while let Some(piece) = pieces.next().await {
        text.extend_from_slice(&piece.unwrap());
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let expected: String = (0..EVENTS).map(|number| format!("data: {{\"token\":{number}}}\n\n")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    longest.as_secs_f64() * 1000.0
}

async fn measure(url: &str) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, stub()).await });
    let server = Server::start(&[("DATABASE_URL", url)], &["--upstream", &upstream]);
    let client = reqwest::Client::new();
    let (direct, passed) = (format!("{upstream}/v1/models"), format!("{}/v1/models", server.address));
    let (mut directly, mut through) = (Vec::new(), Vec::new());
    for number in 0..REQUESTS + 200 {
        let times = (ask(&client, &direct).await, ask(&client, &passed).await);
        // The first requests are a warm-up.
        if number >= 200 {
            directly.push(times.0);
            through.push(times.1);
        }
    }
    println!("| {REQUESTS} small requests, one after the other | median, ms | p99, ms |");
    println!("|---|---:|---:|");
    for (name, times) in [("the upstream directly", &mut directly), ("through litespend", &mut through)] {
        println!("| {name} | {:.3} | {:.3} |", percentile(times, 0.5), percentile(times, 0.99));
    }
    println!("\nadded at the median: {:.3} ms", percentile(&mut through, 0.5) - percentile(&mut directly, 0.5));

    let before = server.memory("VmRSS");
    let slow = format!("{}/v1/slow", server.address);
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (client, slow) = (client.clone(), slow.clone());
            tokio::spawn(async move { follow(&client, &slow).await })
        })
        .collect();
    let mut pauses = Vec::new();
    for stream in streams {
        pauses.push(stream.await.expect("every event of every stream arrives"));
    }
    println!(
        "{STREAMS} streams at once of {EVENTS} events, {} ms apart: all complete, longest pause p99 {:.0} ms; resident memory {before:.1} MB before, {:.1} MB at most",
        PAUSE.as_millis(),
        percentile(&mut pauses, 0.99),
        server.memory("VmHWM"),
    );
}

fn main() {
    let home = tempfile::Builder::new().prefix("litespend-bench-").tempdir_in("/tmp").unwrap();
    let options = LocalPostgresOptions { home: Some(home.path().to_owned()), ..local_postgres_options() };
    let postgres = LocalPostgres::start(options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(postgres.url()));
    postgres.stop().unwrap();
}
