//! Property tests of packed days: whole entries decode to the same bytes, and incomplete ones are refused.

use bytes::BufMut;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::randomness::check;

#[test]
fn any_bytes_are_whole_entries_or_an_error() {
    let rollup = select(vec![Rollup::Usage, Rollup::Customer]);
    check(2_000, (rollup, vec(any::<u8>(), 0..600)), |(rollup, bytes)| {
        let day = NaiveDate::from_ymd_opt(2026, 3, 1).unwrap();
        let mut entries = Vec::new();
        let decoded = decode(rollup, day, &bytes, &mut entries);
        prop_assert_eq!(decoded.is_ok(), bytes.len() % size(rollup) == 0);
        prop_assert_eq!(entries.len(), bytes.len() / size(rollup));
        prop_assert!(entries.capacity() <= bytes.len() / size(rollup) + 4);
        // Encoding the decoded entries gives the original bytes.
        let mut packed = Vec::new();
        for entry in &entries {
            for number in [entry.subject, entry.team, entry.api_key, entry.model] {
                packed.put_i32(number);
            }
            packed.put_i64(entry.requests);
            packed.put_f64(entry.spend);
            packed.put_i64(entry.total_tokens);
            if rollup == Rollup::Usage {
                packed.put_i64(entry.prompt_tokens);
                packed.put_i64(entry.completion_tokens);
            }
        }
        prop_assert!(entries.iter().any(|entry| entry.spend.is_nan()) || bytes.starts_with(&packed));
        Ok(())
    });
}
