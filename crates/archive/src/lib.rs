//! Closed days of LiteLLM's spend log as Parquet files, in a directory or an object store.

#![forbid(unsafe_code)]

mod archive;
mod blocks;
mod columns;
mod connector;
mod content;
mod damage;
mod engines;
mod error;
mod find;
mod format;
mod ids;
mod location;
mod manifest;
mod part;
mod row;
mod scan;
mod store;
mod sums;
mod upload;
mod verify;
mod write;

pub use crate::archive::{Archive, Options};
pub use crate::columns::{Column, LogRow, OwnedRow, SCHEMA_VERSION};
pub use crate::engines::Engine;
pub use crate::error::{Error, Result};
pub use crate::ids::IdKind;
pub use crate::manifest::{Manifest, Part, StoredObject};
pub use crate::row::RowView;
pub use crate::scan::{Order, Query, RowPredicate};
pub use crate::sums::Sums;
pub use crate::write::{DayWriter, Prepared};
