//! One transaction: determines by the senders' ids which records are new; writes their rows, counters and daily rows;
//! and returns the outcome of each record. If the connection is lost, the attempt runs again from the start. Records
//! that an earlier attempt did commit are recognised by the UUID of this booking.

use std::collections::{HashMap, HashSet};

use crate::store::{self, Connection};
use chrono::{Days, NaiveDate, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::booking::booker::{BookingError, Outcome};
use crate::booking::limits::Refusal;
use crate::booking::{Draft, Identity, NewNames, Owner, metadata};
use crate::settings::BookingLimits;
use crate::store::booking as store_usage;
use crate::store::booking::counters;
use crate::store::booking::counters::Totals;
use crate::store::booking::daily;
use crate::store::booking::daily::Days as DailyRows;
use crate::store::booking::ids;
use crate::store::booking::ids::{Access, Claim, Known};
use crate::store::booking::tables::Tables;
use crate::store::booking::{ExistingRow, UsageRow, names};
use crate::store::books;

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

/// A record that is being booked.
struct Item<'a> {
    draft: &'a Draft,
    row: UsageRow,
    /// The hash of sender and id, if the record states an id.
    id: Option<Uuid>,
    digest: [u8; 32],
    /// The position of an earlier record in this transaction with the same id.
    first: Option<usize>,
    outcome: Option<Outcome>,
}

impl Item<'_> {
    fn is_open(&self) -> bool {
        self.outcome.is_none() && self.first.is_none()
    }

    fn recorded(&self) -> Outcome {
        Outcome::Recorded { request_id: self.row.request_id.clone(), spend: self.row.spend }
    }

    fn sender(&self) -> &str {
        match &self.draft.identity {
            Identity::Sent { sender, .. } => sender,
            Identity::New | Identity::Logged => &self.draft.row.api_key,
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let own = [self.row.model.as_str(), self.row.end_user.as_str()];
        own.into_iter().chain(self.row.tags.iter().map(String::as_str)).filter(|name| !name.is_empty())
    }

    /// The names that are new, each once.
    fn new_names(&self, new: &HashSet<String>) -> HashSet<String> {
        self.names().filter(|name| new.contains(*name)).map(str::to_owned).collect()
    }

    /// Removes new names until at most `most` are left: tags first, then the customer, then the model. The metadata
    /// lists the fields.
    fn leave_out_names(&mut self, new: &HashSet<String>, most: usize) {
        let mut kept: HashSet<String> = HashSet::new();
        let mut keep = |name: &String| {
            if !new.contains(name) || kept.contains(name) {
                return true;
            }
            let fits = kept.len() < most;
            if fits {
                kept.insert(name.clone());
            }
            fits
        };
        let row = &mut self.row;
        let mut lost: Vec<&str> = Vec::new();
        for (field, name) in [("model", &mut row.model), ("end_user", &mut row.end_user)] {
            if !keep(name) {
                name.clear();
                lost.push(field);
            }
        }
        let tags = row.tags.len();
        row.tags.retain(keep);
        if row.tags.len() < tags {
            lost.push("request_tags");
        }
        row.metadata = metadata::without(&row.metadata, &lost);
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

/// Adds the owners to the records. Refuses those that can't be booked.
async fn items<'a>(
    connection: &mut Connection,
    tables: &Tables,
    drafts: &[&'a Draft],
    access: Access,
) -> Result<Vec<Item<'a>>, Failed> {
    let mut tokens: Vec<&str> =
        drafts.iter().filter(|draft| draft.owner != Owner::Given).map(|draft| draft.row.api_key.as_str()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let owners =
        if tokens.is_empty() { Vec::new() } else { store_usage::key_owners(connection, tables, &tokens).await? };
    let owners: HashMap<&str, _> = owners.iter().map(|owner| (owner.token.as_str(), owner)).collect();
    let mut firsts: HashMap<Uuid, usize> = HashMap::new();
    let mut taken: HashSet<&str> = HashSet::with_capacity(drafts.len());
    let mut items: Vec<Item<'a>> = Vec::with_capacity(drafts.len());
    for draft in drafts.iter().copied() {
        let (id, digest) = identify(draft);
        let mut item = Item { draft, row: draft.row.clone(), id, digest, first: None, outcome: None };
        let owner = owners.get(draft.row.api_key.as_str());
        if access == Access::Installed && draft.new_names != NewNames::Unlimited {
            let message = "only keys with the permission book_usage can book in a database that LiteLLM owns";
            item.outcome = Some(Outcome::Rejected(Refusal::forbidden(message)));
        } else if draft.owner == Owner::OfKey && owner.is_none() {
            item.outcome = Some(Outcome::Rejected("api_key: the key does not exist".into()));
        } else {
            if let (Owner::OfKey | Owner::OfKeyWhereKnown, Some(owner)) = (draft.owner, owner) {
                complete(&mut item.row, owner);
            }
            item.first = id.and_then(|id| firsts.get(&id).copied());
            if let (Some(id), None) = (id, item.first) {
                firsts.insert(id, items.len());
            }
            if item.first.is_none() && !taken.insert(&draft.row.request_id) {
                item.row.request_id = derived(&draft.row.request_id);
            }
        }
        items.push(item);
    }
    Ok(items)
}

/// Fills in the parts of the owner that the row leaves empty from the row's key.
fn complete(row: &mut UsageRow, owner: &store_usage::KeyOwner) {
    for (field, value) in [
        (&mut row.user, &owner.user_id),
        (&mut row.team_id, &owner.team_id),
        (&mut row.organization_id, &owner.organization_id),
    ] {
        if field.is_empty() {
            value.as_deref().unwrap_or_default().clone_into(field);
        }
    }
}

/// The id under which a record is booked once, and the digest of what was sent. A row of a log is identified by its key
/// and its id, in whatever form it was exported.
fn identify(draft: &Draft) -> (Option<Uuid>, [u8; 32]) {
    let row = &draft.row;
    match &draft.identity {
        Identity::New => (None, [0; 32]),
        Identity::Sent { sender, digest, .. } => (Some(name(&[sender, &row.request_id])), *digest),
        Identity::Logged => {
            let mut digest = Sha256::new();
            digest.update(row.spend.to_bits().to_be_bytes());
            digest.update(row.start_time.and_utc().timestamp_millis().to_be_bytes());
            digest.update(row.total_tokens.to_be_bytes());
            digest.update(row.model.as_bytes());
            (Some(name(&["log", &row.api_key, &row.request_id])), digest.finalize().into())
        }
    }
}

/// The first 128 bits of a hash of strings. The strings must not contain NUL.
fn name(texts: &[&str]) -> Uuid {
    let digest: [u8; 32] = Sha256::digest(texts.join("\0")).into();
    Uuid::from_bytes(digest.first_chunk().copied().unwrap_or_default())
}

/// A new id in the log for a record whose own id belongs to another row. Nobody else can predict it.
fn derived(id: &str) -> String {
    format!("{id}~{}", Uuid::new_v4().simple())
}

const ARCHIVED: &str = "idempotency_key: a closed day counts a call with this id already, and it is too long ago to tell whose \
                        call that is; use another idempotency_key";

const CONFLICT: &str =
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
async fn look_up(connection: &mut Connection, items: &mut [Item<'_>], booking: Uuid) -> Result<(), Failed> {
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

/// Claims the ids of the open records, and sets the outcome of the records whose ids are already taken.
async fn claim(connection: &mut Connection, items: &mut [Item<'_>], booking: Uuid) -> Result<(), Failed> {
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
async fn settle_archived(
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

/// Decides for records whose id is already in the log whether that row is theirs. The other records get a new id.
async fn settle_conflicts(
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
