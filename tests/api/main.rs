//! Tests of the API through the router, against real PostgreSQL: a file a resource.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

mod conformance;
mod management;
mod rollups;
mod spend_usage;
mod spend_usage_exactly_once;
