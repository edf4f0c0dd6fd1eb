//! Property tests of PostgreSQL's binary rows: rows decode to the original entries, and anything else is refused.

use bytes::BufMut;
use chrono::{NaiveDate, TimeDelta};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::randomness::check;

/// Day 0 of PostgreSQL's calendar.
const EPOCH: NaiveDate = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap();

fn entry() -> impl Strategy<Value = Entry> {
    let counts = (any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>());
    let spend = prop_oneof![any::<f64>(), Just(0.5)].prop_filter("compares with itself", |spend| !spend.is_nan());
    ((-700_000..2_000_000_i32), any::<[i32; 4]>(), spend, counts).prop_map(
        |(
            number,
            [subject, team, api_key, model],
            spend,
            (prompt_tokens, completion_tokens, total_tokens, requests),
        )| {
            let day = EPOCH + TimeDelta::days(i64::from(number));
            Entry {
                day,
                subject,
                team,
                api_key,
                model,
                spend,
                prompt_tokens,
                completion_tokens,
                total_tokens,
                requests,
            }
        },
    )
}

fn header(extension: &[u8]) -> Vec<u8> {
    let mut header = b"PGCOPY\n\xff\r\n\0\0\0\0\0".to_vec();
    header.put_u32(extension.len() as u32);
    header.extend(extension);
    header
}

fn row(rollup: Rollup, entry: &Entry) -> Vec<u8> {
    let mut row = Vec::new();
    row.put_i16(if rollup == Rollup::Usage { 10 } else { 8 });
    let day = i32::try_from((entry.day - EPOCH).num_days()).unwrap();
    for number in [day, entry.subject, entry.team, entry.api_key, entry.model] {
        row.put_i32(4);
        row.put_i32(number);
    }
    let mut counts = vec![entry.requests, entry.spend.to_bits().cast_signed(), entry.total_tokens];
    if rollup == Rollup::Usage {
        counts.extend([entry.prompt_tokens, entry.completion_tokens]);
    }
    for number in counts {
        row.put_i32(8);
        row.put_i64(number);
    }
    row
}

fn read(rollup: Rollup, messages: &[Vec<u8>]) -> Result<Vec<Entry>, sqlx::Error> {
    let (mut reader, mut entries) = (CopyReader::new(rollup), Vec::new());
    for message in messages {
        reader.read(message, &mut entries)?;
    }
    Ok(entries)
}

fn rollup() -> impl Strategy<Value = Rollup> {
    select(vec![Rollup::Usage, Rollup::Customer])
}

#[test]
fn entries_come_back_and_a_row_cut_off_is_an_error() {
    let rows = vec((entry(), any::<bool>()), 1..8);
    check(750, (rollup(), rows, vec(any::<u8>(), 0..9), any::<Index>()), |(rollup, rows, extension, cut)| {
        // PostgreSQL sends one or more whole rows in a message. The first message starts with the header.
        let mut messages = vec![header(&extension)];
        let mut expected = Vec::new();
        for (entry, apart) in &rows {
            if *apart {
                messages.push(Vec::new());
            }
            messages.last_mut().unwrap().extend(row(rollup, entry));
            let (mut prompt_tokens, mut completion_tokens) = (entry.prompt_tokens, entry.completion_tokens);
            if rollup == Rollup::Customer {
                (prompt_tokens, completion_tokens) = (0, 0);
            }
            expected.push(Entry { prompt_tokens, completion_tokens, ..*entry });
        }
        let whole: Vec<_> = messages.iter().cloned().chain([vec![0xff, 0xff]]).collect();
        prop_assert_eq!(format!("{:?}", read(rollup, &whole).unwrap()), format!("{expected:?}"));
        // Rows of the other rollup are refused.
        let other = if rollup == Rollup::Usage { Rollup::Customer } else { Rollup::Usage };
        prop_assert!(read(other, &whole).is_err());
        // The last row is cut off in the middle.
        let last = messages.last_mut().unwrap();
        let length = row(rollup, &rows.last().unwrap().0).len();
        last.truncate(last.len() - 1 - cut.index(length - 1));
        prop_assert!(read(rollup, &messages).is_err());
        Ok(())
    });
}

#[test]
fn any_bytes_are_rows_or_an_error_and_never_more_than_they_can_be() {
    let message = prop_oneof![
        vec(any::<u8>(), 0..120),
        (vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..120))
            .prop_map(|(extension, rest)| [header(&extension), rest].concat()),
        (entry(), any::<Index>(), any::<u8>()).prop_map(|(entry, at, byte)| {
            let mut message = [header(&[]), row(Rollup::Usage, &entry)].concat();
            let at = at.index(message.len());
            message[at] = byte;
            message
        }),
    ];
    check(2_000, (rollup(), vec(message, 1..4)), |(rollup, messages)| {
        if let Ok(entries) = read(rollup, &messages) {
            let bytes: usize = messages.iter().map(Vec::len).sum();
            prop_assert!(entries.len() * 82 <= bytes, "{} entries of {bytes} bytes", entries.len());
        }
        Ok(())
    });
}

#[test]
fn a_null_or_a_field_of_another_size_is_an_error() {
    let wrong = select(vec![-1_i32, 0, 2, 5, 16, i32::MAX, i32::MIN]);
    check(500, (rollup(), entry(), any::<Index>(), wrong), |(rollup, entry, field, wrong)| {
        let mut message = [header(&[]), row(rollup, &entry)].concat();
        let field = field.index(if rollup == Rollup::Usage { 10 } else { 8 });
        let at = 19 + 2 + if field < 5 { field * 8 } else { 40 + (field - 5) * 12 };
        message[at..at + 4].copy_from_slice(&wrong.to_be_bytes());
        prop_assert!(read(rollup, &[message]).is_err());
        Ok(())
    });
}
