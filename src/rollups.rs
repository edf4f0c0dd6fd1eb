//! Keeping the rollups folded.

pub mod folding;
