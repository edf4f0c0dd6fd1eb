//! What a scan returns, compared with a list of rows in memory.

use std::sync::Arc;

use chrono::NaiveDate;
use futures_util::{StreamExt, TryStreamExt};
use litespend_archive::{Archive, Column, Error, Options, Order, OwnedRow, Query, RowPredicate};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tempfile::tempdir;

use crate::support::{DAY_MICROSECONDS, day, open, read, row, rows, small, sort, start, write};

fn text(row: &OwnedRow, column: Column) -> Option<&str> {
    let row = row.as_row();
    match column {
        Column::RequestId => Some(row.request_id),
        Column::ApiKey => Some(row.api_key),
        Column::CallType => Some(row.call_type),
        Column::Model => Some(row.model),
        Column::User => row.user,
        Column::EndUser => row.end_user,
        Column::TeamId => row.team_id,
        Column::Status => row.status,
        Column::SessionId => row.session_id,
        Column::Metadata => row.metadata,
        other => panic!("the model has no {other:?}"),
    }
}

/// What a query must return.
fn expected(rows: &[OwnedRow], query: &Query) -> Vec<OwnedRow> {
    let place = |row: &OwnedRow| (row.start_time, row.request_id.clone());
    let mut rows: Vec<OwnedRow> = rows
        .iter()
        .filter(|row| query.from.is_none_or(|from| row.start_time >= from))
        .filter(|row| query.to.is_none_or(|to| row.start_time < to))
        .filter(|row| match (&query.after, query.order) {
            (None, _) => true,
            (Some(after), Order::Ascending) => place(row) > *after,
            (Some(after), Order::Descending) => place(row) < *after,
        })
        .filter(|row| {
            let has = |(column, values): &(Column, Vec<String>)| {
                text(row, *column).is_some_and(|text| values.iter().any(|value| value == text))
            };
            query.equals.iter().all(has) && (query.equals_any.is_empty() || query.equals_any.iter().any(has))
        })
        .filter(|row| query.min_spend.is_none_or(|limit| row.spend >= limit))
        .filter(|row| query.max_spend.is_none_or(|limit| row.spend <= limit))
        .filter(|row| query.min_duration_ms.is_none_or(|limit| row.request_duration_ms.is_some_and(|ms| ms >= limit)))
        .filter(|row| query.max_duration_ms.is_none_or(|limit| row.request_duration_ms.is_some_and(|ms| ms <= limit)))
        .filter(|row| {
            query.predicate.is_none() || row.metadata.as_deref().is_some_and(|metadata| metadata.contains('7'))
        })
        .cloned()
        .collect();
    sort(&mut rows);
    if query.order == Order::Descending {
        rows.reverse();
    }
    rows.truncate(query.limit.unwrap_or(usize::MAX));
    rows
}

fn values(column: Column) -> Vec<String> {
    let values: Vec<String> = match column {
        Column::RequestId => (0..6).map(|number| row(number * 9, 0).request_id).collect(),
        Column::ApiKey => (0..7).map(|number| format!("key-{number}")).collect(),
        Column::User => ["", "alice", "bob", "dave"].map(str::to_owned).to_vec(),
        Column::EndUser => (0..8).map(|number| format!("customer-{number}")).collect(),
        Column::Status => ["success", "failure", "other"].map(str::to_owned).to_vec(),
        Column::SessionId => (0..20).map(|number| format!("session-{number}")).collect(),
        _ => ["acompletion", "", "nothing"].map(str::to_owned).to_vec(),
    };
    values
}

fn equals() -> impl Strategy<Value = Vec<(Column, Vec<String>)>> {
    let column = prop::sample::select(vec![
        Column::RequestId,
        Column::ApiKey,
        Column::User,
        Column::EndUser,
        Column::Status,
        Column::SessionId,
        Column::CallType,
    ]);
    let one = column.prop_flat_map(|column| {
        let values = values(column);
        let count = values.len();
        (Just(column), prop::sample::subsequence(values, 0..=count))
    });
    prop::collection::vec(one, 0..3)
}

fn query(days: u32, rows: usize) -> impl Strategy<Value = Query> {
    let time = move || (0..i64::from(days) * DAY_MICROSECONDS).prop_map(|time| start(day(1)) + time);
    let numbers = (
        prop::option::of(0.0..1.0f64),
        prop::option::of(0.0..1.0f64),
        prop::option::of(0..500i32),
        prop::option::of(0..500i32),
    );
    (
        (prop::option::weighted(0.4, time()), prop::option::weighted(0.4, time())),
        any::<bool>(),
        prop::option::weighted(0.3, (time(), 0..rows as u64)),
        (equals(), equals()),
        prop::option::weighted(0.4, numbers),
        prop::option::weighted(0.3, Just(())),
        prop::option::weighted(0.3, 1..40usize),
    )
        .prop_map(|((from, to), descending, after, (equals, equals_any), numbers, predicate, limit)| {
            let (min_spend, max_spend, min_duration_ms, max_duration_ms) = numbers.unwrap_or_default();
            Query {
                from,
                to,
                order: if descending { Order::Descending } else { Order::Ascending },
                after: after.map(|(time, number)| (time, row(number, 0).request_id)),
                equals,
                equals_any,
                min_spend,
                max_spend,
                min_duration_ms,
                max_duration_ms,
                predicate: predicate.map(|()| RowPredicate {
                    columns: vec![Column::Metadata],
                    test: Arc::new(|row| row.text(Column::Metadata).is_some_and(|metadata| metadata.contains('7'))),
                }),
                columns: Column::ALL.to_vec(),
                missing_bodies: None,
                limit,
            }
        })
}

/// Rows of some days. Many start at the same time.
fn some_rows(days: u32) -> impl Strategy<Value = Vec<OwnedRow>> {
    let time = prop_oneof![
        (0..i64::from(days), 0..4i64).prop_map(|(day, hour)| day * DAY_MICROSECONDS + hour * 3_600_000_000),
        0..i64::from(days) * DAY_MICROSECONDS,
    ];
    prop::collection::vec(time, 0..90).prop_map(|times| {
        let rows = times.into_iter().enumerate();
        rows.map(|(number, time)| row(number as u64, start(day(1)) + time)).collect()
    })
}

/// Writes rows in several revisions: each row is in the revision of its number.
async fn write_all(archive: &Archive, days: u32, rows: &[OwnedRow], revisions: usize) -> Vec<(NaiveDate, u32)> {
    let mut written = Vec::new();
    for number in 1..=days {
        let times = start(day(number))..start(day(number)) + DAY_MICROSECONDS;
        let mut manifest = None;
        for revision in 0..revisions {
            let rows = rows.iter().enumerate().filter(|(row, _)| row % revisions == revision).map(|(_, row)| row);
            let mut rows: Vec<OwnedRow> = rows.filter(|row| times.contains(&row.start_time)).cloned().collect();
            sort(&mut rows);
            manifest = Some(write(archive, day(number), manifest.as_ref(), &rows).await);
        }
        written.push((day(number), manifest.unwrap().revision));
    }
    written
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_scan_returns_what_a_list_would(
        rows in some_rows(3),
        revisions in 1..4usize,
        queries in prop::collection::vec(query(3, 90), 12),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let root = tempdir().unwrap();
            let archive = open(root.path(), small()).await;
            let days = write_all(&archive, 3, &rows, revisions).await;
            for query in queries {
                let read = read(&archive, &days, query.clone()).await.unwrap();
                prop_assert_eq!(read, expected(&rows, &query), "{:?}", query);
            }
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_row_groups_are_read_page_by_page() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), Options { rows_per_group: 20_000, ..Options::default() }).await;
    let rows = rows(day(1), 30_000);
    let days = write_all(&archive, 1, &rows, 1).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        let query = query(1, 30_000).new_tree(&mut runner).unwrap().current();
        let read = read(&archive, &days, query.clone()).await.unwrap();
        assert!(read == expected(&rows, &query), "{query:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_continue_where_the_last_one_ended() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let mut all: Vec<OwnedRow> =
        (0..80).map(|number| row(number, start(day(1)) + (number as i64 / 9) * 1000)).collect();
    sort(&mut all);
    let days = write_all(&archive, 1, &all, 2).await;
    for order in [Order::Ascending, Order::Descending] {
        let mut after = None;
        let mut seen = Vec::new();
        loop {
            let query = Query { order, after: after.clone(), limit: Some(7), ..Query::default() };
            let page = read(&archive, &days, query).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some((last.start_time, last.request_id.clone()));
            seen.extend(page);
        }
        if order == Order::Descending {
            seen.reverse();
        }
        assert_eq!(seen, all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_of_the_time_are_inclusive_and_exclusive() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let rows = rows(day(1), 30);
    let days = write_all(&archive, 1, &rows, 1).await;
    for row in &rows {
        // Among them are the first and the last rows of row groups and files.
        let query = Query { from: Some(row.start_time), to: Some(row.start_time + 1), ..Query::default() };
        assert_eq!(read(&archive, &days, query).await.unwrap(), std::slice::from_ref(row));
        let query = Query { from: Some(row.start_time), to: Some(row.start_time), ..Query::default() };
        assert!(read(&archive, &days, query).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nan_is_the_largest_spend() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let mut rows = rows(day(1), 40);
    for (number, row) in rows.iter_mut().enumerate() {
        // Row groups without NaN, with one, with nothing else, with infinite spends, and with zeros.
        row.spend = match number {
            0..7 => number as f64 * 0.1,
            7..10 | 11..14 => -(number as f64),
            10 | 14..20 => f64::NAN,
            20..27 => [f64::INFINITY, 0.5, f64::NEG_INFINITY][number % 3],
            27..34 => [f64::INFINITY, f64::NAN, f64::NEG_INFINITY, 2.0][number % 4],
            _ => [0.0, -0.0, -f64::NAN][number % 3],
        };
    }
    let days = write_all(&archive, 1, &rows, 1).await;
    let is_at_most = |one: f64, other: f64| other.is_nan() || one <= other;
    let limits = [f64::NEG_INFINITY, -1.0, -0.0, 0.0, 0.5, 3.0, f64::INFINITY, f64::NAN, -f64::NAN];
    let limits: Vec<Option<f64>> = limits.into_iter().map(Some).chain([None]).collect();
    for (min_spend, max_spend) in limits.iter().flat_map(|min| limits.iter().map(move |max| (*min, *max))) {
        let is_expected = |row: &&OwnedRow| {
            min_spend.is_none_or(|min| is_at_most(min, row.spend))
                && max_spend.is_none_or(|max| is_at_most(row.spend, max))
        };
        let expected: Vec<&str> = rows.iter().filter(is_expected).map(|row| row.request_id.as_str()).collect();
        let query = Query { min_spend, max_spend, columns: vec![Column::Spend], ..Query::default() };
        let read = read(&archive, &days, query).await.unwrap();
        let read: Vec<&str> = read.iter().map(|row| row.request_id.as_str()).collect();
        assert_eq!(read, expected, "{min_spend:?} to {max_spend:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_columns_of_the_projection_are_there() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    write(&archive, day(1), None, &rows(day(1), 10)).await;
    let query = Query { columns: vec![Column::Model], ..Query::default() };
    for (read, written) in read(&archive, &[(day(1), 1)], query).await.unwrap().iter().zip(rows(day(1), 10)) {
        assert_eq!((&read.model, &read.request_id), (&written.model, &written.request_id));
        assert_eq!((&read.user, &read.metadata, read.spend), (&None, &None, 0.0));
    }
    let query = Query { columns: Column::without_bodies().collect(), ..Query::default() };
    for (read, written) in read(&archive, &[(day(1), 1)], query).await.unwrap().into_iter().zip(rows(day(1), 10)) {
        assert_eq!(read, OwnedRow { messages: None, response: None, proxy_server_request: None, ..written });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_not_compared_with_texts() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let query = Query { equals: vec![(Column::Spend, vec!["1".to_owned()])], ..Query::default() };
    assert!(matches!(read(&archive, &[], query).await, Err(Error::Schema { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_stops() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let rows = rows(day(1), 80);
    let days = write_all(&archive, 1, &rows, 1).await;
    let mut stream = archive.scan(&days, Query::default());
    assert_eq!(stream.next().await.unwrap().unwrap(), rows[0]);
    drop(stream);
    let two: Vec<OwnedRow> = archive.scan(&days, Query::default()).take(2).try_collect().await.unwrap();
    assert_eq!(two, rows[..2]);
}
