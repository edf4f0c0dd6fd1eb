//! `litespend archive`: the archive of closed days by itself, without a database.

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use litespend_archive::{Archive, Engine, Options};

use crate::cli::args::ArchiveArgs;
use crate::cli::database::Failure;
use crate::cli::output;
use crate::cli::output::say;

/// The subcommands of `archive`.
#[derive(Debug, Subcommand)]
pub enum ArchiveCommand {
    /// Print the statements with which another engine reads the archive as a table.
    Schema(SchemaArgs),
    /// Answer from objects again that were found damaged and set aside, after they were put right.
    ClearDamage(ClearDamageArgs),
}

/// The arguments of `archive schema`.
#[derive(Clone, Debug, Args)]
pub struct SchemaArgs {
    #[command(flatten)]
    archive: ArchiveArgs,
    /// The engine.
    #[arg(long, value_enum)]
    engine: EngineName,
}

/// The arguments of `archive clear-damage`.
#[derive(Clone, Debug, Args)]
pub struct ClearDamageArgs {
    #[command(flatten)]
    archive: ArchiveArgs,
    /// The objects, as `books verify` names them. Default: all.
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
}

/// An engine that reads archives.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineName {
    Clickhouse,
    Duckdb,
    Trino,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Clickhouse => Self::ClickHouse,
            EngineName::Duckdb => Self::DuckDb,
            EngineName::Trino => Self::Trino,
        }
    }
}

/// Runs a subcommand of `archive`.
pub fn run(command: ArchiveCommand) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        match command {
            ArchiveCommand::Schema(args) => {
                let archive = open(&args.archive, false).await?;
                output::text(format_args!("{}", archive.schema(args.engine.into())));
                Ok(())
            }
            ArchiveCommand::ClearDamage(args) => {
                let archive = open(&args.archive, true).await?;
                let paths = if args.paths.is_empty() { archive.damaged() } else { args.paths };
                for path in paths {
                    archive.clear_damage(&path).await.context("cannot clear the mark")?;
                    say!("{path}");
                }
                Ok(())
            }
        }
    })
}

/// Opens the archive of the arguments. With `is_written`, checks that objects can be written, so that a wrong place is
/// found out at once.
pub(crate) async fn open(args: &ArchiveArgs, is_written: bool) -> Result<Archive, Failure> {
    let Some(url) = args.url() else {
        return Err(Failure::Setting(anyhow!("no archive: set --archive or LITESPEND_ARCHIVE_URL")));
    };
    if is_written { open_writable("--archive:", url).await } else { open_url("--archive:", url).await }
}

/// Opens the archive at a URL, and checks that objects can be written. `name` is what errors call it.
pub(crate) async fn open_writable(name: &str, url: &str) -> Result<Archive, Failure> {
    let archive = open_url(name, url).await?;
    archive.probe().await.map_err(|error| unusable(name, url, error))?;
    Ok(archive)
}

/// Opens the archive at a URL, for reading. `name` is what errors call it.
pub(crate) async fn open_url(name: &str, url: &str) -> Result<Archive, Failure> {
    Archive::open(url, Options::default()).await.map_err(|error| unusable(name, url, error))
}

/// The archive of a server. If the store is away, the server starts all the same: only reads of archived rows and closing
/// need it, and they try again. What a later attempt does not change is an error at once.
pub(crate) async fn open_for_server(args: &ArchiveArgs, is_written: bool) -> Result<Option<Archive>, Failure> {
    let Some(url) = args.url() else { return Ok(None) };
    let archive = Archive::at(url, Options::default()).map_err(|error| unusable("--archive:", url, error))?;
    match archive.check(is_written).await {
        Ok(()) => {}
        Err(error @ litespend_archive::Error::Unavailable(_)) if !archive.is_local() => {
            tracing::warn!(
                cause = %error,
                "the archive is away: until it is back, reads of archived rows get 503, and no day is closed"
            );
        }
        Err(error) => return Err(unusable("--archive:", url, error)),
    }
    Ok(Some(archive))
}

fn unusable(name: &str, url: &str, error: litespend_archive::Error) -> Failure {
    // A URL may contain credentials, before an @ or as parameters.
    let shown = if url.contains(['@', '?', '#']) { "the URL" } else { url };
    Failure::Setting(anyhow!("{name} {shown}: {error}"))
}
