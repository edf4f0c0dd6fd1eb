//! Maps a model's name to its provider and to its entry in the price table.

pub(crate) mod bedrock;
pub(crate) mod catalog;
pub(crate) mod lookup;
pub(crate) mod provider;
pub(crate) mod provider_lists;
pub(crate) mod size_class;
