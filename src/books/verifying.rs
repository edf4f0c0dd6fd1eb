//! Comparing closed days with the archive and with the rollups.

use litespend_archive::{Archive, Manifest};

use crate::books::closing::expect;
use crate::books::{Error, expect_own, totals_of};
use crate::store::Connection;
use crate::store::books;
use crate::store::books::closing;
use crate::store::books::exporting;
use crate::store::books::{ClosedDay, Totals};

/// How often a day is compared again because it was written meanwhile.
const ATTEMPTS: u32 = 5;

/// Reads the archive of a closed day as a whole and compares it: the files with their hashes, the number of rows, the
/// sums, and the figures that reports have. A server may archive late rows meanwhile, or the day may be opened: there is
/// nothing to compare then.
pub async fn verify_day(connection: &mut Connection, archive: &Archive, closed: &ClosedDay) -> Result<(), Error> {
    let day = closed.day;
    for _ in 0..ATTEMPTS {
        let Some(closed) = books::closed_day(connection, day).await? else { return Ok(()) };
        let read = read_back(archive, &closed).await;
        let mut snapshot = exporting::begin_export(connection).await?;
        let now = books::closed_day(&mut snapshot, day).await?;
        if now.as_ref().map(|now| now.revision) != Some(closed.revision) {
            continue;
        }
        compare(&mut snapshot, &closed, &*read?).await?;
        snapshot.commit().await?;
        closing::record_verified(connection, day).await?;
        return Ok(());
    }
    Err(Error::Busy { day, reason: "its archive was written again and again meanwhile" })
}

/// Compares a closed day with its manifest, in a snapshot.
async fn compare(snapshot: &mut Connection, closed: &ClosedDay, manifest: &Manifest) -> Result<(), Error> {
    let day = closed.day;
    expect_own(day, Some(manifest), &books::database_id(snapshot).await?)?;
    let adjustments = books::adjustments(snapshot, Some(day)).await?;
    let late = sum_of(adjustments.iter().filter(|adjustment| adjustment.kind == "late"));
    let updated = sum_of(adjustments.iter().filter(|adjustment| adjustment.kind == "updated"));
    // Rows are archived as they are at that time, so the archive's sums are compared with those recorded then.
    if let Some(recorded) = closed.archived()
        && manifest.revision == closed.revision.unsigned_abs()
    {
        expect(day, "the archive", &totals_of(&manifest.sums), &recorded)?;
    }
    let ids = books::archived_id_count(snapshot, day).await?;
    if ids > closed.archived_rows {
        return Err(Error::Figures {
            day,
            place: "the database",
            found: format!("{ids} ids that the archive should have"),
            expected: format!("{} at most", closed.archived_rows),
        });
    }
    let expected = closed.totals.plus(&late).plus(&updated);
    expect(day, "the rollups", &closing::totals(snapshot, day).await?, &expected)
}

fn sum_of<'a>(adjustments: impl Iterator<Item = &'a books::Adjustment>) -> Totals {
    adjustments.fold(Totals::default(), |sum, adjustment| sum.plus(&adjustment.totals))
}

/// Reads the archive of a closed day as a whole and compares it with what was written.
pub async fn read_back(archive: &Archive, closed: &ClosedDay) -> Result<std::sync::Arc<Manifest>, Error> {
    let day = closed.day;
    let Some(manifest) = archive.verify_day(day).await? else {
        return Err(Error::Refused(format!("{day}: the archive does not have this day")));
    };
    let rows = i64::try_from(manifest.sums.rows).unwrap_or(i64::MAX);
    if i64::from(manifest.revision) < i64::from(closed.revision)
        || manifest.revision == closed.revision.unsigned_abs() && rows != closed.archived_rows
        || rows < closed.archived_rows
    {
        return Err(Error::Figures {
            day,
            place: "the archive",
            found: format!("revision {} with {rows} rows", manifest.revision),
            expected: format!("revision {} with {} rows", closed.revision, closed.archived_rows),
        });
    }
    Ok(manifest)
}
