//! Subcommands that work on the database beside the server: a file a subject. They print for people, and end with exit
//! code 1 where what they looked for is wrong.

pub mod cost;
pub mod indexes;
pub mod prices;
pub mod rollups;

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use sqlx::PgConnection;

use crate::config::DatabaseArgs;
use crate::server::{Failure, OpenDatabase, read_config};
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
