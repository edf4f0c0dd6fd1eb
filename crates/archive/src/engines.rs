//! How other engines read an archive.

use crate::archive::{Archive, LOGS};
use crate::columns::{Column, Kind};
use crate::location::{Location, Service};

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
        match engine {
            Engine::DuckDb => self.duckdb(),
            Engine::ClickHouse => self.clickhouse(),
            Engine::Trino => self.trino(),
        }
    }

    fn duckdb(&self) -> String {
        let glob = quoted(&format!("{}/{LOGS}/day=*/*.parquet", self.url()));
        let remote = match &self.inner.location {
            Location::Directory(_) => "",
            Location::Bucket { service: Service::Azure, .. } => "INSTALL azure;\nLOAD azure;\n",
            Location::Bucket { .. } => "INSTALL httpfs;\nLOAD httpfs;\n",
        };
        format!(
            "{remote}CREATE OR REPLACE VIEW spend_logs AS\n\
             SELECT * FROM read_parquet({glob}, hive_partitioning = true, hive_types = {{'day': DATE}});\n"
        )
    }

    fn clickhouse(&self) -> String {
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
        let source = match &self.inner.location {
            // A server reads files below its user_files_path only; clickhouse-local reads all.
            Location::Directory(_) => {
                format!("file({}, 'Parquet', {structure})", quoted(&format!("{}/{files}", self.url())))
            }
            Location::Bucket { service: Service::Azure, bucket, prefix } => {
                let blobs = quoted(format!("{prefix}/{files}").trim_start_matches('/'));
                let container = quoted(bucket);
                format!(
                    "azureBlobStorage(azure_connection, container = {container}, blob_path = {blobs}, format = 'Parquet', structure = {structure})"
                )
            }
            Location::Bucket { service: Service::GoogleCloud, bucket, prefix } => {
                let url = format!("https://storage.googleapis.com/{bucket}/{prefix}");
                let url = quoted(&format!("{}/{files}", url.trim_end_matches('/')));
                format!("gcs({url}, 'Parquet', {structure})")
            }
            Location::Bucket { service: Service::S3, .. } => {
                format!("s3({}, 'Parquet', {structure})", quoted(&format!("{}/{files}", self.url())))
            }
        };
        // The directory names the day, which limits the files that are read.
        format!(
            "CREATE OR REPLACE VIEW spend_logs AS\n\
             SELECT *, toDate(extract(_path, 'day=([0-9-]+)')) AS day\n\
             FROM {source};\n"
        )
    }

    fn trino(&self) -> String {
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
        let location = quoted(&format!("{}/{LOGS}", self.url().replacen("az://", "abfs://", 1)));
        format!(
            "CREATE TABLE spend_logs (\n{},\n    \"day\" date\n)\n\
             WITH (\n    external_location = {location},\n    format = 'PARQUET',\n    partitioned_by = ARRAY['day']\n);\n\
             CALL system.sync_partition_metadata(CURRENT_SCHEMA, 'spend_logs', 'FULL');\n",
            columns.join(",\n")
        )
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
