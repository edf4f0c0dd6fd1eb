//! Books usage that was measured elsewhere. This module defines the content of a record, turns a record into a row of
//! the spend log, and contains the [`booker`], which writes each row exactly once. Errors in a record are found here,
//! before the database is involved. Such an error affects only its own record.
//!
//! | module             | owns                                                             |
//! |--------------------|------------------------------------------------------------------|
//! | `limits`           | the settings of booking, and the reasons for refusing a record   |
//! | `sent`             | the bounds of a record as it was sent, and its digest            |
//! | `record`           | a record of `POST /spend/usage`                                  |
//! | `standard_logging` | LiteLLM's `StandardLoggingPayload`                               |
//! | `log_row`          | an exported row of the spend log                                 |
//! | `archived_row`     | a row of an archive of closed days                               |
//! | `span`             | an inference span of OpenTelemetry                               |
//! | `metadata`         | reducing metadata from other systems to what can be stored       |
//! | `fields`           | the limits of single fields                                      |
//! | `price`            | the cost of a record that states none                            |
//! | `booker`           | many records in one transaction, answered after its commit       |
//! | `retention`        | deleting old ids and names                                       |
//! | `months`           | the partitions of the log                                        |
//!
//! To add another form of record, add a file that produces a [`Draft`].

pub mod archived_row;
pub mod booker;
pub mod call;
pub mod fields;
pub mod limits;
pub mod log_row;
pub mod metadata;
pub mod months;
pub mod price;
pub mod record;
pub mod retention;
pub mod sent;
pub mod span;
pub mod standard_logging;

use chrono::TimeDelta;

use crate::booking::limits::{Dates, Refusal};
use crate::identity::{Caller, MASTER_KEY_ALIAS, MASTER_USER_ID, Role};
use crate::json_bounds::ValueDigest;
use crate::settings::BookingLimits;
use crate::store::booking::UsageRow;

/// The largest number of records in one request.
pub const MAX_RECORDS: usize = 10_000;

/// A record that can be booked once the owner of its key is known.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The row. Its owner fields may be empty; see [`Draft::owner`]. Its `request_id` is the id that the record states.
    pub row: UsageRow,
    /// How the owner of the usage is determined.
    pub owner: Owner,
    /// The identity by which the record is booked only once.
    pub identity: Identity,
    /// What happens to names (models, customers, tags) that nobody has used before.
    pub new_names: NewNames,
}

/// What happens to new names. Their number is limited, by sender and day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewNames {
    /// They do not count.
    Unlimited,
    /// Beyond the limit, the record is refused. Its sender can send it again without them, or on the next day.
    Refused,
    /// Beyond the limit, the record is booked without them. Its sender would not send it again.
    LeftOut,
}

/// The identity by which a record is booked only once.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    /// None: the record states no id. Its row gets an id that nobody else knows.
    New,
    /// The id that the record states. It is unique among the records of one sender.
    Sent {
        /// The hash of the sender's key, to which the id belongs.
        sender: String,
        /// The digest of the record as it was sent.
        digest: ValueDigest,
        /// The cost in USD, if the record states it.
        stated_cost: Option<f64>,
    },
    /// The id of a row of a spend log, which is imported unchanged.
    Logged,
}

/// How the owner of the usage (user, team and organisation) is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The row states the owner.
    Given,
    /// The row's key determines the owner. An unknown key is an error.
    OfKey,
    /// The row's key, if it is known, determines the parts of the owner that the row leaves empty.
    OfKeyWhereKnown,
}

/// The booking rights of a caller.
#[derive(Clone, Debug)]
pub struct Booking<'a> {
    caller: &'a Caller,
    /// Whether the caller may state costs, keys, users and teams. True for the master key, admins, and keys with the
    /// permission `book_usage`.
    pub is_trusted: bool,
    /// The hash of the raw master key, which is stored as [`MASTER_KEY_ALIAS`].
    master_hash: &'a str,
    limits: BookingLimits,
}

impl<'a> Booking<'a> {
    /// Determines the booking rights of a caller. Returns an error for a caller that may book nothing.
    pub fn of(caller: &'a Caller, master_hash: &'a str, limits: BookingLimits) -> Result<Self, &'static str> {
        match caller.role {
            Role::AdminViewer => Err("the role proxy_admin_viewer is read-only and cannot book usage"),
            Role::InternalUserViewer => Err("the role internal_user_viewer is read-only and cannot book usage"),
            // A role that litespend does not know may be a read-only role.
            Role::Unknown if caller.user_exists => Err("users with this role cannot book usage"),
            role => {
                let is_trusted = role == Role::Admin || caller.may_book_usage;
                Ok(Self { caller, is_trusted, master_hash, limits })
            }
        }
    }

    /// The hash of the key to book for. `named` is the key that the record states: a raw key, a hash, or nothing.
    pub fn key(&self, named: Option<&str>) -> Result<String, Refusal> {
        let own_key = &self.caller.key_hash;
        let Some(named) = named.filter(|named| !named.is_empty()) else { return Ok(own_key.clone()) };
        let hash = crate::identity::key_filter(named);
        let hash = if hash == self.master_hash { MASTER_KEY_ALIAS.to_owned() } else { hash };
        if self.is_trusted || hash == *own_key {
            Ok(hash)
        } else {
            Err(Refusal::forbidden("api_key: a virtual key can book for itself only"))
        }
    }

    /// Checks whether the caller may book for this user and team, if the record names them.
    pub fn owner(&self, user: Option<&str>, team: Option<&str>) -> Result<(), Refusal> {
        for (field, named, own) in [("user", user, &self.caller.user_id), ("team", team, &self.caller.team_id)] {
            if !self.is_trusted && named.is_some() && named != own.as_deref() {
                return Err(Refusal::forbidden(format!(
                    "{field}: a virtual key can book for its own user and team only"
                )));
            }
        }
        Ok(())
    }

    /// Checks whether the caller may state the cost of a record.
    pub fn stated_cost(&self, field: &str) -> Result<(), Refusal> {
        if self.is_trusted {
            return Ok(());
        }
        Err(Refusal::forbidden(format!(
            "{field}: this key cannot set the cost, which comes from the price table: omit the field, or use a key with \
             the permission book_usage"
        )))
    }

    /// The range of dates that the caller's records may have.
    pub fn dates(&self) -> Dates {
        Dates {
            back: (!self.is_trusted).then(|| TimeDelta::days(self.limits.days_back.into())),
            ahead: TimeDelta::hours(self.limits.hours_ahead.into()),
        }
    }

    /// Checks whether a row's figures are plausible for one call.
    pub fn plausible(&self, row: &UsageRow) -> Result<(), Refusal> {
        let BookingLimits { most_spend, most_tokens, .. } = self.limits;
        if row.spend > most_spend {
            return Err(format!("cost: {} USD exceeds the limit of {most_spend} USD per record", row.spend).into());
        }
        for (field, count) in [
            ("prompt_tokens", i64::from(row.prompt_tokens)),
            ("completion_tokens", i64::from(row.completion_tokens)),
            ("total_tokens", i64::from(row.total_tokens)),
            ("cache_read_input_tokens", row.cache_read_tokens),
            ("cache_creation_input_tokens", row.cache_creation_tokens),
        ] {
            if count > most_tokens {
                return Err(format!("{field}: {count} exceeds the limit of {most_tokens} per record").into());
            }
        }
        Ok(())
    }

    /// Builds the draft of a record that a client sent.
    pub fn draft(&self, row: UsageRow, owner: Owner, identity: Option<(ValueDigest, Option<f64>)>) -> Draft {
        let identity = match identity {
            None => Identity::New,
            Some((digest, stated_cost)) => Identity::Sent { sender: self.caller.key_hash.clone(), digest, stated_cost },
        };
        let new_names = if self.is_trusted { NewNames::Unlimited } else { NewNames::Refused };
        Draft { row, owner, identity, new_names }
    }
}

/// Sets the owner of a row whose key is the master key, because the database has no row for that key. Returns how the
/// owner is determined.
pub fn owner_of(row: &mut UsageRow) -> Owner {
    if row.api_key != MASTER_KEY_ALIAS {
        return Owner::OfKey;
    }
    MASTER_USER_ID.clone_into(&mut row.user);
    Owner::Given
}
