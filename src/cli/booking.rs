//! `litespend booking`: whether usage may be booked into a database that LiteLLM owns. Its log's ids are one namespace
//! with LiteLLM's own rows, so nobody books there unless somebody says so, and then only keys that may state costs. A
//! database of our own is booked into from the start.

use anyhow::{Context, anyhow};
use clap::Subcommand;

use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::with_connection;
use crate::store::Connection;
use crate::store::booking::ids;
use crate::store::booking::ids::Access;
use crate::store::database;
use crate::store::database::DatabaseKind;
use crate::store::rollups;

/// What to do about booking.
#[derive(Debug, Subcommand)]
pub enum BookingCommand {
    /// Let usage be booked into LiteLLM's database: adds the schema litespend with the table of booked ids.
    Install(DatabaseArgs),
    /// End it and forget all ids. What was booked stays; the schema goes, unless rollups are in it.
    Remove(DatabaseArgs),
    /// Say whether usage may be booked.
    Status(DatabaseArgs),
}

/// Runs a subcommand.
pub fn run(command: BookingCommand) -> Result<(), Failure> {
    match command {
        BookingCommand::Install(args) => {
            with_connection(&args, async |mut connection, kind| install(&mut connection, kind).await)
        }
        BookingCommand::Remove(args) => {
            with_connection(&args, async |mut connection, kind| remove(&mut connection, kind).await)
        }
        BookingCommand::Status(args) => {
            with_connection(&args, async |mut connection, _| print_status(&mut connection).await)
        }
    }
}

/// Lets this schema be booked into.
pub async fn install(connection: &mut Connection, kind: DatabaseKind) -> Result<(), Failure> {
    if kind == DatabaseKind::LiteLlm {
        database::migrate_schema(connection).await.context("the schema litespend cannot be made")?;
        if !ids::install(connection).await.context("booking cannot be installed")? {
            return Err(Failure::Setting(anyhow!("booking is installed for another schema of this database")));
        }
    }
    println!("usage can be booked");
    Ok(())
}

/// Takes it back.
pub async fn remove(connection: &mut Connection, kind: DatabaseKind) -> Result<(), Failure> {
    if kind == DatabaseKind::Own {
        return Err(Failure::Setting(anyhow!("this database is litespend's own: booking belongs to it")));
    }
    ids::remove(connection).await.context("booking cannot be removed now; try again")?;
    if !rollups::attached(connection).await.context("the rollups cannot be looked at")? {
        rollups::remove(connection).await.context("the schema cannot be removed now; try again")?;
    }
    println!("removed: usage can't be booked any more");
    Ok(())
}

async fn print_status(connection: &mut Connection) -> Result<(), Failure> {
    match ids::access(connection).await.context("booking cannot be looked at")? {
        Access::NotInstalled => {
            println!("usage can't be booked: `litespend booking install` lets it");
            return Ok(());
        }
        Access::Installed => println!("usage can be booked by keys with the permission book_usage"),
        Access::Own => println!("usage can be booked"),
    }
    let (count, bytes) = ids::size(connection).await.context("no size")?;
    println!("ids remembered  about {count}");
    println!("size            {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}
