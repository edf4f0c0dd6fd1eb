//! Tests files of all kinds: every good line becomes a row with its line number, every bad line is reported, and a bad
//! line ends the import only if it breaks the format of the file.

use std::io::Write;

use chrono::Utc;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::*;
use crate::booking::log_row;
use crate::randomness::check;

type Read = (u64, Result<Map<String, Value>, String>);

/// The rows of a file with this content, and whether the file was read to its end.
fn read(content: &[u8]) -> (Vec<Read>, bool) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let mut found = Vec::new();
    let mut rows = Rows::open(file.path(), Arc::default()).unwrap();
    let done = rows.for_each(&mut |number, text, row| {
        assert!(text().len() <= 3 * content.len() + 3);
        // A row that is not a row of the log is an error; nothing panics.
        if let Ok(row) = &row {
            let _ = log_row::into_draft(row.clone(), Utc::now());
        }
        found.push((number, row));
        Ok(())
    });
    (found, done.is_ok())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        select(vec![
            "2026-03-01T10:00:00Z",
            "2026-03-01 10:00:00.5",
            "9999-99-99",
            "{",
            "[\"x\"]",
            "{\"a\":1}",
            "1e999",
            "-1"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec(("[a-z]{1,4}", inner), 0..4).prop_map(|fields| { Value::Object(fields.into_iter().collect()) })
        ]
    })
}

fn row() -> impl Strategy<Value = Map<String, Value>> {
    let names = vec![
        "request_id",
        "startTime",
        "endTime",
        "spend",
        "metadata",
        "request_tags",
        "total_tokens",
        "user",
        "x",
        "",
    ];
    vec((select(names), value()), 0..8)
        .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

#[test]
fn good_lines_among_bad_ones_are_rows_with_their_numbers() {
    let bad =
        prop_oneof!["[^\n\u{feff}{]{1,30}", Just("{\"a\":".to_owned()), Just("[1]".to_owned()), Just("7".to_owned())]
            .prop_filter("says something", |text| {
                !text.trim().is_empty() && serde_json::from_str::<Map<String, Value>>(text).is_err()
            });
    let line = prop_oneof![3 => row().prop_map(Ok), 1 => bad.prop_map(Err), 1 => Just(Err(String::new()))];
    check(300, (row(), vec(line, 0..12), any::<bool>(), any::<bool>()), |(first, lines, packed, mark)| {
        let mut content = if mark { "\u{feff}".to_owned() } else { String::new() };
        let (mut expected, mut bad) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(std::iter::once(Ok(first)).chain(lines)) {
            match line {
                Ok(row) => {
                    content.push_str(&Value::Object(row.clone()).to_string());
                    expected.push((number, row));
                }
                Err(text) => {
                    content.push_str(&text);
                    if !text.is_empty() {
                        bad.push(number);
                    }
                }
            }
            content.push('\n');
        }
        let content = if packed { gzip(content.as_bytes()) } else { content.into_bytes() };
        let (found, whole) = read(&content);
        prop_assert!(whole);
        let said: Vec<u64> = found.iter().filter(|(_, row)| row.is_err()).map(|(number, _)| *number).collect();
        let rows: Vec<_> = found.into_iter().filter_map(|(number, row)| Some((number, row.ok()?))).collect();
        prop_assert_eq!((rows, said), (expected, bad));
        Ok(())
    });
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

#[test]
fn tables_come_back_cell_by_cell() {
    let cell = "[^\0\u{feff}]{0,12}";
    check(200, vec(vec(cell, 3), 0..8), |table| {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["request_id", "user", "metadata"]).unwrap();
        for record in &table {
            writer.write_record(record).unwrap();
        }
        let (found, whole) = read(&writer.into_inner().unwrap());
        prop_assert!(whole);
        let rows: Vec<_> = found.into_iter().map(|(_, row)| Value::Object(row.unwrap())).collect();
        let expected: Vec<_> =
            table.iter().map(|row| json!({"request_id": row[0], "user": row[1], "metadata": row[2]})).collect();
        prop_assert_eq!(rows, expected);
        Ok(())
    });
}

#[test]
fn any_bytes_are_rows_bad_lines_or_an_error() {
    let start = select(vec![
        &b""[..],
        b"[",
        b"{",
        b"\xef\xbb\xbf",
        b"request_id,user\n",
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
        b" \n",
    ]);
    let rest = prop_oneof![
        vec(any::<u8>(), 0..200),
        "[\\[\\]{}\":,0-9a-z\\\\ \n\"]{0,120}".prop_map(String::into_bytes),
        (1_usize..2_000).prop_map(|depth| "[".repeat(depth).into_bytes()),
    ];
    check(750, (start, rest), |(start, rest)| {
        let content = [start, &rest].concat();
        let (found, _) = read(&content);
        prop_assert!(start.starts_with(b"\x1f") || found.len() <= content.len());
        Ok(())
    });
}

#[test]
fn a_packed_file_cut_off_is_an_error_after_its_whole_rows() {
    check(100, (vec(row(), 1..20), any::<prop::sample::Index>()), |(rows, cut)| {
        let lines: Vec<String> = rows.into_iter().map(|row| Value::Object(row).to_string() + "\n").collect();
        let packed = gzip(lines.concat().as_bytes());
        // Two bytes are needed to recognise the file as compressed.
        let length = 2 + cut.index(packed.len() - 2);
        let (found, whole) = read(&packed[..length]);
        prop_assert!(!whole && found.len() <= lines.len());
        Ok(())
    });
}
