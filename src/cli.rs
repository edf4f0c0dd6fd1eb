//! Subcommands that work on the database beside the server: a file a subject. They print for people, and end with exit
//! code 1 where what they looked for is wrong.

pub mod args;
pub mod booking;
pub mod cost;
pub mod database;
pub mod demo_data;
pub mod import;
pub mod indexes;
pub mod keys;
pub mod master_key;
pub mod prices;
pub mod rollups;
pub mod serve;
pub mod teams;
pub mod users;

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use sqlx::{PgConnection, PgPool};

use crate::cli::args::DatabaseArgs;
use crate::cli::serve::{Failure, OpenDatabase, read_config};
use crate::store::database::{DatabaseKind, PoolLimits};

/// Opens the database of the arguments, brings it up to date if it is ours, and runs `work` on one connection.
pub fn with_connection<F>(
    args: &DatabaseArgs,
    work: impl FnOnce(sqlx::pool::PoolConnection<sqlx::Postgres>, DatabaseKind) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let config = read_config(args)?;
    let open = OpenDatabase::open(args, &config, PoolLimits { connections: 2, wait: Duration::from_secs(30) })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(async {
        let pool = open.pool().map_err(Failure::Setting)?;
        let (kind, _) = open.prepare(&pool).await?;
        let mut connection = pool.acquire().await.context("no connection")?;
        unlimited(&mut connection).await.context("the session cannot be prepared")?;
        let result = work(connection, kind).await;
        pool.close().await;
        result
    });
    open.close()?;
    result
}

/// Work at the command line may take as long as it takes.
async fn unlimited(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SET statement_timeout = 0").execute(connection).await.map(|_| ())
}

/// Opens a pool on the database of the arguments, beside a running server if there is one, brings it up to date if it
/// is ours, and runs `work`.
pub fn with_pool<F>(args: &DatabaseArgs, work: impl FnOnce(PgPool, DatabaseKind) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let config = read_config(args)?;
    let limits = PoolLimits { connections: 4, wait: Duration::from_secs(30) };
    let open = OpenDatabase::open_beside(args, &config, limits)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(async {
        let pool = open.pool().map_err(Failure::Setting)?;
        let (kind, _) = open.prepare(&pool).await?;
        let result = work(pool.clone(), kind).await;
        pool.close().await;
        result
    });
    drop(runtime);
    open.close()?;
    result
}

/// Refuses a change where LiteLLM owns the tables and nobody said that it may be made.
pub fn check_owner(kind: DatabaseKind, manage_litellm_keys: bool) -> Result<(), Failure> {
    if kind == DatabaseKind::LiteLlm && !manage_litellm_keys {
        return Err(Failure::Runtime(anyhow::anyhow!(crate::accounts::LITELLM_OWNS)));
    }
    Ok(())
}

/// Prints rows under their headings, each column as wide as its widest value.
pub fn print_table(headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(&mut headings.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Seconds of a timestamp, for tables.
pub fn short_time(text: &str) -> String {
    text.chars().take(19).collect::<String>().replace('T', " ")
}
