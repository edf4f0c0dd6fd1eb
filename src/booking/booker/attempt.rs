//! One transaction: determines by the senders' ids which records are new; writes their rows, counters and daily rows;
//! and returns the outcome of each record. If the connection is lost, the attempt runs again from the start. Records
//! that an earlier attempt did commit are recognised by the UUID of this booking.

mod claims;
mod item;

use std::collections::HashSet;

use crate::store::{self, Connection};
use uuid::Uuid;

use crate::booking::booker::attempt::claims::{CONFLICT, claim, look_up, settle_archived, settle_conflicts};
use crate::booking::booker::attempt::item::{Item, items};
use crate::booking::booker::{BookingError, Outcome};
use crate::booking::limits::Refusal;
use crate::booking::{Draft, NewNames};
use crate::settings::BookingLimits;
use crate::store::booking as store_usage;
use crate::store::booking::counters;
use crate::store::booking::counters::Totals;
use crate::store::booking::daily;
use crate::store::booking::daily::Days as DailyRows;
use crate::store::booking::ids;
use crate::store::booking::ids::Access;
use crate::store::booking::tables::Tables;
use crate::store::booking::{UsageRow, names};

/// The reason why an attempt failed.
pub(super) enum Failed {
    /// An error of the database, which may justify a retry.
    Database(store::Error),
    /// An error that a retry would not change.
    Final(BookingError),
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        Self::Database(error)
    }
}

/// Books records in one transaction. `booking` is the same in every attempt for the same records.
pub(super) async fn run(
    connection: &mut Connection,
    tables: &Tables,
    drafts: &[&Draft],
    limits: &BookingLimits,
    booking: Uuid,
) -> Result<Vec<Outcome>, Failed> {
    let access = ids::access(connection).await?;
    if access == Access::NotInstalled {
        return Err(Failed::Final(BookingError::NotInstalled));
    }
    let mut items = items(connection, tables, drafts, access).await?;
    let mut transaction = store::begin(connection).await?;
    if items.iter().any(|item| item.is_open() && item.draft.new_names != NewNames::Unlimited) {
        look_up(&mut transaction, &mut items, booking).await?;
        bound_names(&mut transaction, &mut items, limits).await?;
    }
    claim(&mut transaction, &mut items, booking).await?;
    settle_archived(&mut transaction, &mut items, limits).await?;
    insert(&mut transaction, tables, &mut items, booking).await?;
    transaction.commit().await?;
    Ok(outcomes(items))
}

/// Refuses the records that would exceed their sender's daily limit for new names, or leaves the names out.
async fn bound_names(
    connection: &mut Connection,
    items: &mut [Item<'_>],
    limits: &BookingLimits,
) -> Result<(), Failed> {
    let counted = |item: &&Item<'_>| item.is_open() && item.draft.new_names != NewNames::Unlimited;
    let mut used: Vec<&str> = items.iter().filter(counted).flat_map(Item::names).collect();
    used.sort_unstable();
    used.dedup();
    if names::new_ones(connection, &used).await?.is_empty() {
        return Ok(());
    }
    let mut senders: Vec<&str> = items.iter().filter(counted).map(Item::sender).collect();
    senders.sort_unstable();
    senders.dedup();
    names::lock(connection, &senders).await?;
    let mut new = names::new_ones(connection, &used).await?;
    let mut brought = names::brought_today(connection, &senders).await?;
    let most = i64::from(limits.new_names_a_day);
    let mut added: Vec<(String, String)> = Vec::new();
    for item in items.iter_mut() {
        if !counted(&&*item) {
            continue;
        }
        let count = brought.entry(item.sender().to_owned()).or_default();
        let room = usize::try_from(most - *count).unwrap_or(0);
        let mut own = item.new_names(&new);
        if own.len() > room {
            if item.draft.new_names == NewNames::Refused {
                let message = format!(
                    "model, end_user_id, tags: this key has used {count} new names today; its limit is {most} per day \
                     (UTC)"
                );
                item.outcome = Some(Outcome::Rejected(Refusal::too_many(message)));
                continue;
            }
            item.leave_out_names(&new, room);
            own = item.new_names(&new);
        }
        *count += i64::try_from(own.len()).unwrap_or(i64::MAX);
        for name in own {
            new.remove(&name);
            added.push((name, item.sender().to_owned()));
        }
    }
    if !added.is_empty() {
        let added: Vec<(&str, &str)> = added.iter().map(|(name, sender)| (name.as_str(), sender.as_str())).collect();
        names::add(connection, &added).await?;
    }
    Ok(())
}

/// Inserts the rows of the open records, and adds them to the counters and daily tables.
async fn insert(
    connection: &mut Connection,
    tables: &Tables,
    items: &mut [Item<'_>],
    booking: Uuid,
) -> Result<(), Failed> {
    let mut new = insert_open(connection, tables, items).await?;
    let conflicts: Vec<usize> = (0..items.len())
        .filter(|index| items.get(*index).is_some_and(|item| item.is_open() && !new.contains(&item.row.request_id)))
        .collect();
    if !conflicts.is_empty() {
        settle_conflicts(connection, items, &conflicts, booking).await?;
        for index in &conflicts {
            if let Some(item) = items.get(*index).filter(|item| item.is_open()) {
                new.remove(&item.row.request_id);
            }
        }
        let derived: Vec<&UsageRow> = conflicts
            .iter()
            .filter_map(|index| items.get(*index).filter(|item| item.is_open()).map(|item| &item.row))
            .collect();
        if !derived.is_empty() {
            new.extend(store_usage::insert(connection, tables, &derived).await?);
        }
    }
    let rows =
        || items.iter().filter(|item| item.is_open() && new.contains(&item.row.request_id)).map(|item| &item.row);
    if rows().next().is_some() {
        counters::add(connection, tables, &Totals::of(rows())).await?;
        daily::add(connection, tables, &DailyRows::of(tables, rows())).await?;
    }
    for item in items.iter_mut().filter(|item| item.is_open()) {
        item.outcome = Some(item.recorded());
    }
    Ok(())
}

/// Inserts the rows of all open records, in the order of their ids. Returns the ids that were free.
async fn insert_open(
    connection: &mut Connection,
    tables: &Tables,
    items: &[Item<'_>],
) -> Result<HashSet<String>, Failed> {
    let mut rows: Vec<&UsageRow> = items.iter().filter(|item| item.is_open()).map(|item| &item.row).collect();
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    rows.sort_unstable_by(|a, b| a.request_id.cmp(&b.request_id));
    Ok(store_usage::insert(connection, tables, &rows).await?)
}

/// The outcome of each record. Among several records with the same id, the first one counts.
fn outcomes(items: Vec<Item<'_>>) -> Vec<Outcome> {
    let lost = || Outcome::Rejected(Refusal::unavailable("not booked: send the record again"));
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(items.len());
    let digests: Vec<[u8; 32]> = items.iter().map(|item| item.digest).collect();
    for item in items {
        let outcome = match item.first {
            None => item.outcome.unwrap_or_else(lost),
            Some(first) => match outcomes.get(first) {
                Some(Outcome::Rejected(refusal)) => Outcome::Rejected(refusal.clone()),
                _ if digests.get(first) != Some(&item.digest) => Outcome::Rejected(Refusal::conflict(CONFLICT)),
                Some(Outcome::Recorded { request_id, spend } | Outcome::Duplicate { request_id, spend }) => {
                    Outcome::Duplicate { request_id: request_id.clone(), spend: *spend }
                }
                None => lost(),
            },
        };
        outcomes.push(outcome);
    }
    outcomes
}
