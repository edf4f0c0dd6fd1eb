//! An archive behind S3's protocol, over HTTP that fails, stalls, breaks off and lies.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use litespend_archive::{Archive, Error, IdKind, Options, Query};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use tokio::net::TcpListener;

use crate::support::{day, flip, read, rows, small, write};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, BoxError>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Answers 500 without doing anything.
    Fails,
    /// Answers after ten seconds.
    Stalls,
    /// Ends the answer in the middle.
    BreaksOff,
    /// Sends half of the answer, and then nothing for ten seconds.
    Drips,
    /// Does what is asked, and cuts the connection before the answer.
    LosesTheAnswer,
    /// Changes a byte of the answer.
    Lies,
}

/// What goes wrong with requests of a method to paths that contain a text, and how often.
struct Rule {
    method: Method,
    path: &'static str,
    fault: Fault,
    times: usize,
}

struct Store {
    root: TempDir,
    url: String,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl Store {
    async fn start() -> Self {
        let root = tempdir().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("access", "hunter2"));
        let service = service.build();
        let rules: Arc<Mutex<Vec<Rule>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let faults = Arc::clone(&rules);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, faults) = (service.clone(), Arc::clone(&faults));
                let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&faults), request));
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move { connection.serve_connection(TokioIo::new(socket), answer).await });
            }
        });
        Self { root, url, rules }
    }

    fn bucket(&self) -> std::path::PathBuf {
        self.root.path().join("bucket/some/place")
    }

    async fn open(&self, options: Options) -> Archive {
        let settings = [
            ("AWS_ENDPOINT_URL", self.url.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = Options { settings, ..options };
        assert!(!format!("{options:?}").contains("hunter2"));
        Archive::open("s3://bucket/some/place", options).await.unwrap()
    }

    fn fail(&self, method: Method, path: &'static str, fault: Fault, times: usize) {
        self.rules.lock().unwrap().push(Rule { method, path, fault, times });
    }

    fn heal(&self) {
        self.rules.lock().unwrap().clear();
    }
}

async fn answer(
    service: S3Service,
    rules: Arc<Mutex<Vec<Rule>>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let fault = {
        let mut rules = rules.lock().unwrap();
        let path = request.uri().path();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.times > 0 && rule.method == *request.method() && path.contains(rule.path));
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        })
    };
    match fault {
        Some(Fault::Fails) => {
            let body = Full::new(Bytes::from_static(b"broken")).map_err(|never: Infallible| match never {}).boxed();
            return Ok(Response::builder().status(500).body(body).unwrap());
        }
        Some(Fault::Stalls) => tokio::time::sleep(Duration::from_secs(10)).await,
        _ => {}
    }
    let (head, body) =
        service.call(request.map(s3s::Body::from)).await.map_err(|error| format!("{error:?}"))?.into_parts();
    let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    let whole = |bytes: Bytes| Full::new(bytes).map_err(|never: Infallible| match never {}).boxed();
    match fault {
        Some(Fault::LosesTheAnswer) => Err("cut".into()),
        Some(Fault::BreaksOff) => {
            let half = Frame::data(bytes.slice(..bytes.len() / 2));
            let frames = stream::iter([Ok(half), Err::<Frame<Bytes>, BoxError>("cut".into())]);
            Ok(Response::from_parts(head, BodyExt::boxed(StreamBody::new(frames))))
        }
        Some(Fault::Drips) => {
            let half = Frame::data(bytes.slice(..bytes.len() / 2));
            let (sender, rest) = tokio::sync::oneshot::channel::<()>();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                drop(sender);
            });
            let rest = stream::once(async move {
                let _ = rest.await;
                Err::<Frame<Bytes>, BoxError>("cut".into())
            });
            let frames = futures_util::StreamExt::chain(stream::iter([Ok(half)]), rest);
            Ok(Response::from_parts(head, BodyExt::boxed(StreamBody::new(frames))))
        }
        Some(Fault::Lies) => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Ok(Response::from_parts(head, whole(Bytes::from(bytes))))
        }
        _ => Ok(Response::from_parts(head, whole(bytes))),
    }
}

fn brief() -> Options {
    Options { time_limit: Duration::from_secs(3), ..small() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_does_what_a_directory_does() {
    let store = Store::start().await;
    let archive = store.open(small()).await;
    archive.probe().await.unwrap();
    let written = rows(day(1), 50);
    let manifest = write(&archive, day(1), None, &written[..30]).await;
    let manifest = write(&archive, day(1), Some(&manifest), &written[30..]).await;
    archive.remove_superseded(day(1)).await.unwrap();
    archive.compact_month(day(1)).await.unwrap();
    let archive = store.open(small()).await;
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
    let archive = store.open(Options::default()).await;
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
    let archive = store.open(brief()).await;
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
        assert_eq!(*store.open(brief()).await.manifest(day(number)).await.unwrap().unwrap(), *manifest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_store_is_tried_again_and_then_named() {
    let store = Store::start().await;
    let archive = store.open(brief()).await;
    let written = rows(day(1), 30);
    for method in [Method::PUT, Method::GET, Method::HEAD] {
        store.fail(method, "", Fault::Fails, 2);
    }
    write(&archive, day(1), None, &written).await;
    store.heal();
    for fault in [Fault::Fails, Fault::Stalls, Fault::Drips] {
        let archive = store.open(brief()).await;
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
    write(&store.open(brief()).await, day(1), None, &written).await;
    for times in [1, 1_000] {
        let archive = store.open(brief()).await;
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
    let manifest = write(&store.open(brief()).await, day(1), None, &written).await;
    let file = manifest.parts[0].object.path.clone();
    let archive = store.open(brief()).await;
    store.fail(Method::GET, ".parquet", Fault::Lies, 1);
    assert_eq!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap(), written);
    assert!(archive.damaged().is_empty());
    store.heal();
    // A file that is wrong in the store is wrong every time.
    let path: &Path = &store.bucket().join(&file);
    flip(&path.to_path_buf(), 1_000);
    let archive = store.open(brief()).await;
    let error = read(&archive, &[(day(1), 1)], Query::default()).await.unwrap_err();
    assert_eq!(error, Error::Damaged { path: file.clone() });
    flip(&path.to_path_buf(), 1_000);
    assert_eq!(store.open(brief()).await.damaged(), std::slice::from_ref(&file));
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
