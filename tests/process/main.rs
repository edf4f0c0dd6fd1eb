//! Tests of the program as a process: its output, its refusals, how it stops, and which failures it survives.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../api/support/answers.rs"]
mod answers;
mod certificates;
#[path = "../api/support/cluster.rs"]
mod cluster;
#[path = "../api/support/place.rs"]
mod place;
#[path = "../api/support/sums.rs"]
mod sums;
mod support;

mod archive_import;
mod archive_tls;
mod booking;
mod books;
mod books_server;
mod database_away;
mod database_urls;
mod demo;
mod exactly_once;
mod http2;
mod log_partition;
mod logging;
mod memory;
mod memory_ceiling;
mod prices;
mod replica;
mod rollups;
mod secrets;
mod slow_clients;
mod slow_readers;
mod sockets;
mod stalled_log;
mod startup;
mod stopping;
mod subcommands;
mod tls;
mod unread_output;
mod upgrade_database;
mod weak_master_key;
