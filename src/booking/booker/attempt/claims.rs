//! Claims the ids of records, and decides about records whose ids are already taken: whether the earlier record, or the row
//! of the log, is the same one.

use std::collections::HashMap;

use chrono::{Days, NaiveDate, Utc};
use uuid::Uuid;

use crate::booking::Identity;
use crate::booking::booker::Outcome;
use crate::booking::booker::attempt::Failed;
use crate::booking::booker::attempt::item::{Item, derived};
use crate::booking::limits::Refusal;
use crate::settings::BookingLimits;
use crate::store::Connection;
use crate::store::booking as store_usage;
use crate::store::booking::ExistingRow;
use crate::store::booking::ids;
use crate::store::booking::ids::{Claim, Known};
use crate::store::books;

const ARCHIVED: &str = "idempotency_key: a closed day counts a call with this id already, and it is too long ago to tell whose \
                        call that is; use another idempotency_key";

pub(super) const CONFLICT: &str =
    "idempotency_key: the same sender already used it for a different record; use another idempotency_key";

/// Sets the outcome of a record whose id is already taken.
fn judge(item: &mut Item<'_>, known: &Known, booking: Uuid) {
    let Known { request_id, spend, .. } = known;
    let (request_id, spend) = (request_id.clone(), *spend);
    item.outcome = Some(if known.booking == booking {
        Outcome::Recorded { request_id, spend }
    } else if known.digest == item.digest {
        Outcome::Duplicate { request_id, spend }
    } else {
        Outcome::Rejected(Refusal::conflict(CONFLICT))
    });
}

/// Sets the outcome of the records whose ids are already taken.
pub(super) async fn look_up(connection: &mut Connection, items: &mut [Item<'_>], booking: Uuid) -> Result<(), Failed> {
    let open: Vec<Uuid> = items.iter().filter(|item| item.is_open()).filter_map(|item| item.id).collect();
    if open.is_empty() {
        return Ok(());
    }
    let known: HashMap<Uuid, Known> =
        ids::known(connection, &open).await?.into_iter().map(|known| (known.id, known)).collect();
    for item in items.iter_mut().filter(|item| item.is_open()) {
        if let Some(known) = item.id.and_then(|id| known.get(&id)) {
            judge(item, known, booking);
        }
    }
    Ok(())
}

/// Claims the ids of the open records, and sets the outcome of the records whose ids are already taken.
pub(super) async fn claim(connection: &mut Connection, items: &mut [Item<'_>], booking: Uuid) -> Result<(), Failed> {
    let claim = |item: &'_ Item<'_>| {
        item.id.filter(|_| item.is_open()).map(|id| (id, item.digest, item.row.request_id.clone(), item.row.spend))
    };
    let mut wanted: Vec<_> = items.iter().filter_map(claim).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    wanted.sort_unstable_by_key(|(id, ..)| *id);
    let claims: Vec<Claim<'_>> = wanted
        .iter()
        .map(|(id, digest, request_id, spend)| Claim { id: *id, digest, request_id, spend: *spend })
        .collect();
    let taken = ids::claim(connection, &claims, booking).await?;
    if taken.len() == claims.len() {
        return Ok(());
    }
    let others: Vec<Uuid> = claims.iter().map(|claim| claim.id).filter(|id| !taken.contains(id)).collect();
    let known: HashMap<Uuid, Known> =
        ids::known(connection, &others).await?.into_iter().map(|known| (known.id, known)).collect();
    for item in items.iter_mut().filter(|item| item.is_open()) {
        let Some(id) = item.id.filter(|id| !taken.contains(id)) else { continue };
        match known.get(&id) {
            Some(known) => judge(item, known, booking),
            // The id was deleted between the two statements, because it was old.
            None => item.outcome = Some(Outcome::Rejected(Refusal::unavailable("not booked: send the record again"))),
        }
    }
    Ok(())
}

/// Settles records whose id a closed day already counts and whose row has left the log since. Rows of an exported log are
/// those rows, and so they are duplicates. Other records are not: their own ids were looked up before, and so the id
/// belongs to somebody else. They get a new id, as if the row were still there. They are refused if they are so old that
/// their sender's ids are no longer kept.
pub(super) async fn settle_archived(
    connection: &mut Connection,
    items: &mut [Item<'_>],
    limits: &BookingLimits,
) -> Result<(), Failed> {
    let rows: Vec<(&str, NaiveDate)> = items
        .iter()
        .filter(|item| item.is_open())
        .map(|item| (item.row.request_id.as_str(), item.row.start_time.date()))
        .collect();
    let archived = books::archived_ids(connection, &rows).await?;
    if archived.is_empty() {
        return Ok(());
    }
    let kept = Days::new(u64::from(limits.keep_ids_days));
    let first_kept = Utc::now().date_naive().checked_sub_days(kept).unwrap_or(NaiveDate::MIN);
    let mut settled: Vec<(Uuid, String, f64)> = Vec::new();
    let mut given_back: Vec<Uuid> = Vec::new();
    for item in items.iter_mut().filter(|item| item.is_open() && archived.contains(&item.row.request_id)) {
        if matches!(item.draft.identity, Identity::Logged) {
            let (request_id, spend) = (item.row.request_id.clone(), item.row.spend);
            item.outcome = Some(Outcome::Duplicate { request_id, spend });
        } else if item.row.start_time.date() < first_kept {
            given_back.extend(item.id);
            item.outcome = Some(Outcome::Rejected(Refusal::conflict(ARCHIVED)));
        } else {
            item.row.request_id = derived(&item.draft.row.request_id);
            settled.extend(item.id.map(|id| (id, item.row.request_id.clone(), item.row.spend)));
        }
    }
    if !given_back.is_empty() {
        ids::give_back(connection, &given_back).await?;
    }
    settle(connection, &settled).await
}

/// Stores the ids that rows got in the end.
async fn settle(connection: &mut Connection, settled: &[(Uuid, String, f64)]) -> Result<(), Failed> {
    if settled.is_empty() {
        return Ok(());
    }
    let settled: Vec<(Uuid, &str, f64)> =
        settled.iter().map(|(id, request_id, spend)| (*id, request_id.as_str(), *spend)).collect();
    Ok(ids::settle(connection, &settled).await?)
}

/// Decides for records whose id is already in the log whether that row is theirs. The other records get a new id.
pub(super) async fn settle_conflicts(
    connection: &mut Connection,
    items: &mut [Item<'_>],
    conflicts: &[usize],
    booking: Uuid,
) -> Result<(), Failed> {
    let ids: Vec<&str> =
        conflicts.iter().filter_map(|index| items.get(*index)).map(|item| item.row.request_id.as_str()).collect();
    let booked = ids::booked_by_others(connection, &ids, booking).await?;
    let existing = store_usage::existing(connection, &ids).await?;
    let existing: HashMap<String, ExistingRow> =
        existing.into_iter().map(|row| (row.request_id.clone(), row)).collect();
    let mut settled: Vec<(Uuid, String, f64)> = Vec::new();
    let mut given_back: Vec<Uuid> = Vec::new();
    for index in conflicts {
        let Some(item) = items.get_mut(*index) else { continue };
        let found = existing.get(&item.row.request_id);
        match found.map_or(Theirs::Foreign, |row| theirs(item, row, booked.contains(&row.request_id))) {
            Theirs::Own => item.outcome = Some(item.recorded()),
            Theirs::Earlier(spend) => {
                let request_id = item.row.request_id.clone();
                settled.extend(item.id.map(|id| (id, request_id.clone(), spend)));
                item.outcome = Some(Outcome::Duplicate { request_id, spend });
            }
            Theirs::Differs => {
                given_back.extend(item.id);
                item.outcome = Some(Outcome::Rejected(Refusal::conflict(CONFLICT)));
            }
            Theirs::Foreign => {
                item.row.request_id = derived(&item.draft.row.request_id);
                settled.extend(item.id.map(|id| (id, item.row.request_id.clone(), item.row.spend)));
            }
        }
    }
    settle(connection, &settled).await?;
    if !given_back.is_empty() {
        ids::give_back(connection, &given_back).await?;
    }
    Ok(())
}

/// The relation of a record to an existing row of the log with the same id.
enum Theirs {
    /// The record's own row: an earlier attempt committed it, but its answer was lost.
    Own,
    /// The record's row, booked by LiteLLM or before ids were stored. Contains its cost in USD.
    Earlier(f64),
    /// The sender's row, but of a different record.
    Differs,
    /// The row of another sender.
    Foreign,
}

fn theirs(item: &Item<'_>, row: &ExistingRow, booked_by_another: bool) -> Theirs {
    let own_key = row.api_key == item.row.api_key;
    match &item.draft.identity {
        // Nobody else can know the id.
        Identity::New => Theirs::Own,
        Identity::Sent { stated_cost, .. } if own_key && !booked_by_another => {
            if stated_cost.is_none_or(|cost| (cost - row.spend).abs() <= 1e-12 * cost.abs()) {
                Theirs::Earlier(row.spend)
            } else {
                Theirs::Differs
            }
        }
        Identity::Logged if own_key => {
            let logged = item.row.archived.as_deref().map_or(item.row.spend, |archived| archived.spend);
            if is_same(row.spend, logged) && row.start_time == item.row.start_time {
                Theirs::Earlier(row.spend)
            } else if booked_by_another {
                Theirs::Foreign
            } else {
                Theirs::Differs
            }
        }
        _ => Theirs::Foreign,
    }
}

/// Whether two amounts are equal. Zeros are, whatever their signs, and so are amounts that are not a number.
fn is_same(one: f64, other: f64) -> bool {
    (one + 0.0).to_bits() == (other + 0.0).to_bits() || (one.is_nan() && other.is_nan())
}
