//! `litespend booking`: whether usage may be booked into a database that LiteLLM owns. Booked records and LiteLLM's own
//! rows share one namespace of ids in the log. Booking is therefore off until an operator installs it, and then only
//! keys that may state costs can book. On litespend's own database, booking is always possible.

use anyhow::{Context, anyhow};
use clap::Subcommand;

use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::with_connection;
use crate::cli::output::say;
use crate::store::Connection;
use crate::store::booking::ids;
use crate::store::booking::ids::Access;
use crate::store::booking::tables::Tables;
use crate::store::database;
use crate::store::database::DatabaseKind;
use crate::store::rollups;

/// The subcommands of `booking`.
#[derive(Debug, Subcommand)]
pub enum BookingCommand {
    /// Allow booking into LiteLLM's database. Adds the schema litespend with the table of booked ids.
    Install(DatabaseArgs),
    /// Disallow booking and delete all ids. Booked records stay. The schema is removed, unless it contains rollups.
    Remove(DatabaseArgs),
    /// Print whether usage may be booked.
    Status(DatabaseArgs),
}

/// Runs a subcommand of `booking`.
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

/// Allows booking into the schema of the search path.
pub async fn install(connection: &mut Connection, kind: DatabaseKind) -> Result<(), Failure> {
    if kind == DatabaseKind::LiteLlm {
        database::migrate_schema(connection).await.context("cannot create the schema litespend")?;
        if !ids::install(connection).await.context("cannot install booking")? {
            return Err(elsewhere());
        }
    }
    say!("usage can be booked");
    let tables = Tables::find(connection).await.context("cannot read the tables")?;
    let missing: Vec<&str> = tables.missing().collect();
    if !missing.is_empty() {
        say!("LiteLLM's tables are older than what is booked. These columns are left out: {}", missing.join(", "));
    }
    Ok(())
}

fn elsewhere() -> Failure {
    Failure::Setting(anyhow!("booking is installed for another schema of this database"))
}

/// Disallows booking into the schema of the search path. Removes the schema `litespend` if nothing else uses it: no
/// rollups, of whichever schema.
pub async fn remove(connection: &mut Connection, kind: DatabaseKind) -> Result<(), Failure> {
    if kind == DatabaseKind::Own {
        return Err(Failure::Setting(anyhow!("this database is litespend's own: booking cannot be removed from it")));
    }
    if !ids::remove(connection).await.context("cannot remove booking now; try again")? {
        return Err(elsewhere());
    }
    let attached = rollups::attached(connection).await.context("cannot read the state of the rollups")?;
    let elsewhere = rollups::installed_elsewhere(connection).await.context("cannot read the state of the rollups")?;
    let lost = rollups::lost(connection).await.context("cannot read the state of the rollups")?;
    if !attached && elsewhere.is_none() && lost.is_none() {
        rollups::remove(connection).await.context("cannot remove the schema now; try again")?;
    }
    say!("removed: usage can no longer be booked");
    Ok(())
}

async fn print_status(connection: &mut Connection) -> Result<(), Failure> {
    match ids::access(connection).await.context("cannot read the state of booking")? {
        Access::NotInstalled => {
            say!("usage cannot be booked: run `litespend booking install` to enable booking");
            return Ok(());
        }
        Access::Installed => say!("usage can be booked by keys with the permission book_usage"),
        Access::Own => say!("usage can be booked"),
    }
    let (count, bytes) = ids::size(connection).await.context("no size")?;
    say!("ids remembered  about {count}");
    say!("size            {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}
