//! litespend: LiteLLM's Budget & Spend Tracking API, served from Rust.
//!
//! The modules in reading order:
//!
//! 1. [`config`]: settings, from flags, the environment and LiteLLM's `config.yaml`.
//! 2. [`commands`]: the subcommands beside the server; [`server`]: from settings to a listening server, and down again; [`local_postgres`], the embedded
//!    database; [`shutdown`].
//! 3. [`app`]: the state and the one constructor of the application; [`router`]: every route, who may call it, and
//!    the layers around it.
//! 4. [`auth`], [`client_ip`]: who calls and from where; [`upstream`]: what is passed on to a LiteLLM; [`request_body`], [`body_room`], [`extract`], [`error`]: requests in, refusals out;
//!    [`reads`], [`read_limits`], [`replica`]: connections for reads; [`response_headers`], [`compression`],
//!    [`answer_room`]: how answers leave.
//! 5. [`routes`]: the handlers, a file a resource; [`json_stream`]: answers written while they are read;
//!    [`json_bounds`]: how much a text may hold; [`openapi`]: the document.
//! 6. [`usage`]: booking what was measured elsewhere; [`management`]: keys, teams and users; [`store`]: all SQL; [`pricing`]: what a call costs. The last
//!    two know neither HTTP nor each other. [`prices`]: the price table in use.
//! 7. [`folding`]: the background task that keeps the rollups folded.
//! 8. [`telemetry`], [`metrics`], [`clock`].

pub mod answer_room;
pub mod app;
pub mod auth;
pub mod body_room;
pub mod client_ip;
pub mod clock;
pub mod commands;
pub mod compression;
pub mod config;
pub mod error;
pub mod extract;
pub mod folding;
pub mod json_bounds;
pub mod json_stream;
pub mod local_postgres;
pub mod management;
pub mod metrics;
pub mod openapi;
pub mod prices;
pub mod pricing;
pub mod read_limits;
pub mod reads;
pub mod replica;
pub mod request_body;
pub mod response_headers;
pub mod router;
pub mod routes;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod ui;
pub mod upstream;
pub mod usage;

#[cfg(test)]
#[path = "../tests/api/support/randomness.rs"]
mod randomness;
