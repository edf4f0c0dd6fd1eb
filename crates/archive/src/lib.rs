//! Closed days of LiteLLM's spend log as Parquet files, in a directory or an object store.
//!
//! [`Archive`] is the entry. The README has an example, and describes what is stored and what is checked.
//!
//! | question | answer |
//! |---|---|
//! | write a day | [`Archive::write_day`], [`DayWriter::push`], [`DayWriter::finish`], [`Prepared::verify`], [`Archive::commit`], [`Archive::publish`] |
//! | read rows | [`Archive::scan`] with a [`Query`], [`Archive::row`] |
//! | which days may have an id | [`Archive::find`], faster after [`Archive::compact_months`] |
//! | is everything as it was written | [`Archive::verify_day`], [`Archive::damaged`], [`Archive::clear_damage`] |
//! | days and their revisions | [`Archive::days`], [`Archive::manifest`], [`Archive::remove_superseded`], [`Archive::delete_day`] |
//! | other engines | [`Archive::schema`], [`Archive::publish`], [`Archive::hide`], [`Archive::day_files`] |

#![forbid(unsafe_code)]

mod archive;
mod blocks;
mod columns;
mod commit;
mod connector;
mod content;
mod damage;
mod delete;
mod engines;
mod error;
mod find;
mod format;
mod ids;
mod listing;
mod location;
mod manifest;
mod part;
mod publish;
mod row;
mod scan;
mod store;
mod sums;
mod upload;
mod verify;
mod write;

pub use crate::archive::{Archive, Options};
pub use crate::columns::{Column, LogRow, OwnedRow, SCHEMA_VERSION};
pub use crate::commit::Prepared;
pub use crate::engines::Engine;
pub use crate::error::{Error, Result};
pub use crate::ids::IdKind;
pub use crate::listing::DayFiles;
pub use crate::manifest::{Manifest, Part, StoredObject};
pub use crate::row::RowView;
pub use crate::scan::{Order, Query, RowPredicate};
pub use crate::sums::Sums;
pub use crate::write::DayWriter;

/// The example of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
