//! Archives in directories and behind HTTP, with everything that can go wrong.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod damage;
mod days;
mod find;
mod lies;
mod s3;
mod s3_store;
mod scan;
mod support;
