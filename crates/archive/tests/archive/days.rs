//! Days come, change and go; whatever is interrupted leaves nothing that counts.

use litespend_archive::{Archive, Engine, Error, Options, Query};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::{
    DAY_MICROSECONDS, day, files, hidden, open, parquet_files, read, row, rows, small, sort, start, write, write_hidden,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_day_comes_back_as_it_was_written() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    archive.probe().await.unwrap();
    let written = rows(day(31), 50);
    let manifest = write(&archive, day(31), None, &written).await;
    assert_eq!(manifest.parts.len(), 3);
    assert_eq!(manifest.sums.rows, 50);
    let failures = written.iter().filter(|row| row.status.as_deref() == Some("failure")).count() as u64;
    assert_eq!((manifest.sums.failures, manifest.sums.successes), (failures, 50 - failures));
    let reopened = open(root.path(), small()).await;
    assert_eq!(reopened.days().await.unwrap(), [(day(31), 1)]);
    assert_eq!(*reopened.manifest(day(31)).await.unwrap().unwrap(), manifest);
    assert_eq!(reopened.verify_day(day(31)).await.unwrap().as_deref(), Some(&manifest));
    assert_eq!(read(&reopened, &[(day(31), 1)], Query::default()).await.unwrap(), written);
    assert!(!files(root.path()).iter().any(|file| file.starts_with("_probe")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_left_out_unless_they_are_asked_for() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let mut writer = archive.write_day(day(1), None, false).await.unwrap();
    writer.push(&row(5, start(day(1))).as_row()).await.unwrap();
    let prepared = writer.finish().await.unwrap();
    prepared.verify().await.unwrap();
    assert!(!archive.commit(&prepared, Value::Null).await.unwrap().bodies);
    let read = read(&archive, &[(day(1), 1)], Query::default()).await.unwrap();
    assert_eq!((&read[0].messages, &read[0].response, &read[0].proxy_server_request), (&None, &None, &None));
    assert!(read[0].metadata.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_day_is_a_day() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let manifest = write(&archive, day(2), None, &[]).await;
    assert_eq!((manifest.parts.len(), manifest.sums.rows), (0, 0));
    assert_eq!(archive.days().await.unwrap(), [(day(2), 1)]);
    assert!(read(&archive, &[(day(2), 1)], Query::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rows_are_the_same_bytes() {
    let (first, second) = (tempdir().unwrap(), tempdir().unwrap());
    let written = rows(day(3), 45);
    let a = write(&open(first.path(), small()).await, day(3), None, &written).await;
    let b = write(&open(second.path(), small()).await, day(3), None, &written).await;
    let hashes = |manifest: &litespend_archive::Manifest| -> Vec<String> {
        let objects = manifest.parts.iter().map(|part| &part.object).chain([&manifest.ids]);
        objects.map(|object| object.sha256.clone()).collect()
    };
    assert_eq!(hashes(&a), hashes(&b));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_has_its_form() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), Options::default()).await;
    let mut writer = archive.write_day(day(31), None, true).await.unwrap();
    for row in rows(day(31), 30) {
        writer.push(&row.as_row()).await.unwrap();
    }
    let prepared = writer.finish().await.unwrap();
    archive.commit(&prepared, json!({"own": 1.5})).await.unwrap();
    let text = std::fs::read_to_string(root.path().join("spend_logs/day=2026-10-31/_manifest-00001.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    let token = prepared.parts()[0].object.name()["part-00000-00001-".len()..][..8].to_owned();
    manifest["sha256"] = json!("the manifest's own");
    manifest["manifest"]["created_at"] = json!("when it was written");
    let manifest = serde_json::to_string_pretty(&manifest).unwrap().replace(&token, "token") + "\n";
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/archive/manifest.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden, &manifest).unwrap();
    }
    assert_eq!(manifest, std::fs::read_to_string(golden).unwrap(), "run with UPDATE_GOLDEN=1 if this is meant");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_are_refused_and_the_others_are_written() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let noon = start(day(4)) + DAY_MICROSECONDS / 2;
    let mut writer = archive.write_day(day(4), None, true).await.unwrap();
    writer.push(&row(1, noon).as_row()).await.unwrap();
    let earlier = writer.push(&row(2, noon - 1).as_row()).await.unwrap_err();
    assert_eq!(earlier, Error::OutOfOrder { request_id: row(2, 0).request_id });
    let repeated = writer.push(&row(1, noon).as_row()).await.unwrap_err();
    assert!(matches!(repeated, Error::OutOfOrder { .. }));
    let next_day = writer.push(&row(3, start(day(5))).as_row()).await.unwrap_err();
    assert!(matches!(next_day, Error::OtherDay { .. }), "{next_day}");
    writer.push(&row(4, noon + 1).as_row()).await.unwrap();
    let prepared = writer.finish().await.unwrap();
    assert_eq!(prepared.verify().await.unwrap().rows, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_are_added_in_a_new_revision() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let all = rows(day(6), 60);
    let (first, late): (Vec<_>, Vec<_>) = all.iter().cloned().enumerate().partition(|(number, _)| number % 4 != 1);
    let [first, late] = [first, late].map(|rows| rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>());
    let one = write(&archive, day(6), None, &first).await;
    let two = write_hidden(&archive, day(6), Some(&one), &late).await;
    assert_eq!(two.revision, 2);
    assert_eq!(two.parts[..one.parts.len()], one.parts[..]);
    let numbers: Vec<&str> = two.parts.iter().map(|part| &part.object.name()["part-".len()..][..5]).collect();
    assert_eq!(numbers, ["00000", "00001", "00002", "00003"]);
    assert_eq!(two.sums.spend, all.iter().map(|row| (row.spend * 10.0).round() as u64).sum::<u64>() as f64 / 10.0);
    assert_eq!(read(&archive, &[(day(6), 2)], Query::default()).await.unwrap(), all);
    assert_eq!(archive.verify_day(day(6)).await.unwrap().unwrap().revision, 2);
    // The earlier revision is still there until it is removed.
    assert_eq!(read(&archive, &[(day(6), 1)], Query::default()).await.unwrap(), first);
    assert_eq!(parquet_files(root.path()).len(), 3);
    archive.publish(day(6)).await.unwrap();
    assert_eq!(parquet_files(root.path()).len(), 4);
    assert!(matches!(archive.manifest_at(day(6), 1).await, Err(Error::NotFound { .. })));
    assert_eq!(read(&archive, &[(day(6), 2)], Query::default()).await.unwrap(), all);
    // A base that is not the newest revision would lose rows.
    let stale = archive.write_day(day(6), Some(&one), true).await.unwrap_err();
    assert_eq!(stale, Error::Exists { day: day(6), revision: 2 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_day_replaces_its_rows() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    write(&archive, day(7), None, &rows(day(7), 60)).await;
    let mut fewer = rows(day(7), 30);
    sort(&mut fewer);
    let manifest = write(&archive, day(7), None, &fewer).await;
    assert_eq!(manifest.revision, 2);
    assert_eq!(read(&archive, &[(day(7), 2)], Query::default()).await.unwrap(), fewer);
    let paths: Vec<String> = manifest.parts.iter().map(|part| part.object.path.clone()).collect();
    assert_eq!(parquet_files(root.path()), paths);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_day_does_not_exist_and_its_numbers_are_not_used_again() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    write(&archive, day(8), None, &rows(day(8), 30)).await;
    archive.delete_day(day(8)).await.unwrap();
    assert!(archive.days().await.unwrap().is_empty());
    assert!(archive.manifest(day(8)).await.unwrap().is_none());
    assert!(archive.verify_day(day(8)).await.unwrap().is_none());
    let left = files(root.path());
    assert_eq!(left, ["spend_logs/day=2026-10-08/_manifest-00002.json"], "only the fence is left");
    assert_eq!(write(&archive, day(8), None, &rows(day(8), 5)).await.revision, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_attempt_counts_nowhere_and_is_cleared_away() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let written = rows(day(9), 50);
    for pushed in [1, 19, 20, 21, 50] {
        let mut writer = archive.write_day(day(9), None, true).await.unwrap();
        for row in &written[..pushed] {
            writer.push(&row.as_row()).await.unwrap();
        }
        drop(writer);
        assert!(archive.days().await.unwrap().is_empty(), "after {pushed} rows");
    }
    let unfinished = root.path().join("spend_logs/day=2026-10-09/part-00009-00008-00000000.parquet#1");
    std::fs::write(&unfinished, "a process ended here").unwrap();
    let mut writer = archive.write_day(day(9), None, true).await.unwrap();
    assert!(!unfinished.exists());
    for row in &written {
        writer.push(&row.as_row()).await.unwrap();
    }
    let interrupted = writer.finish().await.unwrap();
    assert!(archive.days().await.unwrap().is_empty());
    let manifest = write(&archive, day(9), None, &written).await;
    let paths: Vec<String> = manifest.parts.iter().map(|part| part.object.path.clone()).collect();
    assert_eq!(parquet_files(root.path()), paths, "other engines see only files that count");
    // The attempt was alive after all: it can no longer make its files count.
    let lost = archive.commit(&interrupted, Value::Null).await.unwrap_err();
    assert!(matches!(lost, Error::Exists { .. }), "{lost}");
    assert_eq!(read(&archive, &archive.days().await.unwrap(), Query::default()).await.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_wins() {
    let root = tempdir().unwrap();
    let archives = [open(root.path(), small()).await, open(root.path(), small()).await];
    let rows = [rows(day(10), 45), rows(day(10), 25)];
    let mut writers = Vec::new();
    for archive in &archives {
        writers.push(archive.write_day(day(10), None, true).await.unwrap());
    }
    let mut prepared = Vec::new();
    for (mut writer, rows) in writers.into_iter().zip(&rows) {
        for row in rows {
            writer.push(&row.as_row()).await.unwrap();
        }
        prepared.push(writer.finish().await.unwrap());
    }
    prepared[0].verify().await.unwrap();
    let (first, second) =
        tokio::join!(archives[0].commit(&prepared[0], Value::Null), archives[1].commit(&prepared[1], Value::Null));
    assert_eq!(u8::from(first.is_ok()) + u8::from(second.is_ok()), 1, "{first:?} {second:?}");
    let (winner, loser) = if first.is_ok() { (0, second) } else { (1, first) };
    assert_eq!(loser.unwrap_err(), Error::Exists { day: day(10), revision: 1 });
    let archive = open(root.path(), small()).await;
    archive.verify_day(day(10)).await.unwrap();
    assert_eq!(read(&archive, &[(day(10), 1)], Query::default()).await.unwrap(), rows[winner]);
    archive.publish(day(10)).await.unwrap();
    assert_eq!(parquet_files(root.path()).len(), rows[winner].len().div_ceil(20));
    assert_eq!(files(root.path()).len(), rows[winner].len().div_ceil(20) + 2, "nothing of the other one is left");
    // Committing once more what was committed is no conflict: the answer may have been lost.
    archives[winner].commit(&prepared[winner], Value::Null).await.unwrap();
}

#[tokio::test]
async fn an_unusable_place_is_named_in_one_line() {
    let root = tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("archive");
    let error = Archive::open(below.to_str().unwrap(), Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::BadUrl(_)), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[tokio::test]
async fn every_engine_gets_all_columns() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), Options::default()).await;
    for engine in ["clickhouse", "duckdb", "trino"] {
        let schema = archive.schema(Engine::from_name(engine).unwrap());
        assert!(schema.contains(root.path().to_str().unwrap()) && schema.contains("spend_logs"), "{schema}");
        assert!(engine == "duckdb" || schema.contains("litellm_call_id"), "{schema}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_engines_see_a_day_when_it_is_published_and_as_long_as_it_is_not_hidden() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let all = rows(day(11), 60);
    let mut writer = archive.write_day(day(11), None, true).await.unwrap();
    for row in &all[..50] {
        writer.push(&row.as_row()).await.unwrap();
    }
    let prepared = writer.finish().await.unwrap();
    prepared.verify().await.unwrap();
    assert!(parquet_files(root.path()).is_empty(), "written");
    let one = archive.commit(&prepared, Value::Null).await.unwrap();
    assert!(parquet_files(root.path()).is_empty(), "committed");
    let reads_all = async |count: usize, step: &str| {
        for archive in [&archive, &open(root.path(), small()).await] {
            let days = archive.days().await.unwrap();
            assert!(read(archive, &days, Query::default()).await.unwrap() == all[..count], "{step}");
            assert!(archive.verify_day(day(11)).await.unwrap().is_some(), "{step}");
        }
    };
    reads_all(50, "committed").await;
    assert_eq!(archive.published_days().await.unwrap(), (vec![], vec![day(11)]));
    // The process may end after any file.
    let paths: Vec<String> = one.parts.iter().map(|part| part.object.path.clone()).collect();
    std::fs::rename(root.path().join(hidden(&paths[1])), root.path().join(&paths[1])).unwrap();
    reads_all(50, "half published").await;
    assert_eq!(archive.published_days().await.unwrap(), (vec![], vec![day(11)]));
    for _ in 0..2 {
        archive.publish(day(11)).await.unwrap();
        assert_eq!(parquet_files(root.path()), paths);
    }
    reads_all(50, "published").await;
    assert_eq!(archive.published_days().await.unwrap(), (vec![(day(11), 1)], vec![]));
    // Late rows: what counts already stays to be seen.
    let two = write_hidden(&archive, day(11), Some(&one), &all[50..]).await;
    assert_eq!(parquet_files(root.path()), paths);
    reads_all(60, "late rows").await;
    archive.publish(day(11)).await.unwrap();
    assert_eq!(parquet_files(root.path()).len(), two.parts.len());
    // An attempt that was interrupted says nothing about the day.
    let mut writer = archive.write_day(day(11), None, true).await.unwrap();
    writer.push(&all[0].as_row()).await.unwrap();
    drop(writer.finish().await.unwrap());
    assert_eq!(archive.published_days().await.unwrap(), (vec![(day(11), 2)], vec![]));
    for _ in 0..2 {
        archive.hide(day(11)).await.unwrap();
        assert!(parquet_files(root.path()).is_empty());
    }
    reads_all(60, "hidden").await;
    // Written again as a whole: the old files never show beside the new ones.
    write_hidden(&archive, day(11), None, &all[..30]).await;
    assert!(parquet_files(root.path()).is_empty());
    reads_all(30, "written again").await;
    archive.publish(day(11)).await.unwrap();
    assert_eq!(parquet_files(root.path()).len(), 2);
    assert_eq!(files(root.path()).len(), 4, "nothing is left of what was before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_revision_that_can_be_seen_goes_before_the_new_one_comes() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let shown = async || archive.day_files().await.unwrap()[0];
    write(&archive, day(12), None, &rows(day(12), 30)).await;
    assert!(!shown().await.superseded && shown().await.shown && !shown().await.hidden);
    // As a version did that hid nothing.
    let two = write_hidden(&archive, day(12), None, &rows(day(12), 10)).await;
    assert!(shown().await.superseded && shown().await.shown && shown().await.hidden);
    archive.publish(day(12)).await.unwrap();
    assert_eq!(parquet_files(root.path()), [two.parts[0].object.path.clone()]);
    assert!(!shown().await.superseded && shown().await.shown && !shown().await.hidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_an_impossible_number_is_named() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let written = rows(day(13), 5);
    write(&archive, day(13), None, &written).await;
    let directory = root.path().join("spend_logs/day=2026-10-13");
    for name in [
        "part-00000-0000300000-aaaaaaaa.parquet",
        "part-00000-300000-aaaaaaaa.parquet",
        "_part-00000-300000-aaaaaaaa.parquet.hidden",
        "part-00000-300000-aaaaaaaa.parquet#1",
        "part-00000-4294967295-aaaaaaaa.parquet",
        "part-4294967295-00001-aaaaaaaa.parquet",
        "part-4294967294-00001-aaaaaaaa.parquet",
        "_manifest-4294967295.json",
    ] {
        let stray = directory.join(name);
        std::fs::write(&stray, "").unwrap();
        let before = files(root.path());
        let refused = archive.write_day(day(13), None, true).await.map(drop);
        // A file of an earlier revision is not the newest one's, and is cleared away.
        if name.starts_with("part-42949672") {
            assert!(
                refused.is_ok() || matches!(&refused, Err(Error::Schema { path, .. }) if path.contains(name)),
                "{name}"
            );
        } else {
            assert!(matches!(&refused, Err(Error::Schema { path, .. }) if path.ends_with(name)), "{name}: {refused:?}");
            assert_eq!(files(root.path()), before, "{name}");
        }
        let _ = std::fs::remove_file(&stray);
    }
    // Names that are not ours are no revisions.
    std::fs::write(directory.join("_manifest-0000300000.json"), "").unwrap();
    std::fs::write(directory.join("_manifest-0000000002.json"), "made up").unwrap();
    assert_eq!(archive.days().await.unwrap(), [(day(13), 1)]);
    // Traces of some attempts are cleared away.
    let trace = directory.join("part-00003-00009-aaaaaaaa.parquet");
    std::fs::write(&trace, "").unwrap();
    assert_eq!(write(&archive, day(13), None, &written).await.revision, 10);
    assert!(!trace.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_six_digits_come_after_those_of_five() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let directory = root.path().join("spend_logs/day=2026-10-14");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("_manifest-99998.json"), "").unwrap();
    let written = rows(day(14), 25);
    for revision in [99_999, 100_000, 100_001] {
        assert_eq!(write(&archive, day(14), None, &written).await.revision, revision);
        assert_eq!(archive.days().await.unwrap(), [(day(14), revision)]);
    }
    assert!(archive.verify_day(day(14)).await.unwrap().is_some());
    let kept = archive.manifest(day(14)).await.unwrap().unwrap();
    // Digests of an attempt at the next revision stay.
    let mut writer = archive.write_day(day(14), None, true).await.unwrap();
    writer.push(&written[0].as_row()).await.unwrap();
    let next = writer.finish().await.unwrap();
    archive.remove_superseded(day(14)).await.unwrap();
    assert_eq!(next.verify().await.unwrap().rows, 1);
    assert!(root.path().join(&kept.ids.path).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_ends_by_its_bytes_too() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), Options { bytes_per_part: 100_000, rows_per_group: 7, ..Options::default() }).await;
    let mut written = rows(day(15), 60);
    let mut state = 1u64;
    for row in &mut written {
        // Text that does not compress, and of which few rows make a batch.
        let mut text = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{state:016x}")
        };
        row.response = Some((0..60_000).map(|_| text()).collect());
    }
    let manifest = write(&archive, day(15), None, &written).await;
    assert!(manifest.parts.len() > 1, "{}", manifest.parts.len());
    assert!(read(&archive, &[(day(15), 1)], Query::default()).await.unwrap() == written);
}
