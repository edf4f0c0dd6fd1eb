//! How other engines read an archive.

use crate::archive::Archive;
use crate::columns::{Column, Kind};
use crate::listing::LOGS;
use crate::location::{Endpoint, Location, Service};

/// A database engine that can read an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// ClickHouse.
    ClickHouse,
    /// DuckDB.
    DuckDb,
    /// Trino, with its Hive connector.
    Trino,
}

impl Engine {
    /// The engine with this name in lower case: `clickhouse`, `duckdb` or `trino`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "clickhouse" => Some(Self::ClickHouse),
            "duckdb" => Some(Self::DuckDb),
            "trino" => Some(Self::Trino),
            _ => None,
        }
    }
}

impl Archive {
    /// Statements that make the archive readable as the table or view `spend_logs`. `day` is a column of it, and a
    /// condition on `day` limits which files are read.
    pub fn schema(&self, engine: Engine) -> String {
        let location = &self.inner.location;
        let endpoint = location.endpoint(&self.inner.options);
        match engine {
            Engine::DuckDb => duckdb(location, endpoint.as_ref()),
            Engine::ClickHouse => clickhouse(location, endpoint.as_ref()),
            Engine::Trino => trino(location),
        }
    }
}

/// Where ClickHouse has the credentials of a store from, as comments. Credentials are not printed.
const S3_CREDENTIALS: &str = "\
-- The credentials come from the configuration of ClickHouse's server (<s3>), or after the URL, as in
-- s3(URL, KEY_ID, SECRET, FORMAT, COLUMNS). clickhouse-local and chdb have them from their environment, too
-- (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).
";
const GOOGLE_CREDENTIALS: &str = "\
-- The credentials are an HMAC key. ClickHouse takes it from its configuration (<s3>), or it comes after the URL:
-- gcs(URL, KEY_ID, SECRET, FORMAT, COLUMNS).
";
const AZURE_CREDENTIALS: &str = "\
-- The credentials are in the named collection azure_connection, as connection_string, or as storage_account_url,
-- account_name and account_key.
";

fn duckdb(location: &Location, endpoint: Option<&Endpoint>) -> String {
    let glob = quoted(&format!("{}/{LOGS}/day=*/*.parquet", location.url()));
    let mut remote = match location {
        Location::Directory(_) => String::new(),
        Location::Bucket { service: Service::Azure, .. } => "INSTALL azure;\nLOAD azure;\n".to_owned(),
        Location::Bucket { .. } => "INSTALL httpfs;\nLOAD httpfs;\n".to_owned(),
    };
    if let (Location::Bucket { service: Service::S3, .. }, Some(endpoint)) = (location, endpoint) {
        let (host, is_encrypted) = endpoint.host();
        let style = if endpoint.names_bucket { "vhost" } else { "path" };
        remote.push_str(&format!(
            "-- DuckDB takes the credentials from its environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY),\n\
             -- or from the settings s3_access_key_id and s3_secret_access_key.\n\
             SET s3_endpoint = {};\nSET s3_url_style = '{style}';\nSET s3_use_ssl = {is_encrypted};\n",
            quoted(host)
        ));
    }
    format!(
        "{remote}CREATE OR REPLACE VIEW spend_logs AS\n\
         SELECT * FROM read_parquet({glob}, hive_partitioning = true, hive_types = {{'day': DATE}});\n"
    )
}

fn clickhouse(location: &Location, endpoint: Option<&Endpoint>) -> String {
    let columns: Vec<String> = Column::ALL
        .iter()
        .map(|column| {
            let data_type = match column.kind() {
                Kind::RequiredText => "String",
                Kind::Text => "Nullable(String)",
                Kind::Float => "Float64",
                Kind::Integer => "Int32",
                Kind::OptionalInteger => "Nullable(Int32)",
                Kind::Time => "DateTime64(6, 'UTC')",
                Kind::OptionalTime => "Nullable(DateTime64(6, 'UTC'))",
            };
            format!("`{}` {data_type}", column.name())
        })
        .collect();
    let structure = quoted(&columns.join(", "));
    let files = format!("{LOGS}/day=*/*.parquet");
    let in_bucket = |bucket_url: &str, prefix: &str| {
        let url = format!("{bucket_url}/{}", in_url(prefix));
        quoted(&format!("{}/{files}", url.trim_end_matches('/')))
    };
    let (credentials, source) = match location {
        // A server reads files below its user_files_path only; clickhouse-local reads all.
        Location::Directory(_) => {
            let glob = quoted(&format!("{}/{files}", location.url()));
            ("", format!("file({glob}, 'Parquet', {structure})"))
        }
        Location::Bucket { service: Service::Azure, bucket, prefix } => {
            let blobs = quoted(format!("{prefix}/{files}").trim_start_matches('/'));
            let container = quoted(bucket);
            let source = format!(
                "azureBlobStorage(azure_connection, container = {container}, blob_path = {blobs}, format = 'Parquet', structure = {structure})"
            );
            (AZURE_CREDENTIALS, source)
        }
        Location::Bucket { service: Service::GoogleCloud, bucket, prefix } => {
            let service = || format!("https://storage.googleapis.com/{bucket}");
            let url = in_bucket(&endpoint.map_or_else(service, Endpoint::bucket_url), prefix);
            (GOOGLE_CREDENTIALS, format!("gcs({url}, 'Parquet', {structure})"))
        }
        Location::Bucket { service: Service::S3, bucket, prefix } => {
            let service = || format!("s3://{bucket}");
            let url = in_bucket(&endpoint.map_or_else(service, Endpoint::bucket_url), prefix);
            (S3_CREDENTIALS, format!("s3({url}, 'Parquet', {structure})"))
        }
    };
    // The directory names the day, which limits the files that are read.
    format!(
        "{credentials}CREATE OR REPLACE VIEW spend_logs AS\n\
         SELECT *, toDate(extract(_path, 'day=([0-9-]+)')) AS day\n\
         FROM {source};\n"
    )
}

fn trino(location: &Location) -> String {
    let columns: Vec<String> = Column::ALL
        .iter()
        .map(|column| {
            let data_type = match column.kind() {
                Kind::RequiredText | Kind::Text => "varchar",
                Kind::Float => "double",
                Kind::Integer | Kind::OptionalInteger => "integer",
                Kind::Time | Kind::OptionalTime => "timestamp(6)",
            };
            format!("    \"{}\" {data_type}", column.name())
        })
        .collect();
    let location = quoted(&format!("{}/{LOGS}", location.url().replacen("az://", "abfs://", 1)));
    format!(
        "CREATE TABLE spend_logs (\n{},\n    \"day\" date\n)\n\
         WITH (\n    external_location = {location},\n    format = 'PARQUET',\n    partitioned_by = ARRAY['day']\n);\n\
         CALL system.sync_partition_metadata(CURRENT_SCHEMA, 'spend_logs', 'FULL');\n",
        columns.join(",\n")
    )
}

/// A path as ClickHouse reads it in a URL: it decodes it, and refuses other characters.
fn in_url(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/=".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Options;

    fn endpoint(location: &Location, settings: &[(&str, &str)]) -> Endpoint {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        location.endpoint(&Options { settings, ..Options::default() }).unwrap()
    }

    #[test]
    fn engines_ask_the_endpoint_that_the_settings_name() {
        let amazon = Location::parse("s3://bucket/my place").unwrap();
        assert!(
            clickhouse(&amazon, None)
                .contains("FROM s3('s3://bucket/my%20place/spend_logs/day=*/*.parquet', 'Parquet'")
        );
        assert!(!duckdb(&amazon, None).contains("s3_endpoint"));
        let own =
            endpoint(&amazon, &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"), ("AWS_SECRET_ACCESS_KEY", "hunter2")]);
        let statements = clickhouse(&amazon, Some(&own));
        let source = "FROM s3('http://127.0.0.1:9000/bucket/my%20place/spend_logs/day=*/*.parquet', 'Parquet'";
        assert!(statements.contains(source), "{statements}");
        assert!(statements.starts_with("-- ") && !statements.contains("hunter2"), "{statements}");
        // One statement for clients that divide their input at semicolons.
        assert_eq!(statements.matches(';').count(), 1, "{statements}");
        let statements = duckdb(&amazon, Some(&own));
        let settings = "SET s3_endpoint = '127.0.0.1:9000';\nSET s3_url_style = 'path';\nSET s3_use_ssl = false;\n";
        assert!(
            statements.contains(settings) && statements.contains("'s3://bucket/my place/spend_logs/"),
            "{statements}"
        );
        assert!(!statements.contains("hunter2"), "{statements}");
        let root = Location::parse("s3://bucket").unwrap();
        let statements = clickhouse(&root, Some(&endpoint(&root, &[("AWS_ENDPOINT", "https://minio.example.com/")])));
        assert!(
            statements.contains("s3('https://minio.example.com/bucket/spend_logs/day=*/*.parquet'"),
            "{statements}"
        );
    }

    #[test]
    fn other_services_name_their_places_and_credentials() {
        let google = Location::parse("gs://bucket/place").unwrap();
        let statements = clickhouse(&google, None);
        let source = "gcs('https://storage.googleapis.com/bucket/place/spend_logs/day=*/*.parquet', 'Parquet'";
        assert!(
            statements.contains(source) && statements.contains("-- The credentials are an HMAC key."),
            "{statements}"
        );
        let own = endpoint(&google, &[("GOOGLE_BASE_URL", "https://localhost:4443")]);
        let statements = clickhouse(&google, Some(&own));
        assert!(statements.contains("gcs('https://localhost:4443/bucket/place/spend_logs/"), "{statements}");
        assert!(!duckdb(&google, Some(&own)).contains("s3_endpoint"));
        let azure = Location::parse("az://container/it's").unwrap();
        let statements = clickhouse(&azure, None);
        let place = "(azure_connection, container = 'container', blob_path = 'it''s/spend_logs/day=*/*.parquet'";
        assert!(statements.contains(place) && statements.contains("storage_account_url"), "{statements}");
        assert!(duckdb(&azure, None).contains("'az://container/it''s/spend_logs/day=*/*.parquet'"));
        let directory = Location::parse("/var/archive").unwrap();
        assert!(clickhouse(&directory, None).starts_with("CREATE OR REPLACE VIEW spend_logs AS\n"));
    }
}
