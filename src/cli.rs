//! The command line, with one file per subcommand. The output is written for people. Exit code 1 means that something
//! failed; exit code 2 means that a setting is wrong.

pub mod archive;
pub mod args;
mod background;
pub mod booking;
pub mod books;
pub mod cost;
pub mod dashboard_export;
pub mod database;
pub mod demo;
pub mod demo_data;
pub mod import;
pub mod indexes;
pub mod keys;
pub mod log;
pub mod master_key;
pub mod metrics_reference;
pub mod output;
pub mod prices;
pub mod rollups;
pub mod serve;
pub mod table;
pub mod teams;
pub mod upgrade_database;
pub mod users;

use clap::{Parser, Subcommand};

use crate::cli::args::{DatabaseArgs, HealthcheckArgs, ServeArgs};

/// LiteLLM's Budget & Spend Tracking API, served from Rust.
#[derive(Debug, Parser)]
#[command(name = "litespend", version, about, propagate_version = true)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `litespend`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API.
    Serve(Box<ServeArgs>),
    /// Bring the database up to date and exit.
    Migrate(DatabaseArgs),
    /// Move the private PostgreSQL's data to a newer version of PostgreSQL.
    UpgradeDatabase(upgrade_database::UpgradeDatabaseArgs),
    /// Virtual keys: create, list, block, unblock, delete.
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Teams: create, list.
    #[command(subcommand)]
    Team(teams::TeamCommand),
    /// Users: create, list.
    #[command(subcommand)]
    User(users::UserCommand),
    /// Booking into LiteLLM's database: install, remove, status.
    #[command(subcommand)]
    Booking(booking::BookingCommand),
    /// Book rows of a spend log from files: JSON, JSON lines or CSV.
    Import(import::ImportArgs),
    /// Fill an empty database with a month of made-up usage.
    #[command(hide = true)]
    DemoData(demo_data::DemoDataArgs),
    /// Rollups of LiteLLM's database: install, watch, compare, remove.
    #[command(subcommand)]
    Rollups(rollups::RollupsCommand),
    /// The spend log of litespend's own database: partition it by month, show its partitions.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Closed days: close, show, compare, remove their rows from the log, reopen.
    #[command(subcommand)]
    Books(books::BooksCommand),
    /// The archive of closed days: read it with other engines.
    #[command(subcommand)]
    Archive(archive::ArchiveCommand),
    /// Indexes for LiteLLM's database: advise, install, remove.
    #[command(subcommand)]
    Indexes(indexes::IndexesCommand),
    /// Price tables: compare a newer one with the built-in one.
    #[command(subcommand)]
    Prices(prices::PricesCommand),
    /// Price a call.
    Cost(cost::CostArgs),
    /// Print the OpenAPI document (YAML).
    Openapi,
    /// Print the reference of all metrics (Markdown).
    MetricsReference,
    /// Ask a running server whether it is ready. The exit code is 0 or 1.
    Healthcheck(HealthcheckArgs),
}
