//! litespend: LiteLLM's Budget & Spend Tracking API, served from Rust.
//!
//! The map, from the top floor down. A module imports from lower floors only; `tests/layout.rs` checks that.
//!
//! 1. [`cli`]: the command line, a file a subcommand. `serve` turns settings into a listening server, and stops it.
//! 2. [`http`]: requests in, answers out. `routes` has the handlers, a file a resource; `router` shows the layers around
//!    them on one page.
//! 3. [`booking`] books usage that was measured elsewhere, exactly once. [`rollups`] is the background task that folds
//!    changes of the log into the rollups. [`books`] closes days: their totals stay, and their rows go into an archive.
//!    [`accounts`] makes keys, teams and users where there is no LiteLLM.
//! 4. [`store`]: all SQL, a file a resource.
//! 5. [`prices`]: the price table in use and its refresh. [`otlp`]: what OpenTelemetry's traces say of calls to models.
//! 6. [`settings`]: the settings of a running server. [`identity`]: roles, callers, keys, and which rows a caller may see.
//! 7. [`route_table`]: every route, and who may call it. [`metrics`], [`json_bounds`], [`field_error`], [`clock`],
//!    [`shutdown`].
//!
//! Three crates lie below: `litespend_pricing` (what a call costs), `litespend_archive` (closed days as Parquet files) and
//! `private_postgres` (the embedded database).

#![forbid(unsafe_code)]

pub mod accounts;
pub mod booking;
pub mod books;
pub mod cli;
pub mod clock;
pub mod field_error;
pub mod http;
pub mod identity;
pub mod json_bounds;
pub mod metrics;
pub mod otlp;
pub mod prices;
pub mod rollups;
pub mod route_table;
pub mod settings;
pub mod shutdown;
pub mod spend_metrics;
pub mod store;

#[cfg(test)]
#[path = "../tests/api/support/randomness.rs"]
mod randomness;
