//! S3's protocol over HTTP that fails, stalls, breaks off and lies when it is told to.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::{TempDir, tempdir};
use tokio::net::TcpListener;

/// The URL of the archive in the bucket.
pub(crate) const ARCHIVE_URL: &str = "s3://bucket/some/place";

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, BoxError>;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
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

/// S3 in a directory.
pub(crate) struct Store {
    root: TempDir,
    url: String,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl Store {
    /// Starts the store, with an empty bucket.
    pub(crate) async fn start() -> Self {
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

    /// The directory of the archive.
    pub(crate) fn bucket(&self) -> std::path::PathBuf {
        self.place("some/place")
    }

    /// The directory of the objects whose names begin with a path.
    pub(crate) fn place(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join("bucket").join(path)
    }

    /// The settings with which an archive opens the bucket.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let settings = [
            ("AWS_ENDPOINT_URL", self.url.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ];
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// From now on, some requests go wrong: this many with this method to paths that contain the text.
    pub(crate) fn fail(&self, method: Method, path: &'static str, fault: Fault, times: usize) {
        self.rules.lock().unwrap().push(Rule { method, path, fault, times });
    }

    /// From now on, nothing goes wrong.
    pub(crate) fn heal(&self) {
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
