//! The background work on the rollups.

pub mod folding;
