//! Files whose bytes change are named, set aside, and never answered from.

use std::fs::OpenOptions;

use litespend_archive::{Error, IdKind, Query};
use tempfile::tempdir;

use crate::support::{day, files, flip, hidden, open, read, rows, small, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_is_found_wherever_it_is() {
    let root = tempdir().unwrap();
    let days = [(day(1), 1)];
    let written = rows(day(1), 15);
    write(&open(root.path(), small()).await, day(1), None, &written).await;
    for file in files(root.path()) {
        let path = root.path().join(&file);
        let size = path.metadata().unwrap().len() as usize;
        // Data, footer, and the very ends.
        let positions = (0..size).step_by(size / 24).chain([size - 1, size - 5]);
        for position in positions.filter(|position| !(file.ends_with(".json") && *position == size - 1)) {
            flip(&path, position);
            let archive = open(root.path(), small()).await;
            let damaged = Error::Damaged { path: file.clone() };
            assert_eq!(archive.verify_day(day(1)).await.unwrap_err(), damaged, "byte {position} of {file}");
            flip(&path, position);
            // Set aside, also for another process, until somebody says that it is right again.
            for archive in [archive, open(root.path(), small()).await] {
                assert_eq!(archive.damaged(), std::slice::from_ref(&file));
                assert_eq!(archive.verify_day(day(1)).await.unwrap_err(), damaged);
                let read = read(&archive, &days, Query::default()).await;
                if file.ends_with(".ids") {
                    assert_eq!(read.unwrap(), written);
                    // Without its digests, the day may contain everything.
                    assert_eq!(archive.find(IdKind::User, "nobody", &days).await.unwrap(), [day(1)]);
                } else {
                    assert_eq!(read.unwrap_err(), damaged);
                }
            }
            let archive = open(root.path(), small()).await;
            archive.clear_damage(&file).await.unwrap();
            assert!(archive.verify_day(day(1)).await.unwrap().is_some());
            assert_eq!(read(&archive, &days, Query::default()).await.unwrap(), written);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shortened_file_is_damaged_and_a_missing_one_is_named() {
    let root = tempdir().unwrap();
    let manifest = write(&open(root.path(), small()).await, day(1), None, &rows(day(1), 15)).await;
    let file = manifest.parts[0].object.path.clone();
    let path = root.path().join(&file);
    let whole = std::fs::read(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(whole.len() as u64 - 1).unwrap();
    let archive = open(root.path(), small()).await;
    let damaged = Error::Damaged { path: file.clone() };
    assert_eq!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap_err(), damaged);
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(read(&archive, &[(day(1), 1)], Query::default()).await.unwrap_err(), damaged);
    archive.clear_damage(&file).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let archive = open(root.path(), small()).await;
    assert_eq!(archive.verify_day(day(1)).await.unwrap_err(), Error::NotFound { path: file });
    assert!(archive.damaged().is_empty(), "a file that is gone may belong to an older revision");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_wrongly_is_not_verified() {
    let root = tempdir().unwrap();
    let archive = open(root.path(), small()).await;
    let mut writer = archive.write_day(day(1), None, true).await.unwrap();
    for row in rows(day(1), 15) {
        writer.push(&row.as_row()).await.unwrap();
    }
    let prepared = writer.finish().await.unwrap();
    let file = prepared.parts()[0].object.path.clone();
    flip(&root.path().join(hidden(&file)), 2_000);
    assert_eq!(prepared.verify().await.unwrap_err(), Error::Damaged { path: file });
}
