//! An archive behind S3's protocol, over HTTP that fails, stalls, breaks off and lies.

use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use litespend_archive::{Archive, Engine, Error, IdKind, Options, Query};
use serde_json::{Value, json};

use crate::s3_store::{ARCHIVE_URL, Fault, Store};
use crate::support::{day, files, flip, read, rows, small, write, write_hidden};

async fn open(store: &Store, options: Options) -> Archive {
    let options = Options { settings: store.settings(), ..options };
    assert!(!format!("{options:?}").contains("hunter2"));
    Archive::open(ARCHIVE_URL, options).await.unwrap()
}

fn brief() -> Options {
    Options { time_limit: Duration::from_secs(3), ..small() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_does_what_a_directory_does() {
    let store = Store::start().await;
    let archive = open(&store, small()).await;
    archive.probe().await.unwrap();
    let written = rows(day(1), 50);
    let manifest = write(&archive, day(1), None, &written[..30]).await;
    let manifest = write(&archive, day(1), Some(&manifest), &written[30..]).await;
    archive.remove_superseded(day(1)).await.unwrap();
    archive.compact_month(day(1)).await.unwrap();
    let archive = open(&store, small()).await;
    let days = archive.days().await.unwrap();
    assert_eq!(days, [(day(1), 2)]);
    assert_eq!(read(&archive, &days, Query::default()).await.unwrap(), written);
    assert_eq!(archive.verify_day(day(1)).await.unwrap().as_deref(), Some(&manifest));
    assert_eq!(archive.find(IdKind::RequestId, &written[7].request_id, &days).await.unwrap(), [day(1)]);
    assert_eq!(archive.row(&written[40].request_id, &days).await.unwrap().as_ref(), Some(&written[40]));
    let lost = archive.write_day(day(1), None, true).await.unwrap().finish().await.unwrap();
    write(&archive, day(1), Some(&manifest), &[]).await;
    assert!(matches!(archive.commit(&lost, Value::Null).await, Err(Error::Exists { .. })));
    archive.delete_day(day(1)).await.unwrap();
    assert!(archive.days().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_where_the_url_says() {
    let store = Store::start().await;
    for (number, (url, path, encoded)) in (1..).zip([
        ("s3://bucket", "", ""),
        ("s3://bucket/my archive/ü~[1]+2", "my archive/ü~[1]+2", "my%20archive/%C3%BC~%5B1%5D%2B2"),
        ("s3://bucket/100%25/a%2520b/", "100%/a%20b", "100%25/a%2520b"),
    ]) {
        let options = Options { settings: store.settings(), ..small() };
        let archive = Archive::open(url, options).await.unwrap();
        let written = rows(day(number), 5);
        write(&archive, day(number), None, &written).await;
        assert!(store.place(path).join(format!("spend_logs/day={}", day(number))).is_dir(), "{url}");
        let days = archive.days().await.unwrap();
        assert_eq!(days, [(day(number), 1)], "{url}");
        assert_eq!(read(&archive, &days, Query::default()).await.unwrap(), written, "{url}");
        // Other engines are told the same, at the address at which litespend asks.
        let schema = archive.schema(Engine::ClickHouse);
        let endpoint = &store.settings()[0].1;
        let place = format!("s3('{endpoint}/bucket/{encoded}").trim_end_matches('/').to_owned();
        assert!(schema.contains(&format!("{place}/spend_logs/day=*/*.parquet'")), "{schema}");
        assert!(!schema.contains("hunter2"), "{schema}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_allowed_in_every_word_for_yes() {
    let store = Store::start().await;
    for (word, is_allowed) in [("TRUE", true), ("1", true), ("on", true), ("false", false), ("0", false)] {
        let mut settings = store.settings();
        settings.push(("AWS_ALLOW_HTTP".to_owned(), word.to_owned()));
        let options = Options { settings, retries: 0, ..brief() };
        assert_eq!(Archive::open(ARCHIVE_URL, options).await.is_ok(), is_allowed, "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_are_uploaded_in_parts() {
    let store = Store::start().await;
    let archive = open(&store, Options::default()).await;
    let mut written = rows(day(1), 3_000);
    // Text that does not compress.
    let mut state = 1u64;
    for row in &mut written {
        let mut text = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{state:016x}")
        };
        row.response = Some((0..600).map(|_| text()).collect());
    }
    let manifest = write(&archive, day(1), None, &written).await;
    assert!(manifest.parts[0].object.bytes > 10_000_000, "{}", manifest.parts[0].object.bytes);
    assert!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap() == written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_manifest_is_no_conflict() {
    let store = Store::start().await;
    let archive = open(&store, brief()).await;
    for times in [1, 100] {
        let number = if times == 1 { 1 } else { 2 };
        let mut writer = archive.write_day(day(number), None, true).await.unwrap();
        for row in rows(day(number), 5) {
            writer.push(&row.as_row()).await.unwrap();
        }
        let prepared = writer.finish().await.unwrap();
        store.fail(Method::PUT, "_manifest", Fault::LosesTheAnswer, times);
        let manifest = archive.commit(&prepared, json!({"sum": 1})).await.unwrap();
        store.heal();
        assert_eq!(manifest.revision, 1);
        assert_eq!(*open(&store, brief()).await.manifest(day(number)).await.unwrap().unwrap(), *manifest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_end_of_an_attempt_is_no_failure() {
    let store = Store::start().await;
    let archive = open(&store, brief()).await;
    // Its process ended before it committed.
    let mut attempt = archive.write_day(day(1), None, true).await.unwrap();
    attempt.push(&rows(day(1), 1)[0].as_row()).await.unwrap();
    drop(attempt.finish().await.unwrap());
    store.fail(Method::PUT, "_manifest", Fault::LosesTheAnswer, 1);
    let manifest = write(&open(&store, brief()).await, day(1), None, &rows(day(1), 5)).await;
    assert_eq!((manifest.revision, manifest.sums.rows), (2, 5));
    // While it can't be written at all, nothing goes on.
    let mut attempt = archive.write_day(day(2), None, true).await.unwrap();
    attempt.push(&rows(day(2), 1)[0].as_row()).await.unwrap();
    drop(attempt.finish().await.unwrap());
    store.fail(Method::PUT, "_manifest", Fault::Fails, usize::MAX);
    let outcome = open(&store, brief()).await.write_day(day(2), None, true).await.map(drop);
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_store_is_tried_again_and_then_named() {
    let store = Store::start().await;
    let archive = open(&store, brief()).await;
    let written = rows(day(1), 30);
    for method in [Method::PUT, Method::GET, Method::HEAD] {
        store.fail(method, "", Fault::Fails, 2);
    }
    write(&archive, day(1), None, &written).await;
    store.heal();
    for fault in [Fault::Fails, Fault::Stalls, Fault::Drips] {
        let archive = open(&store, brief()).await;
        store.fail(Method::GET, "", fault, 1_000);
        let start = Instant::now();
        let error = read(&archive, &[(day(1), 1)], Query::default()).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert!(!error.to_string().contains("hunter2"));
        assert!(start.elapsed() < Duration::from_secs(8), "{fault:?}: {:?}", start.elapsed());
        store.heal();
        assert_eq!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap(), written);
        assert!(archive.damaged().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_says_nothing_about_the_object() {
    let store = Store::start().await;
    let written = rows(day(1), 30);
    write(&open(&store, brief()).await, day(1), None, &written).await;
    for times in [1, 1_000] {
        let archive = open(&store, brief()).await;
        store.fail(Method::GET, ".parquet", Fault::BreaksOff, times);
        let outcome = read(&archive, &[(day(1), 1)], Query::default()).await;
        match times {
            1 => assert_eq!(outcome.unwrap(), written),
            _ => assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}"),
        }
        assert!(archive.damaged().is_empty());
        store.heal();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lies_once_is_asked_again() {
    let store = Store::start().await;
    let written = rows(day(1), 15);
    let manifest = write(&open(&store, brief()).await, day(1), None, &written).await;
    let file = manifest.parts[0].object.path.clone();
    let archive = open(&store, brief()).await;
    store.fail(Method::GET, ".parquet", Fault::Lies, 1);
    assert_eq!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap(), written);
    assert!(archive.damaged().is_empty());
    store.heal();
    // A file that is wrong in the store is wrong every time.
    let path: &Path = &store.bucket().join(&file);
    flip(&path.to_path_buf(), 1_000);
    let archive = open(&store, brief()).await;
    let error = read(&archive, &[(day(1), 1)], Query::default()).await.unwrap_err();
    assert_eq!(error, Error::Damaged { path: file.clone() });
    flip(&path.to_path_buf(), 1_000);
    assert_eq!(open(&store, brief()).await.damaged(), std::slice::from_ref(&file));
    assert!(read(&archive, &[(day(1), 1)], Query::default()).await.is_err());
    archive.clear_damage(&file).await.unwrap();
    assert_eq!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_is_found_out_quickly() {
    let options = Options {
        settings: [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        ..brief()
    };
    let start = Instant::now();
    let error = Archive::open("s3://bucket/place", options).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

fn keys(store: &Store) -> Vec<String> {
    let keys = files(&store.bucket()).into_iter();
    keys.filter(|key| key.contains(".parquet")).map(|key| key.rsplit('/').next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_object_store_gets_its_name_as_a_whole_or_not_at_all() {
    let store = Store::start().await;
    let archive = open(&store, Options { retries: 0, ..brief() }).await;
    let written = rows(day(1), 30);
    let manifest = write_hidden(&archive, day(1), None, &written).await;
    let shown: Vec<String> = manifest.parts.iter().map(|part| part.object.name().to_owned()).collect();
    let unseen: Vec<String> = shown.iter().map(|name| format!("_{name}.hidden")).collect();
    let reads = async |step: &str| {
        let archive = open(&store, brief()).await;
        assert!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap() == written, "{step}");
        assert!(archive.verify_day(day(1)).await.unwrap().is_some() && archive.damaged().is_empty(), "{step}");
    };
    assert_eq!(keys(&store), unseen);
    reads("hidden").await;
    for (method, path, fault) in [
        (Method::PUT, ".parquet", Fault::Fails),
        (Method::PUT, ".parquet", Fault::LosesTheAnswer),
        (Method::GET, ".parquet", Fault::Lies),
        (Method::GET, ".parquet", Fault::BreaksOff),
        // Objects are deleted by a request that lists them.
        (Method::POST, "", Fault::Fails),
    ] {
        let step = format!("{method} {fault:?}");
        store.fail(method, path, fault, usize::MAX);
        assert!(archive.publish(day(1)).await.is_err(), "{step}");
        store.heal();
        // Whatever happened, each file can be read, and none that can be seen is not what was written.
        for key in keys(&store).into_iter().filter(|key| shown.contains(key)) {
            let directory = store.bucket().join("spend_logs/day=2026-10-01");
            let part = manifest.parts.iter().find(|part| part.object.name() == key).unwrap();
            assert_eq!(std::fs::metadata(directory.join(key)).unwrap().len(), part.object.bytes, "{step}");
        }
        reads(&step).await;
        archive.publish(day(1)).await.unwrap();
        assert_eq!(keys(&store), shown, "{step}");
        reads("published").await;
        archive.hide(day(1)).await.unwrap();
        assert_eq!(keys(&store), unseen, "{step}");
        reads("hidden").await;
    }
    // What another program left under the name is not taken for the file.
    let foreign = store.bucket().join("spend_logs/day=2026-10-01").join(&shown[0]);
    std::fs::write(&foreign, vec![7; manifest.parts[0].object.bytes as usize]).unwrap();
    archive.publish(day(1)).await.unwrap();
    assert_eq!(keys(&store), shown);
    reads("published").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_used_when_it_is_back() {
    let store = Store::start().await;
    let written = rows(day(1), 30);
    let manifest = write(&open(&store, brief()).await, day(1), None, &written).await;
    let file = manifest.parts[0].object.path.clone();
    let path = store.bucket().join(&file);
    flip(&path, 1_000);
    assert!(read(&open(&store, brief()).await, &[(day(1), 1)], Query::default()).await.is_err());
    flip(&path, 1_000);
    // It was set aside, which a process must not forget that cannot ask.
    let at = || Archive::at(ARCHIVE_URL, Options { settings: store.settings(), ..brief() }).unwrap();
    let archive = at();
    store.fail(Method::GET, "", Fault::Stalls, usize::MAX);
    let asked = Instant::now();
    let days = [(day(1), 1)];
    let reads = (0..8).map(|_| read(&archive, &days, Query::default()));
    for outcome in futures_util::future::join_all(reads).await {
        assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    }
    assert!(matches!(archive.check(true).await, Err(Error::Unavailable(_))));
    assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
    store.heal();
    let damaged = read(&archive, &days, Query::default()).await;
    assert_eq!(damaged.unwrap_err(), Error::Damaged { path: file.clone() });
    archive.clear_damage(&file).await.unwrap();
    assert_eq!(read(&archive, &days, Query::default()).await.unwrap(), written);
    // Nobody has found out that it can be written; that comes before the first row.
    let archive = at();
    store.fail(Method::PUT, "_probe", Fault::Fails, usize::MAX);
    assert!(matches!(archive.write_day(day(2), None, true).await.map(drop), Err(Error::Unavailable(_))));
    store.heal();
    write(&archive, day(2), None, &written[..0]).await;
    assert!(!files(&store.bucket()).iter().any(|file| file.contains("_probe")));
    let mut settings = store.settings();
    settings.push(("AWS_CONDITIONAL_PUT".to_owned(), "disabled".to_owned()));
    let archive = Archive::at(ARCHIVE_URL, Options { settings, ..brief() }).unwrap();
    let refused = archive.write_day(day(3), None, true).await.map(drop);
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_from_a_store_that_is_away() {
    let store = Store::start().await;
    let mut settings = store.settings();
    settings.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong".to_owned()));
    let archive = Archive::at(ARCHIVE_URL, Options { settings, ..brief() }).unwrap();
    let refused = archive.check(false).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    // Other stores say so in other ways.
    for (status, is_refusal) in [
        ("400 Bad Request", true),
        ("405 Method Not Allowed", true),
        ("501 Not Implemented", true),
        ("503 Slow Down", false),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut settings = store.settings();
        settings.push(("AWS_ENDPOINT_URL".to_owned(), format!("http://{}", listener.local_addr().unwrap())));
        let answering = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut request).await;
                let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
                let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, answer.as_bytes()).await;
            }
        });
        let archive = Archive::at(ARCHIVE_URL, Options { settings, ..brief() }).unwrap();
        let outcome = archive.check(false).await;
        answering.abort();
        assert_eq!(matches!(outcome, Err(Error::Refused(_))), is_refusal, "{status}: {outcome:?}");
        assert_eq!(matches!(outcome, Err(Error::Unavailable(_))), !is_refusal, "{status}: {outcome:?}");
    }
}
