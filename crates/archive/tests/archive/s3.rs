//! An archive behind S3's protocol, over HTTP that fails, stalls, breaks off and lies.

use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use litespend_archive::{Archive, Error, IdKind, Options, Query};
use serde_json::{Value, json};

use crate::s3_store::{ARCHIVE_URL, Fault, Store};
use crate::support::{day, flip, read, rows, small, write};

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
