//! litespend: LiteLLM's Budget & Spend Tracking API, served from Rust.
//!
//! The map, from the top floor down; imports go down only:
//!
//! 1. [`cli`]: arguments, a file a subcommand; `serve` turns settings into a listening server, and back.
//! 2. [`http`]: requests in, answers out. `router` is all of it on one page, `routes` has the handlers, a file a resource.
//! 3. [`booking`]: usage that was measured elsewhere, booked exactly once; [`rollups`]: the task that keeps them folded;
//!    [`accounts`]: keys, teams and users without a LiteLLM.
//! 4. [`store`]: all SQL.
//! 5. [`prices`], [`json_bounds`], [`clock`], [`shutdown`].
//!
//! Two crates lie below: `litespend_pricing` (what a call costs) and `private_postgres` (the embedded database).

#![forbid(unsafe_code)]

pub mod accounts;
pub mod booking;
pub mod cli;
pub mod clock;
pub mod field_error;
pub mod http;
pub mod identity;
pub mod json_bounds;
pub mod metrics;
pub mod prices;
pub mod rollups;
pub mod route_table;
pub mod settings;
pub mod shutdown;
pub mod store;

#[cfg(test)]
#[path = "../tests/api/support/randomness.rs"]
mod randomness;
