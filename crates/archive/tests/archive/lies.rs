//! Manifests whose seal is right and whose contents are not: whoever can write to the archive can make one.

use std::path::Path;
use std::time::{Duration, Instant};

use litespend_archive::{Error, IdKind, Query};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::tempdir;

use crate::support::{DAY_MICROSECONDS, day, open, read, row, rows, small, start, write};

fn hexadecimal(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Changes a manifest and seals it again. Returns what was there before.
fn change(path: &Path, change: impl Fn(&mut Value)) -> Vec<u8> {
    let before = std::fs::read(path).unwrap();
    let sealed: Value = serde_json::from_slice(&before).unwrap();
    let mut manifest = sealed["manifest"].clone();
    change(&mut manifest);
    let text = manifest.to_string();
    std::fs::write(path, format!("{{\"sha256\":\"{}\",\"manifest\":{text}}}\n", hexadecimal(&text))).unwrap();
    before
}

/// A change of a manifest.
type Lie = Box<dyn Fn(&mut Value)>;

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_contradicts_itself_is_refused_at_once() {
    let root = tempdir().unwrap();
    write(&open(root.path(), small()).await, day(1), None, &rows(day(1), 50)).await;
    let path = root.path().join("spend_logs/day=2026-10-01/_manifest-00001.json");
    let sets = |pointer: &'static str, value: Value| -> (&str, Lie) {
        (pointer, Box::new(move |manifest: &mut Value| *manifest.pointer_mut(pointer).unwrap() = value.clone()))
    };
    let (midnight, part) = (start(day(1)), "spend_logs/day=2026-10-01/part-00001-00001-aaaaaaaa.parquet");
    for (what, lie) in [
        sets("/parts/0/bytes", json!(1u64 << 40)),
        sets("/parts/0/bytes", json!(1u64 << 62)),
        sets("/parts/1/bytes", json!(0)),
        sets("/ids/bytes", json!(1u64 << 63)),
        sets("/ids/bytes", json!(u64::MAX)),
        sets("/ids/blocks", json!([])),
        sets("/parts/0/path", json!("spend_logs/day=2026-10-02/part-00000-00001-aaaaaaaa.parquet")),
        sets("/parts/0/path", json!("spend_logs/day=2026-10-01/../day=2026-10-02/part-00000-00001-aaaaaaaa.parquet")),
        sets("/parts/0/path", json!("spend_logs/day=2026-10-01/_manifest-00001.json")),
        sets("/ids/path", json!(part)),
        sets("/ids/path", json!("ids/2026-10-02-00001-aaaaaaaa.ids")),
        sets("/parts/0/first_start", json!(midnight - 1)),
        sets("/parts/0/first_start", json!(i64::MIN)),
        sets("/parts/0/last_start", json!(midnight + DAY_MICROSECONDS)),
        sets("/parts/0/last_start", json!(midnight - 1)),
        sets("/parts/0/rows", json!(0)),
        sets("/parts/0/rows", json!(u64::MAX)),
        sets("/sums/rows", json!(51)),
        sets("/sums/successes", json!(u64::MAX)),
        sets("/sums/total_tokens", json!(i64::MIN)),
        ("a file twice", Box::new(|manifest: &mut Value| manifest["parts"][1] = manifest["parts"][0].clone())),
    ] {
        let before = change(&path, lie);
        let archive = open(root.path(), small()).await;
        let asked = Instant::now();
        for outcome in [
            archive.verify_day(day(1)).await.map(drop),
            read(&archive, &[(day(1), 1)], Query::default()).await.map(drop),
            archive.find(IdKind::User, "alice", &[(day(1), 1)]).await.map(drop),
            archive.write_day(day(1), None, true).await.map(drop),
        ] {
            let is_named =
                matches!(&outcome, Err(Error::Schema { path, .. }) if path.ends_with("_manifest-00001.json"));
            assert!(is_named, "{what}: {outcome:?}");
        }
        assert!(asked.elapsed() < Duration::from_secs(2), "{what}: {:?}", asked.elapsed());
        assert!(archive.damaged().is_empty(), "{what}");
        std::fs::write(&path, before).unwrap();
    }
    assert!(open(root.path(), small()).await.verify_day(day(1)).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn times_by_which_scans_leave_out_files_are_verified() {
    let root = tempdir().unwrap();
    let manifest = write(&open(root.path(), small()).await, day(1), None, &rows(day(1), 50)).await;
    let path = root.path().join("spend_logs/day=2026-10-01/_manifest-00001.json");
    let file = manifest.parts[1].object.path.clone();
    for (field, value) in [
        ("first_start", manifest.parts[1].first_start + 1),
        ("first_start", start(day(1))),
        ("last_start", manifest.parts[1].last_start - 1),
        ("last_start", start(day(1)) + DAY_MICROSECONDS - 1),
    ] {
        let before = change(&path, |manifest| manifest["parts"][1][field] = json!(value));
        let outcome = open(root.path(), small()).await.verify_day(day(1)).await;
        assert!(matches!(&outcome, Err(Error::Schema { path, .. }) if *path == file), "{field} {value}: {outcome:?}");
        std::fs::write(&path, before).unwrap();
    }
    let archive = open(root.path(), small()).await;
    assert!(archive.verify_day(day(1)).await.unwrap().is_some() && archive.damaged().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_months_manifest_that_contradicts_itself_finds_nothing_wrong() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let mut days = Vec::new();
    for number in 1..=3 {
        write(&archive, day(number), None, &[row(u64::from(number), start(day(number)))]).await;
        days.push((day(number), 1));
    }
    archive.compact_month(day(1)).await.unwrap();
    let path = root.path().join("ids/2026-10-00001.json");
    for (pointer, value) in [
        ("/ids/bytes", json!(1u64 << 63)),
        ("/ids/path", json!("ids/2026-11-00001-aaaaaaaa.ids")),
        ("/covers/0/0", json!("2026-11-01")),
        ("/month", json!("2026-11-01")),
        ("/number", json!(2)),
    ] {
        let before = change(&path, |manifest| *manifest.pointer_mut(pointer).unwrap() = value.clone());
        let archive = open(root.path(), small()).await;
        let id = row(2, 0).request_id;
        assert_eq!(archive.find(IdKind::RequestId, &id, &days).await.unwrap(), [day(2)], "{pointer}");
        let refused = archive.compact_month(day(1)).await;
        assert!(matches!(refused, Err(Error::Schema { .. })), "{pointer}: {refused:?}");
        std::fs::write(&path, before).unwrap();
    }
}
