//! Timestamps of LiteLLM's tables. Its own migrations make them `timestamp` columns, which hold UTC. Some databases have
//! `timestamptz` columns instead, and both are read alike: the sessions of this server are in UTC.

use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Type, TypeInfo, ValueRef};

/// A timestamp in UTC, from a column of either type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UtcTimestamp(pub NaiveDateTime);

/// Decodes a value of either type.
pub(super) fn decode(value: PgValueRef<'_>) -> Result<NaiveDateTime, BoxDynError> {
    if value.type_info().name() == <DateTime<Utc> as Type<Postgres>>::type_info().name() {
        return Ok(<DateTime<Utc> as Decode<Postgres>>::decode(value)?.naive_utc());
    }
    <NaiveDateTime as Decode<Postgres>>::decode(value)
}

/// Whether [`decode`] can read the type.
pub(super) fn is_compatible(info: &PgTypeInfo) -> bool {
    <NaiveDateTime as Type<Postgres>>::compatible(info) || <DateTime<Utc> as Type<Postgres>>::compatible(info)
}

/// Lets a wrapper of `NaiveDateTime` be read from a column of either type.
macro_rules! read_from_either_type {
    ($name:ident) => {
        impl sqlx::Type<sqlx::Postgres> for $name {
            fn type_info() -> sqlx::postgres::PgTypeInfo {
                <chrono::NaiveDateTime as sqlx::Type<sqlx::Postgres>>::type_info()
            }

            fn compatible(info: &sqlx::postgres::PgTypeInfo) -> bool {
                $crate::store::utc::is_compatible(info)
            }
        }

        impl sqlx::Decode<'_, sqlx::Postgres> for $name {
            fn decode(value: sqlx::postgres::PgValueRef<'_>) -> Result<Self, sqlx::error::BoxDynError> {
                $crate::store::utc::decode(value).map(Self)
            }
        }
    };
}
pub(super) use read_from_either_type;

read_from_either_type!(UtcTimestamp);
