//! Which days may contain an id, compared with a map in memory.

use std::collections::{HashMap, HashSet};

use chrono::NaiveDate;
use litespend_archive::{Archive, IdKind, Options, OwnedRow};
use tempfile::tempdir;

use crate::support::{day, files, open, rows, small, write};

type Model = HashMap<(IdKind, String), HashSet<NaiveDate>>;

fn ids(row: &OwnedRow) -> Vec<(IdKind, String)> {
    let row = row.as_row();
    let ids = [
        (IdKind::RequestId, Some(row.request_id)),
        (IdKind::CallId, row.litellm_call_id),
        (IdKind::Session, row.session_id),
        (IdKind::ApiKey, Some(row.api_key)),
        (IdKind::User, row.user),
        (IdKind::EndUser, row.end_user),
        (IdKind::Team, row.team_id),
    ];
    let ids = ids.into_iter().filter_map(|(kind, id)| Some((kind, id?.to_owned())));
    ids.filter(|(_, id)| !id.is_empty()).collect()
}

async fn check(archive: &Archive, model: &Model, days: &[(NaiveDate, u32)]) {
    for ((kind, value), expected) in model {
        let found = archive.find(*kind, value, days).await.unwrap();
        let expected: Vec<_> = days.iter().map(|(day, _)| *day).filter(|day| expected.contains(day)).collect();
        assert_eq!(found, expected, "{kind:?} {value}");
    }
    for kind in [IdKind::RequestId, IdKind::User, IdKind::Team] {
        assert!(archive.find(kind, "nobody", days).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_found_on_their_days() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let mut model = Model::new();
    let mut days = Vec::new();
    for number in [1, 2, 3, 4, 5] {
        let all = rows(day(number), 20 + u64::from(number));
        let (early, late) = all.split_at(15);
        let manifest = write(&archive, day(number), None, early).await;
        let manifest = write(&archive, day(number), Some(&manifest), late).await;
        days.push((day(number), manifest.revision));
        for id in all.iter().flat_map(ids) {
            model.entry(id).or_default().insert(day(number));
        }
    }
    check(&archive, &model, &days).await;
    // Ids of both revisions are in the file once.
    let whole = tempdir().unwrap();
    let at_once = write(&open(whole.path(), small()).await, day(1), None, &rows(day(1), 21)).await;
    assert_eq!(archive.manifest(day(1)).await.unwrap().unwrap().ids.sha256, at_once.ids.sha256);
    archive.compact_month(day(17)).await.unwrap();
    check(&archive, &model, &days).await;
    let months = || files(&root.path().join("ids")).into_iter().filter(|file| file.starts_with("2026-10-00")).count();
    assert_eq!(months(), 2, "a file and its manifest: {:?}", files(root.path()));
    archive.compact_month(day(17)).await.unwrap();
    assert_eq!(months(), 2, "nothing has changed");

    // A day that is newer than the file of the month is looked up by itself.
    let mut changed = rows(day(3), 40);
    changed.retain(|row| !row.api_key.ends_with('2'));
    let manifest = write(&archive, day(3), None, &changed).await;
    days[2].1 = manifest.revision;
    for days in model.values_mut() {
        days.remove(&day(3));
    }
    for id in changed.iter().flat_map(ids) {
        model.entry(id).or_default().insert(day(3));
    }
    check(&archive, &model, &days).await;
    archive.compact_month(day(1)).await.unwrap();
    assert_eq!(months(), 2);
    check(&open(root.path(), small()).await, &model, &days).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ids_are_merged_from_a_scratch_file() {
    let root = tempdir().unwrap();
    // More digests than fit into memory at once, and than one block.
    let archive = open(root.path(), Options { digests_in_memory: 5_000, ..Options::default() }).await;
    let first = rows(day(1), 1)[0].clone();
    let mut writer = archive.write_day(day(1), None, false).await.unwrap();
    let count = 40_000;
    for number in 0..count {
        let (request_id, call) = (format!("{number:09}"), format!("call-{number}"));
        let row = litespend_archive::LogRow {
            request_id: &request_id,
            litellm_call_id: Some(&call),
            api_key: "key",
            model: "model",
            call_type: "call",
            start_time: first.start_time,
            ..Default::default()
        };
        writer.push(&row).await.unwrap();
    }
    let prepared = writer.finish().await.unwrap();
    prepared.verify().await.unwrap();
    let manifest = archive.commit(&prepared, serde_json::Value::Null).await.unwrap();
    let entries = count * 2 + 1;
    assert!(manifest.ids.bytes > entries * 8 && manifest.ids.bytes < entries * 8 + 4_000, "{}", manifest.ids.bytes);
    let days = [(day(1), 1)];
    for number in (0..count).step_by(3_001) {
        assert_eq!(archive.find(IdKind::RequestId, &format!("{number:09}"), &days).await.unwrap(), [day(1)]);
        assert_eq!(archive.find(IdKind::CallId, &format!("call-{number}"), &days).await.unwrap(), [day(1)]);
        assert!(archive.find(IdKind::CallId, &format!("{number:09}"), &days).await.unwrap().is_empty());
    }
    assert_eq!(archive.row("000027777", &days).await.unwrap().unwrap().litellm_call_id.unwrap(), "call-27777");
    assert!(archive.row("nothing", &days).await.unwrap().is_none());
}
