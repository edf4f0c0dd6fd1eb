//! Tests of the API through the router, against a real PostgreSQL: one file per resource.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../../crates/archive/tests/archive/s3_store.rs"]
mod s3_store;
mod support;

mod activity;
mod activity_sums;
mod allowed_ips;
mod authority;
mod authority_chains;
mod books;
mod books_calls;
mod books_changed;
mod books_closing;
mod books_engines;
mod books_exporters;
mod books_filters;
mod books_pages;
mod books_pages_bytes;
mod books_random;
mod books_reads;
mod books_returning;
mod books_storage;
mod books_together;
mod conformance;
mod cursors;
mod dates;
mod hostile_booking;
mod keys;
mod limits;
mod log_by_month;
mod log_export;
mod log_left_out;
mod log_pages;
mod lost_commit;
mod management;
mod metrics;
mod older_litellm;
mod openapi;
mod otlp;
mod overviews;
mod pages;
mod partitions;
mod requests;
mod robustness;
mod role_matrix;
mod rollups;
mod rollups_folding;
mod rollups_many_names;
mod rollups_schemas;
mod spend_logs;
mod spend_metrics;
mod spend_metrics_rights;
mod spend_metrics_series;
mod spend_reset;
mod spend_usage;
mod spend_usage_exactly_once;
mod store;
mod supply_chain;
mod ui;
mod upgrades;
mod upstream;
mod upstream_bytes;
