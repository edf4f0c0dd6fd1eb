//! An archive in an object store that is reached over TLS: whose certificates are accepted.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificates::{authority, of_localhost};
use crate::rollups::add;
use crate::support::{Directory, MASTER_KEY, Run, Server, database, program, run};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What came to a store.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    /// Connections that did not begin as TLS does.
    in_the_clear: AtomicUsize,
    requests: AtomicUsize,
}

impl Seen {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn in_the_clear(&self) -> usize {
        self.in_the_clear.load(Ordering::Relaxed)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// S3 in a directory, on 127.0.0.1 and over TLS.
struct Store {
    port: u16,
    seen: Arc<Seen>,
}

impl Store {
    /// Starts a store that shows the certificate `NAME.pem`.
    async fn start(root: &Path, certificates: &Path, name: &str) -> Self {
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        service.set_auth(SimpleAuth::from_single("access", "hunter2"));
        let service = service.build();
        let chain = CertificateDer::from_pem_file(certificates.join(format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.join(format!("{name}.key"))).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![chain], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Seen> = Arc::default();
        let counted = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, acceptor, seen) = (service.clone(), acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    seen.connections.fetch_add(1, Ordering::Relaxed);
                    let mut first = [0];
                    let read = socket.peek(&mut first).await;
                    // The type of the record with which a handshake begins.
                    if read.is_ok_and(|bytes| bytes == 1) && first != [22] {
                        seen.in_the_clear.fetch_add(1, Ordering::Relaxed);
                    }
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let respond = service_fn(move |request| {
                        seen.requests.fetch_add(1, Ordering::Relaxed);
                        answer(service.clone(), request)
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), respond).await;
                });
            }
        });
        Self { port, seen }
    }

    /// A command that has the store's address under a name of this machine, and the file of authorities.
    fn command(&self, url: &str, host: &str, authorities: Option<&Path>) -> Command {
        let mut command = program();
        let endpoint = format!("https://{host}:{}", self.port);
        for (name, value) in [
            ("DATABASE_URL", url),
            ("LITELLM_MASTER_KEY", MASTER_KEY),
            ("LITESPEND_ARCHIVE_URL", "s3://bucket/place"),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            // Not even then is a store that is named with https asked in the clear.
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ] {
            command.env(name, value);
        }
        if let Some(file) = authorities {
            command.env("AWS_CA_BUNDLE", file);
        }
        command
    }
}

async fn answer(service: S3Service, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    let answer = service.call(request.map(s3s::Body::from)).await.map_err(|error| format!("{error:?}"))?;
    let (head, body) = answer.into_parts();
    let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok(Response::from_parts(head, Full::new(bytes)))
}

fn run_to_its_end(command: &mut Command, arguments: &[&str]) -> Run {
    tokio::task::block_in_place(|| run(command.args(arguments)))
}

const CLOSE: &[&str] = &["books", "close", "--through", "2026-03-02"];

/// A directory with an empty bucket in `store`, and with the certificates `server` and `expired` of the authority
/// `authority`.
fn home() -> Directory {
    let home = Directory::new();
    std::fs::create_dir_all(home.path().join("store/bucket")).unwrap();
    authority(home.path(), "authority");
    of_localhost(home.path(), "server", "2");
    of_localhost(home.path(), "expired", "0");
    home
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_a_certificate_of_a_private_authority_keeps_an_archive_if_the_authority_is_named() {
    let (database, home) = (database().await, home());
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    add(&mut connection, "r", 20).await;
    let store = Store::start(&home.path().join("store"), home.path(), "server").await;
    // A bundle may name several.
    authority(home.path(), "stranger");
    let bundle = ["stranger.pem", "authority.pem"].map(|name| std::fs::read_to_string(home.path().join(name)).unwrap());
    let bundle = home.file("bundle.pem", &format!("# authorities of this house\n{}", bundle.concat()));
    let command = || store.command(database.url(), "localhost", Some(&bundle));
    let said = run_to_its_end(&mut command(), CLOSE);
    assert!(said.code == Some(0) && said.stdout.contains("2 days closed, 40 rows"), "{said:?}");
    let said = run_to_its_end(&mut command(), &["books", "prune", "--keep-days", "0"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let left = r#"SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-03'"#;
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&mut connection).await.unwrap(), 0);
    let server = tokio::task::block_in_place(|| Server::start(command(), &[]));
    let rows: Vec<Value> = server.get("/spend/logs?request_id=r-1-7").await.json().await.unwrap();
    assert!(rows.len() == 1 && rows[0]["total_tokens"] == 7, "{rows:?}\n{}", server.log());
    assert!(store.seen.requests() > 0);
    assert_eq!(store.seen.in_the_clear(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_certificate_is_not_accepted_is_refused_at_once_and_gets_nothing() {
    let (database, home) = (database().await, home());
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    add(&mut connection, "r", 20).await;
    let store = Store::start(&home.path().join("store"), home.path(), "server").await;
    authority(home.path(), "stranger");
    let whole = std::fs::read_to_string(home.path().join("authority.pem")).unwrap();
    home.file("broken.pem", &whole[..whole.len() / 2]);
    home.file("empty.pem", "");
    for (host, authorities, why, asks) in [
        ("localhost", None, "the store's certificate is not accepted: UnknownIssuer", true),
        ("localhost", Some("stranger.pem"), "the store's certificate is not accepted: UnknownIssuer", true),
        ("127.0.0.1", Some("authority.pem"), "not valid for name", true),
        ("localhost", Some("nowhere.pem"), "nowhere.pem: No such file", false),
        ("localhost", Some("broken.pem"), "broken.pem is cut off or damaged", false),
        ("localhost", Some("empty.pem"), "empty.pem contains no PEM certificate", false),
        ("localhost", Some("server.key"), "server.key contains no PEM certificate", false),
    ] {
        let authorities = authorities.map(|name| home.path().join(name));
        for arguments in [CLOSE, &["serve", "--port", "0"]] {
            let (started, before) = (Instant::now(), store.seen.connections());
            let said = run_to_its_end(&mut store.command(database.url(), host, authorities.as_deref()), arguments);
            assert_eq!(said.code, Some(2), "{why}: {said:?}");
            let line = said.stderr.lines().last().unwrap();
            assert!(line.contains("--archive") && line.contains(why), "{why}: {line}");
            assert_eq!(line.contains("AWS_CA_BUNDLE"), !asks, "{line}");
            assert_eq!(store.seen.connections() > before, asks, "{why}");
            assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
            assert!(started.elapsed() < Duration::from_secs(20), "{why}: it waited for what does not come");
        }
    }
    assert_eq!((store.seen.requests(), store.seen.in_the_clear()), (0, 0));
    assert!(std::fs::read_dir(home.path().join("store/bucket")).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_certificate_has_expired_counts_as_away_until_it_has_another() {
    let (database, home) = (database().await, home());
    let store = Store::start(&home.path().join("store"), home.path(), "expired").await;
    let file = home.path().join("authority.pem");
    let command = || store.command(database.url(), "localhost", Some(&file));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let said = run_to_its_end(&mut command(), CLOSE);
    let line = said.stderr.lines().last().unwrap();
    assert!(said.code == Some(2) && line.contains("certificate expired"), "{said:?}");
    let server = tokio::task::block_in_place(|| Server::start(command(), &[]));
    let log = server.log();
    assert!(log.contains("the archive is away") && log.contains("certificate expired"), "{log}");
    assert_eq!(server.status("/spend/tags").await, 200);
    assert_eq!((store.seen.requests(), store.seen.in_the_clear()), (0, 0));
}
