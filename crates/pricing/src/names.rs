//! Maps a model's name to its provider and to its entry in the price table.

pub mod bedrock;
pub mod catalog;
pub mod lookup;
pub mod provider;
pub mod provider_lists;
pub mod size_class;
