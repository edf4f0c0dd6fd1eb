//! Comparing closed days with the archive and with the rollups.

use litespend_archive::{Archive, Manifest};

use crate::books::closing::expect;
use crate::books::{Error, expect_own, totals_of};
use crate::store::Connection;
use crate::store::books;
use crate::store::books::closing;
use crate::store::books::{ClosedDay, Totals};

/// Reads the archive of a closed day as a whole and compares it: the files with their hashes, the number of rows, the
/// sums, and the figures that reports have.
pub async fn verify_day(connection: &mut Connection, archive: &Archive, closed: &ClosedDay) -> Result<(), Error> {
    let day = closed.day;
    let manifest = read_back(archive, closed).await?;
    expect_own(day, Some(&manifest), &books::database_id(connection).await?)?;
    let adjustments = books::adjustments(connection, Some(day)).await?;
    let late = sum_of(adjustments.iter().filter(|adjustment| adjustment.kind == "late"));
    let updated = sum_of(adjustments.iter().filter(|adjustment| adjustment.kind == "updated"));
    // Rows are archived as they are at that time, so the archive's sums are compared with those recorded then.
    if let Some(recorded) = closed.archived()
        && manifest.revision == closed.revision.unsigned_abs()
    {
        expect(day, "the archive", &totals_of(&manifest.sums), &recorded)?;
    }
    let ids = books::archived_id_count(connection, day).await?;
    if ids > closed.archived_rows {
        return Err(Error::Figures {
            day,
            place: "the database",
            found: format!("{ids} ids that the archive should have"),
            expected: format!("{} at most", closed.archived_rows),
        });
    }
    let expected = closed.totals.plus(&late).plus(&updated);
    expect(day, "the rollups", &closing::totals(connection, day).await?, &expected)?;
    closing::record_verified(connection, day).await?;
    Ok(())
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
