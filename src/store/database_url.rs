//! Parses a database URL: the address, the schema, the encryption of the connection, and the size of the pool. It reads
//! PostgreSQL's own parameters (`sslmode`, `sslrootcert`, `sslcert` with `sslkey`) and those of Prisma, which LiteLLM's
//! URLs may contain (`schema`, `sslaccept`, `sslcert` alone, `connection_limit`, `pool_timeout`). A warning names the
//! parameters that it ignores. Messages repeat nothing of the URL except names of parameters that are known.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Reason why a URL cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUrl(String);

/// A parsed URL.
#[derive(Clone, Debug)]
pub struct DatabaseUrl {
    /// Options for the connection.
    pub options: PgConnectOptions,
    /// Schema of LiteLLM's tables: the parameter `schema`, as in Prisma's URLs; default `public`.
    pub schema: String,
    /// Maximum number of connections: Prisma's `connection_limit`.
    pub connections: Option<u32>,
    /// Maximum time that a request waits for a connection: Prisma's `pool_timeout`, in seconds. `Duration::MAX` is no
    /// limit.
    pub wait: Option<Duration>,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
}

/// Parameters that are passed to the driver, apart from those for encryption. Others are not passed: the driver does not
/// know them, and it would log them although they may contain secrets.
const DRIVERS_PARAMETERS: [&str; 8] =
    ["statement-cache-capacity", "host", "hostaddr", "port", "dbname", "user", "password", "options"];

/// Parameters of Prisma and PostgreSQL that are ignored, and named in a warning. Of others, the warning has the number
/// only: what follows a question mark may be a part of a password.
const IGNORED_PARAMETERS: [&str; 17] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_idle",
    "max_connection_lifetime",
    "max_idle_connection_lifetime",
    "passfile",
    "pgbouncer",
    "single_use_connections",
    "socket_timeout",
    "statement_cache_size",
    "target_session_attrs",
    "tcp_user_timeout",
];

const NOT_A_URL: &str = "not a PostgreSQL URL (postgresql://user:password@host:5432/database)";

/// Values of `sslmode` for error messages, the weakest first.
const MODES: &str = "disable, allow, prefer, require, verify-ca or verify-full";

impl DatabaseUrl {
    /// Parses a URL. Accepts only `postgres://` and `postgresql://`. Ignores unknown parameters, with a warning.
    pub fn parse(url: &str) -> Result<Self, BadUrl> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(BadUrl(NOT_A_URL.to_owned()));
        }
        let (address, parameters) = split(url);
        let known = parameters.split('&').filter(|parameter| {
            let name = parameter.split_once('=').map_or(*parameter, |(name, _)| name);
            is_drivers(name)
        });
        let options: PgConnectOptions = format!("{address}?{}", known.collect::<Vec<_>>().join("&"))
            .parse()
            .map_err(|_| BadUrl(NOT_A_URL.to_owned()))?;
        let mut read =
            Self { options, schema: schema_in(parameters), connections: None, wait: None, warnings: Vec::new() };
        let (mut encryption, mut ignored) = (Encryption::default(), Ignored::default());
        for (name, value) in form_urlencoded::parse(parameters.as_bytes()) {
            match name.as_ref() {
                "schema" => {}
                "connection_limit" => match value.parse() {
                    Ok(limit @ 1..) => read.connections = Some(limit),
                    _ => return Err(BadUrl("connection_limit must be a number of connections".to_owned())),
                },
                "pool_timeout" => match value.parse() {
                    Ok(0) => read.wait = Some(Duration::MAX),
                    Ok(seconds) => read.wait = Some(Duration::from_secs(seconds)),
                    Err(_) => return Err(BadUrl("pool_timeout must be a number of seconds".to_owned())),
                },
                "sslidentity" | "sslpassword" => read.warnings.push(format!(
                    "{name} is not supported: set the client's certificate and key as PEM files in sslcert and sslkey"
                )),
                name if encryption.read(name, &value)? || is_drivers(name) => {}
                name => ignored.note(name),
            }
        }
        read.encrypt(encryption)?;
        read.warnings.extend(ignored.warning());
        Ok(read)
    }

    /// The URL `direct` with the schema of `database_url`, whose schema counts for LiteLLM, too. The schema is `public` if
    /// that URL names none.
    pub fn with_schema_of(direct: &str, database_url: &str) -> String {
        let (address, parameters) = split(direct);
        let is_schema = |parameter: &&str| {
            form_urlencoded::parse(parameter.as_bytes()).next().is_some_and(|(name, _)| name == "schema")
        };
        let mut kept: String =
            parameters.split('&').filter(|parameter| !is_schema(parameter)).collect::<Vec<_>>().join("&");
        if !kept.is_empty() {
            kept.push('&');
        }
        let schema = schema_in(split(database_url).1);
        let schema: String = form_urlencoded::byte_serialize(schema.as_bytes()).collect();
        format!("{address}?{kept}schema={schema}")
    }

    /// Where the database is, without user and password: `litellm at db.example:5432`.
    pub fn location(&self) -> String {
        let name = self.options.get_database().unwrap_or("postgres");
        match self.options.get_socket() {
            Some(socket) => format!("{name} at {}", socket.display()),
            None => format!("{name} at {}:{}", self.options.get_host(), self.options.get_port()),
        }
    }

    fn encrypt(&mut self, encryption: Encryption) -> Result<(), BadUrl> {
        // The driver would treat an unknown value as `prefer`.
        if encryption.mode.is_none() && std::env::var("PGSSLMODE").is_ok_and(|mode| mode.parse::<PgSslMode>().is_err())
        {
            return Err(BadUrl(format!("PGSSLMODE must be {MODES}")));
        }
        let mut options = self.options.clone();
        let mode = encryption.mode(options.get_ssl_mode())?;
        let is_local = self.is_local();
        if let Some(root) = encryption.root()? {
            options = options.ssl_root_cert(root);
        }
        if let (Some(certificate), Some(key)) = (encryption.certificate, encryption.key) {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        let place = format!("{}:{}", options.get_host(), options.get_port());
        let advice = "set sslmode=verify-full, or sslmode=require if the network is trusted but not private";
        match mode {
            PgSslMode::Disable if !is_local => self.warnings.push(format!(
                "the connection to {place} is not encrypted (sslmode=disable), and the server is not verified: {advice}"
            )),
            PgSslMode::Prefer if !is_local => self.warnings.push(format!(
                "the connection to {place} may be unencrypted (sslmode=prefer, the default), and the server is not \
                 verified: {advice}"
            )),
            _ => {}
        }
        // PostgreSQL does not encrypt connections over a Unix socket, and its own clients ignore `sslmode` there.
        let mode = if self.is_socket() { PgSslMode::Disable } else { mode };
        self.options = options.ssl_mode(mode);
        Ok(())
    }

    fn is_socket(&self) -> bool {
        self.options.get_socket().is_some() || self.options.get_host().starts_with('/')
    }

    /// Whether the connection stays on this machine.
    fn is_local(&self) -> bool {
        let host = self.options.get_host().trim_start_matches('[').trim_end_matches(']');
        self.is_socket()
            || host.trim_end_matches('.').eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

/// The parts of a URL before and after the question mark.
fn split(url: &str) -> (&str, &str) {
    url.split_once('?').unwrap_or((url, ""))
}

/// The schema that the parameters of a URL name, or `public`.
fn schema_in(parameters: &str) -> String {
    let named =
        form_urlencoded::parse(parameters.as_bytes()).filter(|(name, value)| name == "schema" && !value.is_empty());
    named.last().map_or_else(|| "public".to_owned(), |(_, schema)| schema.into_owned())
}

fn is_drivers(name: &str) -> bool {
    DRIVERS_PARAMETERS.contains(&name) || name.starts_with("options[")
}

/// The parameters that are ignored.
#[derive(Default)]
struct Ignored {
    names: BTreeSet<&'static str>,
    others: u32,
}

impl Ignored {
    fn note(&mut self, name: &str) {
        match IGNORED_PARAMETERS.iter().find(|known| **known == name) {
            Some(known) => _ = self.names.insert(known),
            None if name.is_empty() => {}
            None => self.others += 1,
        }
    }

    fn warning(&self) -> Option<String> {
        let mut named: Vec<String> = self.names.iter().map(|name| (*name).to_owned()).collect();
        match self.others {
            0 => {}
            1 => named.push("one that is unknown".to_owned()),
            others => named.push(format!("{others} that are unknown")),
        }
        (!named.is_empty()).then(|| format!("litespend ignores some parameters of the URL: {}", named.join(", ")))
    }
}

/// The parameters for encryption.
#[derive(Default)]
struct Encryption {
    mode: Option<PgSslMode>,
    accept: Option<Accept>,
    root: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Prisma's `sslaccept`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accept {
    Strict,
    InvalidCertificates,
}

impl Encryption {
    /// Reads a parameter, and returns whether it is one for encryption.
    fn read(&mut self, name: &str, value: &str) -> Result<bool, BadUrl> {
        let path = || (!value.is_empty()).then(|| PathBuf::from(value));
        match name {
            "sslmode" | "ssl-mode" => {
                let mode = value.parse().map_err(|_| BadUrl(format!("sslmode must be {MODES}")))?;
                self.mode = Some(mode);
            }
            "sslaccept" => {
                self.accept = Some(match value {
                    "strict" => Accept::Strict,
                    "accept_invalid_certs" => Accept::InvalidCertificates,
                    _ => return Err(BadUrl("sslaccept must be strict or accept_invalid_certs".to_owned())),
                });
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.root = path(),
            "sslcert" | "ssl-cert" => self.certificate = path(),
            "sslkey" | "ssl-key" => self.key = path(),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The file of root certificates to trust in addition to the public ones. A Prisma `sslcert` is such a file. A
    /// PostgreSQL `sslcert` is the client certificate for a key.
    fn root(&self) -> Result<Option<&Path>, BadUrl> {
        let root = match (&self.root, &self.certificate, &self.key) {
            (_, None, Some(_)) => {
                return Err(BadUrl("sslkey requires sslcert, the client's certificate".to_owned()));
            }
            (Some(_), Some(_), None) => {
                return Err(BadUrl(
                    "sslcert without sslkey means a root certificate, as in Prisma, and sslrootcert sets another one: \
                     remove one of them, or set sslkey"
                        .to_owned(),
                ));
            }
            (None, Some(root), None) | (Some(root), ..) => root,
            (None, ..) => return Ok(None),
        };
        match std::fs::read(root) {
            Ok(content) if content.windows(BEGIN.len()).any(|window| window == BEGIN) => Ok(Some(root)),
            Ok(_) => {
                Err(BadUrl("the root certificate file (sslrootcert, sslcert) contains no PEM certificate".to_owned()))
            }
            Err(error) => Err(BadUrl(format!("cannot read the root certificate file (sslrootcert, sslcert): {error}"))),
        }
    }

    fn names_root(&self) -> bool {
        self.root.is_some() || (self.certificate.is_some() && self.key.is_none())
    }

    /// The effective mode that follows from all parameters together; `otherwise` if none of them sets it.
    fn mode(&self, otherwise: PgSslMode) -> Result<PgSslMode, BadUrl> {
        let given = self.mode.unwrap_or(otherwise);
        Ok(match (given, self.accept) {
            (PgSslMode::Disable, Some(Accept::Strict)) => {
                return Err(BadUrl("sslaccept=strict contradicts sslmode=disable".to_owned()));
            }
            (PgSslMode::VerifyCa | PgSslMode::VerifyFull, Some(Accept::InvalidCertificates)) => {
                return Err(BadUrl(
                    "sslaccept=accept_invalid_certs contradicts sslmode=verify-ca or verify-full".to_owned(),
                ));
            }
            (PgSslMode::VerifyCa, _) => PgSslMode::VerifyCa,
            (_, Some(Accept::Strict)) => PgSslMode::VerifyFull,
            // If the URL names a root certificate, the certificate must be checked. PostgreSQL's own clients do the
            // same.
            (PgSslMode::Require, None) if self.names_root() => PgSslMode::VerifyCa,
            // With `allow`, the driver would never encrypt.
            (PgSslMode::Allow, _) => PgSslMode::Prefer,
            (given, _) => given,
        })
    }
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(parameters: &str) -> Result<String, String> {
        let read = DatabaseUrl::parse(&format!("postgresql://u:hunter2@db.example/db?{parameters}"));
        read.map(|read| format!("{:?}", read.options.get_ssl_mode())).map_err(|error| error.to_string())
    }

    #[test]
    fn only_postgresql_urls_are_accepted_and_foreign_parameters_left_out() {
        for url in ["mysql://u:p@h/db", "h:5432/db", "", "postgres://h:port/db", "http://h"] {
            assert!(DatabaseUrl::parse(url).is_err(), "{url}");
        }
        let url = "postgresql://u:p@h:6543/db?schema=public&pgbouncer=true&sslmode=disable&sslpassword=x";
        let read = DatabaseUrl::parse(url).expect("a URL");
        let options = &read.options;
        assert_eq!((options.get_host(), options.get_port(), options.get_database()), ("h", 6543, Some("db")));
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable));
        let schema = |url: &str| DatabaseUrl::parse(url).expect("a URL").schema;
        assert_eq!(schema("postgresql://h/db?sslmode=disable&schema=lite%20llm"), "lite llm");
        assert_eq!(schema(url), "public");
        assert_eq!(schema("postgresql://h/db"), "public");
        assert_eq!(schema("postgresql://h/db?schema="), "public");
    }

    #[test]
    fn prismas_pool_parameters_are_read_and_others_named_as_ignored() {
        let read = |parameters: &str| DatabaseUrl::parse(&format!("postgresql://u@localhost/db?{parameters}"));
        let pool = |parameters: &str| read(parameters).map(|read| (read.connections, read.wait)).expect(parameters);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(pool("schema=litellm"), (None, None));
        assert_eq!(pool("connection_limit=7&pool_timeout=12"), (Some(7), seconds(12)));
        assert_eq!(pool("pool_timeout=0"), (None, Some(Duration::MAX)));
        for wrong in ["connection_limit=hunter2", "connection_limit=0", "connection_limit=-1", "pool_timeout=hunter2"] {
            let error = read(wrong).expect_err(wrong).to_string();
            assert!(error.contains(" must be a number of ") && !error.contains("hunter2"), "{error}");
        }
        let warnings = |parameters: &str| read(parameters).expect(parameters).warnings;
        let understood = "schema=a&connection_limit=7&pool_timeout=12&sslmode=prefer&sslaccept=accept_invalid_certs&\
                          user=u&options=-cgeqo=off&options[geqo]=off&";
        assert_eq!(warnings(understood), [""; 0]);
        let ignored = "litespend ignores some parameters of the URL: ";
        assert_eq!(
            warnings("pgbouncer=true&connect_timeout=5&pgbouncer=true"),
            [format!("{ignored}connect_timeout, pgbouncer")]
        );
        assert_eq!(warnings("hunter2@h/db"), [format!("{ignored}one that is unknown")]);
        assert_eq!(warnings("socket_timeout=1&a=1&b=2"), [format!("{ignored}socket_timeout, 2 that are unknown")]);
    }

    #[test]
    fn a_direct_url_has_the_schema_of_the_other_one() {
        for (direct, other, expected) in [
            ("postgresql://d/db", "postgresql://p/db?schema=litellm", "postgresql://d/db?schema=litellm"),
            ("postgresql://d/db", "postgresql://p/db", "postgresql://d/db?schema=public"),
            ("postgresql://d/db?", "postgresql://p/db?pgbouncer=true", "postgresql://d/db?schema=public"),
            (
                "postgresql://d/db?sslmode=require&schema=other&host=%2Frun&s%63hema=c",
                "postgresql://p/db?pgbouncer=true&schema=lite%20llm%26",
                "postgresql://d/db?sslmode=require&host=%2Frun&schema=lite+llm%26",
            ),
        ] {
            let url = DatabaseUrl::with_schema_of(direct, other);
            assert_eq!(url, expected);
            let schema = |url: &str| DatabaseUrl::parse(url).expect(url).schema;
            assert_eq!(schema(&url), schema(other));
        }
    }

    #[test]
    fn prismas_words_and_postgresqls_make_one_mode() {
        for (parameters, expected) in [
            ("", "Prefer"),
            ("sslmode=disable", "Disable"),
            ("sslmode=allow", "Prefer"),
            ("sslmode=prefer", "Prefer"),
            ("sslmode=REQUIRE", "Require"),
            ("ssl-mode=verify-ca", "VerifyCa"),
            ("sslmode=verify-full", "VerifyFull"),
            ("sslaccept=strict", "VerifyFull"),
            ("sslaccept=strict&sslmode=prefer", "VerifyFull"),
            ("sslmode=require&sslaccept=strict", "VerifyFull"),
            ("sslmode=verify-ca&sslaccept=strict", "VerifyCa"),
            ("sslmode=verify-full&sslaccept=strict", "VerifyFull"),
            ("sslaccept=accept_invalid_certs", "Prefer"),
            ("sslmode=require&sslaccept=accept_invalid_certs", "Require"),
            ("sslmode=disable&sslaccept=accept_invalid_certs", "Disable"),
            ("sslmode=disable&sslmode=require", "Require"),
            ("sslm%6Fde=require", "Require"),
        ] {
            assert_eq!(mode(parameters).as_deref(), Ok(expected), "{parameters}");
        }
        for (parameters, word) in [
            ("sslmode=", "verify-full"),
            ("sslmode=on", "verify-full"),
            ("sslmode=requird", "verify-full"),
            ("sslaccept=", "accept_invalid_certs"),
            ("sslaccept=Strict", "accept_invalid_certs"),
            ("sslaccept=strict&sslmode=disable", "contradicts"),
            ("sslaccept=accept_invalid_certs&sslmode=verify-full", "contradicts"),
            ("sslaccept=accept_invalid_certs&sslmode=verify-ca", "contradicts"),
            ("sslkey=/k", "sslcert"),
            ("sslrootcert=/r&sslcert=/c", "sslkey"),
            ("sslrootcert=/no/such/hunter2", "cannot read"),
            ("sslcert=/no/such/hunter2", "cannot read"),
            ("sslrootcert=/dev/null", "no PEM"),
        ] {
            let error = mode(parameters).expect_err(parameters);
            assert!(error.contains(word) && !error.contains("hunter2"), "{parameters}: {error}");
        }
    }

    #[test]
    fn a_certificate_that_is_named_is_looked_at() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut file, b"text before\n-----BEGIN CERTIFICATE-----\n").expect("written");
        let path = file.path().display().to_string();
        for (parameters, expected) in [
            (format!("sslrootcert={path}"), "Prefer"),
            (format!("sslmode=require&sslrootcert={path}"), "VerifyCa"),
            (format!("sslmode=require&ssl-ca={path}"), "VerifyCa"),
            // Prisma's meaning: a root certificate.
            (format!("sslmode=require&sslcert={path}"), "VerifyCa"),
            (format!("sslmode=require&sslcert={path}&sslaccept=accept_invalid_certs"), "Require"),
            (format!("sslcert={path}&sslaccept=strict"), "VerifyFull"),
            // PostgreSQL's meaning: the client certificate.
            (format!("sslmode=require&sslcert={path}&sslkey={path}"), "Require"),
            (format!("sslmode=require&sslcert={path}&sslkey={path}&sslrootcert={path}"), "VerifyCa"),
            ("sslmode=require&sslrootcert=&sslcert=&sslkey=".to_owned(), "Require"),
        ] {
            assert_eq!(mode(&parameters).as_deref(), Ok(expected), "{parameters}");
        }
    }

    #[test]
    fn who_may_send_in_the_clear_is_warned() {
        let warnings = |url: &str| DatabaseUrl::parse(url).expect(url).warnings;
        for url in [
            "postgresql://u:hunter2@db.example:5/db",
            "postgresql://u:hunter2@db.example:5/db?sslmode=prefer",
            "postgresql://u:hunter2@db.example:5/db?sslmode=allow",
            "postgresql://u:hunter2@db.example:5/db?sslmode=disable",
            "postgresql://u:hunter2@localhost/db?host=db.example&port=5",
        ] {
            let found = warnings(url);
            assert_eq!(found.len(), 1, "{url}: {found:?}");
            assert!(found[0].contains("db.example:5") && found[0].contains("encrypted ("), "{url}: {found:?}");
            assert!(!found[0].contains("hunter2"), "{found:?}");
        }
        for url in [
            "postgresql://u@localhost/db",
            "postgresql://u@LOCALHOST./db?sslmode=disable",
            "postgresql://u@127.1.2.3/db?sslmode=disable",
            "postgresql://u@[::1]/db",
            "postgresql://u@db.example/db?host=/run/postgresql",
            "postgresql://u@%2Frun%2Fpostgresql/db?sslmode=verify-full",
            "postgresql://u@db.example/db?sslmode=require",
            "postgresql://u@db.example/db?sslaccept=strict",
        ] {
            assert_eq!(warnings(url), Vec::<String>::new(), "{url}");
        }
        let identity = warnings("postgresql://localhost/db?sslidentity=client.p12&sslpassword=hunter2");
        assert!(identity.len() == 2 && identity.iter().all(|warning| warning.contains("sslkey")), "{identity:?}");
        assert!(!identity.concat().contains("hunter2"));
        let socket = DatabaseUrl::parse("postgresql://h/db?host=/run&sslaccept=strict").expect("a URL");
        assert!(matches!(socket.options.get_ssl_mode(), PgSslMode::Disable));
    }
}
