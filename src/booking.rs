//! Booking usage that was measured elsewhere. Owns what a record may hold and how it becomes a row of the log, and
//! the [`booker`] that writes rows exactly once. What is wrong with a record is found here, before the database is
//! asked, and is an error of that record alone.
//!
//! | module             | owns                                                             |
//! |--------------------|------------------------------------------------------------------|
//! | `limits`           | the settings of booking, and why a record is refused             |
//! | `sent`             | bounds of a record as it was sent, and its digest                |
//! | `record`           | a record of `POST /spend/usage`                                  |
//! | `standard_logging` | LiteLLM's `StandardLoggingPayload`                               |
//! | `log_row`          | a row of the spend log, as it is exported                        |
//! | `metadata`         | metadata that others wrote, made fit to be stored                |
//! | `fields`           | the limits of single fields                                      |
//! | `price`            | the cost of a record that brings none                            |
//! | `booker`           | many records in one transaction, answered after its commit       |
//! | `retention`        | forgetting ids and names that are old                            |
//!
//! A new form of record gets a file that ends in a [`Draft`].

pub mod booker;
pub mod fields;
pub mod limits;
pub mod log_row;
pub mod metadata;
pub mod price;
pub mod record;
pub mod retention;
pub mod sent;
pub mod standard_logging;

use chrono::TimeDelta;

use crate::booking::limits::{Dates, Refusal};
use crate::identity::{Caller, MASTER_KEY_ALIAS, MASTER_USER_ID, Role};
use crate::json_bounds::ValueDigest;
use crate::settings::BookingLimits;
use crate::store::booking::UsageRow;

/// The most records in one request.
pub const MOST_RECORDS: usize = 10_000;

/// A record that can be booked once its key's owner is known.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The row, whose owner is empty where [`Draft::owner`] says so. Its `request_id` is the id that the record names.
    pub row: UsageRow,
    /// To whom the usage belongs.
    pub owner: Owner,
    /// What makes the record itself.
    pub identity: Identity,
    /// Whether names that nobody used before are counted against the sender's bound of the day.
    pub names_are_counted: bool,
}

/// What makes a record itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    /// Nothing: the record named no id, and its row has one that nobody else knows.
    New,
    /// The id that the record names, among those of one sender.
    Sent {
        /// Whose ids these are: the sender's key, by its hash.
        sender: String,
        /// Of what was sent.
        digest: ValueDigest,
        /// USD, where the record states it.
        stated_cost: Option<f64>,
    },
    /// The id of a row of a log, which is taken over as it stands there.
    Logged,
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

/// For whom a caller may book, and how.
#[derive(Clone, Debug)]
pub struct Booking<'a> {
    caller: &'a Caller,
    /// Whether costs, keys, users and teams are taken as they are stated: the master key, admins, and keys with the
    /// permission `book_usage`.
    pub is_trusted: bool,
    /// The raw master key's hash, which stands for [`MASTER_KEY_ALIAS`].
    master_hash: &'a str,
    limits: BookingLimits,
}

impl<'a> Booking<'a> {
    /// What a caller may do; an error for those who may book nothing.
    pub fn of(caller: &'a Caller, master_hash: &'a str, limits: BookingLimits) -> Result<Self, &'static str> {
        match caller.role {
            Role::AdminViewer => Err("proxy_admin_viewer sees everything and changes nothing: it can't book usage"),
            Role::InternalUserViewer => Err("internal_user_viewer only looks: it can't book usage"),
            // A role that litespend does not know may be one that only looks.
            Role::Unknown if caller.user_exists => Err("users of this role can't book usage"),
            role => {
                let is_trusted = role == Role::Admin || caller.may_book_usage;
                Ok(Self { caller, is_trusted, master_hash, limits })
            }
        }
    }

    /// The hash of the key to book for, given what a record names: a raw key, a hash, or nothing.
    pub fn key(&self, named: Option<&str>) -> Result<String, Refusal> {
        let own_key = &self.caller.key_hash;
        let Some(named) = named.filter(|named| !named.is_empty()) else { return Ok(own_key.clone()) };
        let hash = crate::identity::key_filter(named);
        let hash = if hash == self.master_hash { MASTER_KEY_ALIAS.to_owned() } else { hash };
        if self.is_trusted || hash == *own_key {
            Ok(hash)
        } else {
            Err(Refusal::forbidden("api_key: a virtual key books for itself only"))
        }
    }

    /// Whether the caller may book for this user and team, where a record names them.
    pub fn owner(&self, user: Option<&str>, team: Option<&str>) -> Result<(), Refusal> {
        for (field, named, own) in [("user", user, &self.caller.user_id), ("team", team, &self.caller.team_id)] {
            if !self.is_trusted && named.is_some() && named != own.as_deref() {
                return Err(Refusal::forbidden(format!("{field}: a virtual key books for its own user and team only")));
            }
        }
        Ok(())
    }

    /// Whether the caller may state what a record cost.
    pub fn stated_cost(&self, field: &str) -> Result<(), Refusal> {
        if self.is_trusted {
            return Ok(());
        }
        Err(Refusal::forbidden(format!(
            "{field}: this key books at the price table's cost: leave it out, or use a key with the permission book_usage"
        )))
    }

    /// The dates that the caller's records may have.
    pub fn dates(&self) -> Dates {
        Dates {
            back: (!self.is_trusted).then(|| TimeDelta::days(self.limits.days_back.into())),
            ahead: TimeDelta::hours(self.limits.hours_ahead.into()),
        }
    }

    /// Whether a row's figures are those of one call.
    pub fn plausible(&self, row: &UsageRow) -> Result<(), Refusal> {
        let BookingLimits { most_spend, most_tokens, .. } = self.limits;
        if row.spend > most_spend {
            return Err(format!("cost: {} USD is more than one record may cost ({most_spend} USD)", row.spend).into());
        }
        for (field, count) in [
            ("prompt_tokens", i64::from(row.prompt_tokens)),
            ("completion_tokens", i64::from(row.completion_tokens)),
            ("total_tokens", i64::from(row.total_tokens)),
            ("cache_read_input_tokens", row.cache_read_tokens),
            ("cache_creation_input_tokens", row.cache_creation_tokens),
        ] {
            if count > most_tokens {
                return Err(format!("{field}: {count} is more than one record may have ({most_tokens})").into());
            }
        }
        Ok(())
    }

    /// A draft of a record that was sent.
    pub fn draft(&self, row: UsageRow, owner: Owner, identity: Option<(ValueDigest, Option<f64>)>) -> Draft {
        let identity = match identity {
            None => Identity::New,
            Some((digest, stated_cost)) => Identity::Sent { sender: self.caller.key_hash.clone(), digest, stated_cost },
        };
        Draft { row, owner, identity, names_are_counted: !self.is_trusted }
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
