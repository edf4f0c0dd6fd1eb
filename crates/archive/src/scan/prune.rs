//! What statistics rule out: row groups, and pages of a row group.

use std::ops::Range;

use parquet::file::metadata::RowGroupMetaData;
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::{Statistics, ValueStatistics};

use crate::columns::Column;
use crate::part::PartFile;
use crate::scan::{Plan, compare};

/// Whether a row group may have matching rows, by its statistics.
pub(super) fn group_may_match(plan: &Plan, group: &RowGroupMetaData) -> bool {
    let statistics = |column: Column| group.columns().get(column.index()).and_then(|chunk| chunk.statistics());
    if let Some(Statistics::Int64(times)) = statistics(Column::StartTime)
        && let (Some(first), Some(last)) = (times.min_opt(), times.max_opt())
        && (*first >= plan.times.end || *last < plan.times.start)
    {
        return false;
    }
    let query = &plan.query;
    if let Some(Statistics::Double(spend)) = statistics(Column::Spend)
        && !may_have_spend(spend, query.min_spend, query.max_spend)
    {
        return false;
    }
    if let Some(Statistics::Int32(durations)) = statistics(Column::RequestDurationMs)
        && let (Some(least), Some(most)) = (durations.min_opt(), durations.max_opt())
        && (query.min_duration_ms.is_some_and(|limit| *most < limit)
            || query.max_duration_ms.is_some_and(|limit| *least > limit))
    {
        return false;
    }
    let may_equal = |(column, values): &(Column, Vec<String>)| {
        let Some(statistics) = statistics(*column) else { return !values.is_empty() };
        if statistics.null_count_opt() == u64::try_from(group.num_rows()).ok() {
            return false;
        }
        may_have(values, statistics.min_bytes_opt(), statistics.max_bytes_opt())
    };
    query.equals.iter().all(may_equal) && (query.equals_any.is_empty() || query.equals_any.iter().any(may_equal))
}

/// Whether a spend may lie between these limits. NaN is larger than every other number, but the largest value of statistics is
/// another number if there is one. How many there are of NaN may be unknown.
fn may_have_spend(statistics: &ValueStatistics<f64>, least: Option<f64>, most: Option<f64>) -> bool {
    let has_no_nan = statistics.nan_count_opt() == Some(0);
    let is_too_small = |limit: f64| has_no_nan && statistics.max_opt().is_some_and(|max| compare(*max, limit).is_lt());
    let is_too_large = |limit: f64| statistics.min_opt().is_some_and(|min| compare(*min, limit).is_gt());
    !least.is_some_and(is_too_small) && !most.is_some_and(is_too_large)
}

/// Whether one of the values lies between the bounds, which may be shortened.
fn may_have(values: &[String], least: Option<&[u8]>, most: Option<&[u8]>) -> bool {
    values.iter().any(|value| {
        let value = value.as_bytes();
        least.is_none_or(|least| least <= value) && most.is_none_or(|most| value <= most)
    })
}

/// The rows of a row group that lie on pages which may have matching rows.
pub(super) fn candidate_rows(plan: &Plan, file: &PartFile, group: usize, rows: usize) -> Vec<Range<usize>> {
    let mut candidates = Vec::from_iter((rows > 0).then_some(0..rows));
    let pages = file.metadata().page_index_for_row_group(group);
    let mut keep = |column: Column, test: &dyn Fn(&ColumnIndexMetaData, usize) -> bool| {
        let (Some(index), Some(places)) = (pages.column_index(column.index()), pages.offset_index(column.index()))
        else {
            return;
        };
        let starts = places.page_locations().iter().map(|page| usize::try_from(page.first_row_index).unwrap_or(0));
        let starts: Vec<usize> = starts.collect();
        let ends = starts.iter().skip(1).copied().chain([rows]);
        let pages = starts.iter().zip(ends).enumerate();
        let kept = pages.filter(|(page, _)| test(index, *page)).map(|(_, (start, end))| *start..end);
        candidates = intersect(&candidates, &kept.collect::<Vec<_>>());
    };
    keep(Column::StartTime, &|index, page| match index {
        ColumnIndexMetaData::INT64(times) => {
            times.min_value(page).is_none_or(|first| *first < plan.times.end)
                && times.max_value(page).is_none_or(|last| *last >= plan.times.start)
        }
        _ => true,
    });
    for (column, values) in &plan.query.equals {
        keep(*column, &|index, page| match index {
            _ if index.is_null_page(page) => false,
            ColumnIndexMetaData::BYTE_ARRAY(texts) => may_have(values, texts.min_value(page), texts.max_value(page)),
            _ => true,
        });
    }
    candidates
}

/// The common part of two ascending lists of ranges.
fn intersect(first: &[Range<usize>], second: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut common: Vec<Range<usize>> = Vec::new();
    let (mut first, mut second) = (first.iter().peekable(), second.iter().peekable());
    while let (Some(a), Some(b)) = (first.peek(), second.peek()) {
        let (start, end) = (a.start.max(b.start), a.end.min(b.end));
        if start < end {
            match common.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => common.push(start..end),
            }
        }
        let passed = if a.end < b.end { &mut first } else { &mut second };
        passed.next();
    }
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(ends: &[usize]) -> Vec<Range<usize>> {
        let mut ends = ends.to_vec();
        ends.sort_unstable();
        ends.dedup();
        ends.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect()
    }

    #[test]
    fn statistics_rule_out_spends_only_where_they_know_of_nan() {
        let of = |values: std::ops::Range<f64>, nan_count| {
            let statistics = ValueStatistics::new(Some(values.start), Some(values.end), None, Some(0), false);
            statistics.with_nan_count(nan_count)
        };
        let (known, unknown, some) = (of(0.0..1.0, Some(0)), of(0.0..1.0, None), of(0.0..1.0, Some(2)));
        for statistics in [&known, &unknown, &some] {
            for (least, most) in [
                (None, None),
                (Some(1.0), None),
                (None, Some(0.0)),
                (None, Some(-0.0)),
                (Some(f64::NEG_INFINITY), Some(f64::NAN)),
                (Some(0.5), Some(0.6)),
            ] {
                assert!(may_have_spend(statistics, least, most), "{statistics:?}: {least:?} to {most:?}");
            }
            assert!(!may_have_spend(statistics, None, Some(-0.1)), "{statistics:?}");
        }
        for least in [1.5, f64::INFINITY, f64::NAN] {
            assert!(!may_have_spend(&known, Some(least), None), "{least}");
            assert!(may_have_spend(&unknown, Some(least), None), "{least}");
            assert!(may_have_spend(&some, Some(least), None), "{least}");
        }
        let only = of(f64::NAN..f64::NAN, Some(7));
        assert!(may_have_spend(&only, Some(f64::NAN), None) && may_have_spend(&only, None, Some(f64::NAN)));
        assert!(!may_have_spend(&only, None, Some(f64::INFINITY)));
    }

    proptest! {
        #[test]
        fn the_common_part_has_what_both_have(
            first in proptest::collection::vec(0usize..60, 0..12),
            second in proptest::collection::vec(0usize..60, 0..12),
        ) {
            let (first, second) = (ranges(&first), ranges(&second));
            let has = |ranges: &[Range<usize>], value: usize| ranges.iter().any(|range| range.contains(&value));
            let common = intersect(&first, &second);
            for value in 0..60 {
                prop_assert_eq!(has(&common, value), has(&first, value) && has(&second, value));
            }
        }
    }
}
