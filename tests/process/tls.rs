//! Connections to a PostgreSQL with TLS: which certificates are accepted, and what the server reports if nothing is
//! encrypted.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{LocalPostgres, LocalPostgresOptions};
use sqlx::{Connection, PgConnection};

use crate::certificates::{authority, of_localhost};
use crate::support::{Directory, MASTER_KEY, Server, eventually, program, run};

/// A PostgreSQL on 127.0.0.1 whose certificate for `localhost` is signed by `authority`.
struct Encrypting {
    child: Child,
    port: u16,
}

impl Encrypting {
    async fn start(home: &Path, certificates: &Path) -> Self {
        let local =
            LocalPostgres::start(LocalPostgresOptions { home: Some(home.to_owned()), ..local_postgres_options() })
                .unwrap();
        let mut connection = PgConnection::connect(local.superuser_url()).await.unwrap();
        let programs: String = sqlx::query_scalar("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        local.stop().unwrap();
        let data = home.join("data");
        let owner = data.metadata().unwrap();
        for (from, to) in [("server.pem", "server.crt"), ("server.key", "server.key")] {
            let to = data.join(to);
            std::fs::copy(certificates.join(from), &to).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::fs::write(data.join("pg_hba.conf"), "host all all 127.0.0.1/32 trust\n").unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(Path::new(&programs).join("postgres"));
        command.arg("-D").arg(&data).current_dir("/").stdin(Stdio::null()).stderr(Stdio::null()).process_group(0);
        for setting in [
            &format!("port={port}"),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "ssl=on",
            "ssl_cert_file=server.crt",
            "ssl_key_file=server.key",
        ] {
            command.args(["-c", setting]);
        }
        if nix::unistd::geteuid().is_root() {
            command.gid(owner.gid()).uid(owner.uid());
        }
        let started = Self { child: command.spawn().unwrap(), port };
        let url = started.url("127.0.0.1", "sslmode=disable");
        let answers = async || PgConnection::connect(&url).await.is_ok();
        assert!(eventually(Duration::from_secs(30), answers).await, "PostgreSQL did not start");
        started
    }

    fn url(&self, host: &str, parameters: &str) -> String {
        format!("postgresql://litespend:hunter2@{host}:{}/litespend?{parameters}", self.port)
    }

    /// Whether all of the servers' sessions are encrypted; `None` if there are none.
    async fn encrypted(&self) -> Option<bool> {
        let mut connection = PgConnection::connect(&self.url("127.0.0.1", "sslmode=disable")).await.unwrap();
        sqlx::query_scalar(
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'litespend'",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap()
    }
}

impl Drop for Encrypting {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_verified_where_the_url_says_so() {
    let directory = Directory::new();
    let certificates = directory.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    authority(&certificates, "authority");
    authority(&certificates, "stranger");
    of_localhost(&certificates, "server", "2");
    let file = |name: &str| -> PathBuf { certificates.join(name) };
    let (known, stranger) = (file("authority.pem").display().to_string(), file("stranger.pem").display().to_string());
    let postgres = Encrypting::start(&directory.path().join("home"), &certificates).await;
    let command = |url: &str| {
        let mut command = program();
        command.env("DATABASE_URL", url).env("LITELLM_MASTER_KEY", MASTER_KEY);
        command
    };

    // Refused at once, with one line that names the reason and contains no password.
    for (host, parameters, why) in [
        ("localhost", "sslaccept=strict".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=require&sslaccept=strict".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=verify-full".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=verify-ca".to_owned(), "UnknownIssuer"),
        ("localhost", format!("sslmode=require&sslrootcert={stranger}"), "UnknownIssuer"),
        ("localhost", format!("sslaccept=strict&sslcert={stranger}"), "UnknownIssuer"),
        ("127.0.0.1", format!("sslaccept=strict&sslrootcert={known}"), "not valid for name"),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={known}"), "not valid for name"),
    ] {
        for subcommand in ["migrate", "serve"] {
            let started = std::time::Instant::now();
            let said = run(command(&postgres.url(host, &parameters)).args([subcommand]));
            assert_eq!(said.code, Some(1), "{parameters}: {}", said.stderr);
            let line = said.stderr.lines().last().unwrap();
            assert!(line.contains("certificate") && line.contains(why), "{parameters}: {line}");
            assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
            assert!(started.elapsed() < Duration::from_secs(20), "{parameters}: it waited for what does not come");
        }
    }
    // The server cannot start with these settings: exit code 2.
    for (parameters, word) in [
        ("sslmode=requird", "sslmode must be"),
        ("sslaccept=yes", "sslaccept must be"),
        ("sslaccept=strict&sslmode=disable", "contradicts"),
        ("sslaccept=strict&sslrootcert=/no/such/file", "cannot read"),
    ] {
        for variable in ["DATABASE_URL", "DATABASE_URL_READ_REPLICA"] {
            let mut command = command(&postgres.url("127.0.0.1", "sslmode=disable"));
            let said = run(command.env(variable, postgres.url("127.0.0.1", parameters)).args(["serve", "--port", "0"]));
            assert_eq!(said.code, Some(2), "{parameters}: {}", said.stderr);
            let line = said.stderr.lines().last().unwrap();
            assert!(line.contains(variable) && line.contains(word), "{parameters}: {line}");
        }
    }
    let said = run(command(&postgres.url("127.0.0.1", "")).env("PGSSLMODE", "requird").arg("migrate"));
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("PGSSLMODE must be"), "{}", said.stderr);
    // Accepted, and encrypted if that was requested.
    for (host, parameters, encrypted) in [
        ("localhost", format!("sslaccept=strict&sslrootcert={known}"), true),
        ("localhost", format!("sslaccept=strict&sslcert={known}"), true),
        ("localhost", format!("sslmode=verify-full&sslrootcert={known}"), true),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={known}"), true),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={known}"), true),
        ("127.0.0.1", "sslmode=require&sslaccept=accept_invalid_certs".to_owned(), true),
        ("127.0.0.1", format!("sslmode=require&sslaccept=accept_invalid_certs&sslrootcert={stranger}"), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", "sslmode=prefer".to_owned(), true),
        ("127.0.0.1", String::new(), true),
        ("127.0.0.1", "sslmode=disable".to_owned(), false),
    ] {
        let server = Server::start(command(&postgres.url(host, &parameters)), &[]);
        assert_eq!(server.status("/spend/tags").await, 200, "{parameters}");
        assert_eq!(postgres.encrypted().await, Some(encrypted), "{parameters}");
        assert!(!server.log().contains("encrypted"), "it stays on this machine: {}", server.log());
    }
    // A replica's URL gets its own warnings.
    let mut replica = command(&postgres.url("127.0.0.1", "sslmode=disable"));
    replica.env("DATABASE_URL_READ_REPLICA", "postgresql://u:hunter2@192.0.2.1:5/db?sslidentity=client.p12");
    let server = Server::start(replica, &[]);
    let log = server.log();
    assert!(log.contains("DATABASE_URL_READ_REPLICA: the connection to 192.0.2.1:5 may be unencrypted"), "{log}");
    assert!(log.contains("DATABASE_URL_READ_REPLICA: sslidentity is not supported"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn a_way_in_the_clear_is_told_of_at_the_start() {
    for (parameters, word) in [("?sslmode=disable", "is not encrypted"), ("", "may be unencrypted")] {
        let mut command = program();
        command.env("DATABASE_URL", format!("postgresql://u:hunter2@192.0.2.1:5/db{parameters}"));
        command.env("LITELLM_MASTER_KEY", MASTER_KEY).args(["serve", "--port", "0"]);
        let (reader, writer) = std::io::pipe().unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        drop(command);
        let line = std::io::BufRead::lines(std::io::BufReader::new(reader))
            .map_while(Result::ok)
            .find(|line| line.contains("DATABASE_URL"))
            .unwrap_or_default();
        let _ = child.kill();
        let _ = child.wait();
        assert!(line.contains(word) && line.contains("192.0.2.1:5") && !line.contains("hunter2"), "{line}");
    }
}
