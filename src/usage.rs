//! Booking usage that was measured elsewhere. Owns what a record may hold and how it becomes a row of the log, and
//! the [`booker`] that writes rows exactly once. What is wrong with a record is found here, before the database is
//! asked, and is an error of that record alone.
//!
//! | module             | owns                                                             |
//! |--------------------|------------------------------------------------------------------|
//! | `record`           | a record of `POST /spend/usage`                                  |
//! | `standard_logging` | LiteLLM's `StandardLoggingPayload`                               |
//! | `log_row`          | a row of the spend log, as it is exported                        |
//! | `fields`           | the limits of single fields                                      |
//! | `price`            | the cost of a record that brings none                            |
//! | `booker`           | many records in one transaction, answered after its commit       |
//!
//! A new form of record gets a file that ends in a [`Draft`].

pub mod booker;
pub mod fields;
pub mod log_row;
pub mod price;
pub mod record;
pub mod standard_logging;

use crate::auth::{Caller, MASTER_KEY_ALIAS, MASTER_USER_ID, Role};
use crate::store::usage::UsageRow;

/// The most records in one request.
pub const MOST_RECORDS: usize = 10_000;

/// A record that can be booked once its key's owner is known.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The row, whose owner is empty where [`Draft::owner`] says so.
    pub row: UsageRow,
    /// To whom the usage belongs.
    pub owner: Owner,
}

/// To whom usage belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The row says it.
    Given,
    /// The row's key says it; a key that never was is an error.
    OfKey,
    /// What the row leaves empty, its key says, if it is known.
    OfKeyWhereKnown,
}

/// For whom a caller may book.
#[derive(Clone, Debug)]
pub struct Booking<'a> {
    /// Key that is booked for where a record names none.
    pub own_key: &'a str,
    /// Whether every key may be booked for.
    pub any_key: bool,
    /// The raw master key's hash, which stands for [`MASTER_KEY_ALIAS`].
    pub master_hash: &'a str,
}

impl<'a> Booking<'a> {
    /// What a caller may do; `None` for those who may change nothing.
    pub fn of(caller: &'a Caller, master_hash: &'a str) -> Option<Self> {
        (caller.role != Role::AdminViewer).then(|| Self {
            own_key: &caller.key_hash,
            any_key: caller.role == Role::Admin,
            master_hash,
        })
    }

    /// The hash of the key to book for, given what a record names: a raw key, a hash, or nothing.
    pub fn key(&self, named: Option<&str>) -> Result<String, String> {
        let Some(named) = named.filter(|named| !named.is_empty()) else { return Ok(self.own_key.to_owned()) };
        let hash = crate::auth::key_filter(named);
        let hash = if hash == self.master_hash { MASTER_KEY_ALIAS.to_owned() } else { hash };
        if self.any_key || hash == self.own_key {
            Ok(hash)
        } else {
            Err("api_key: a virtual key books for itself only".to_owned())
        }
    }
}

/// Completes a row whose key is the master key, which has no row of its own; returns who owns the others.
pub fn owner_of(row: &mut UsageRow) -> Owner {
    if row.api_key != MASTER_KEY_ALIAS {
        return Owner::OfKey;
    }
    MASTER_USER_ID.clone_into(&mut row.user);
    Owner::Given
}
