//! Binary format of packed days, layout 1: entries one after the other, big-endian, with nothing between them.
//!
//! | bytes | field | rollup |
//! |---|---|---|
//! | 4 | user or end user, as an integer ID of the dictionary `litespend.words` | both |
//! | 4 | team, likewise | both |
//! | 4 | key, likewise | both |
//! | 4 | model, likewise | both |
//! | 8 | requests, a signed integer | both |
//! | 8 | spend in USD, an IEEE 754 double | both |
//! | 8 | total tokens, a signed integer | both |
//! | 8 | prompt tokens, a signed integer | usage |
//! | 8 | completion tokens, a signed integer | usage |
//!
//! `litespend.pack` and `litespend.pack_month` write this format (migration 0007). The column `layout` of
//! `litespend.packed_days` names the format of a row. Days in another layout are read from the day tables instead.

use bytes::{Buf, TryGetError};
use chrono::NaiveDate;

use crate::store::rollups::reads::{Entry, Rollup};

/// The layout that this module decodes.
pub const LAYOUT: i16 = 1;

/// Number of bytes of one entry.
fn size(rollup: Rollup) -> usize {
    match rollup {
        Rollup::Usage => 56,
        Rollup::Customer => 40,
    }
}

/// Decodes the entries of one packed part of a day, and appends them to `entries`.
///
/// # Errors
///
/// A protocol error if the last entry is incomplete.
pub fn decode(rollup: Rollup, day: NaiveDate, mut rest: &[u8], entries: &mut Vec<Entry>) -> Result<(), sqlx::Error> {
    entries.reserve(rest.len() / size(rollup));
    while !rest.is_empty() {
        let entry = entry(rollup, day, &mut rest);
        entries.push(entry.map_err(|_| sqlx::Error::Protocol("packed day: short entry".into()))?);
    }
    Ok(())
}

fn entry(rollup: Rollup, day: NaiveDate, bytes: &mut &[u8]) -> Result<Entry, TryGetError> {
    let mut entry = Entry {
        day,
        subject: bytes.try_get_i32()?,
        team: bytes.try_get_i32()?,
        api_key: bytes.try_get_i32()?,
        model: bytes.try_get_i32()?,
        requests: bytes.try_get_i64()?,
        spend: bytes.try_get_f64()?,
        total_tokens: bytes.try_get_i64()?,
        ..Entry::default()
    };
    if rollup == Rollup::Usage {
        entry.prompt_tokens = bytes.try_get_i64()?;
        entry.completion_tokens = bytes.try_get_i64()?;
    }
    Ok(entry)
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are those that PostgreSQL produces. `rollups::packed_days_have_the_golden_bytes` packs the same rows
    /// again.
    #[test]
    fn the_golden_bytes_are_read() {
        let bytes: Vec<u8> = [1_i32, 2, 3, -4]
            .into_iter()
            .flat_map(i32::to_be_bytes)
            .chain(5_i64.to_be_bytes())
            .chain([0x3f, 0xc0, 0, 0, 0, 0, 0, 0])
            .chain([6_i64, 7, 8].into_iter().flat_map(i64::to_be_bytes))
            .collect();
        let day = NaiveDate::from_ymd_opt(2026, 3, 1).expect("a day");
        let mut entries = Vec::new();
        decode(Rollup::Usage, day, &bytes, &mut entries).expect("whole");
        let [entry] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((entry.subject, entry.team, entry.api_key, entry.model, entry.requests), (1, 2, 3, -4, 5));
        assert_eq!((entry.spend, entry.total_tokens, entry.prompt_tokens, entry.completion_tokens), (0.125, 6, 7, 8));
        entries.clear();
        decode(Rollup::Customer, day, &bytes[..40], &mut entries).expect("whole");
        assert_eq!((entries[0].spend, entries[0].total_tokens, entries[0].prompt_tokens), (0.125, 6, 0));
    }
}
