//! A record that is being booked: its row, its owner, and the identity by which it is booked only once.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::booking::booker::Outcome;
use crate::booking::booker::attempt::Failed;
use crate::booking::limits::Refusal;
use crate::booking::{Draft, Identity, NewNames, Owner, metadata};
use crate::store::Connection;
use crate::store::booking as store_usage;
use crate::store::booking::UsageRow;
use crate::store::booking::ids::Access;
use crate::store::booking::tables::Tables;

/// A record that is being booked.
pub(super) struct Item<'a> {
    pub(super) draft: &'a Draft,
    pub(super) row: UsageRow,
    /// The hash of sender and id, if the record states an id.
    pub(super) id: Option<Uuid>,
    pub(super) digest: [u8; 32],
    /// The position of an earlier record in this transaction with the same id.
    pub(super) first: Option<usize>,
    pub(super) outcome: Option<Outcome>,
}

impl Item<'_> {
    pub(super) fn is_open(&self) -> bool {
        self.outcome.is_none() && self.first.is_none()
    }

    pub(super) fn recorded(&self) -> Outcome {
        Outcome::Recorded { request_id: self.row.request_id.clone(), spend: self.row.spend }
    }

    pub(super) fn sender(&self) -> &str {
        match &self.draft.identity {
            Identity::Sent { sender, .. } => sender,
            Identity::New | Identity::Logged => &self.draft.row.api_key,
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let own = [self.row.model.as_str(), self.row.end_user.as_str()];
        own.into_iter().chain(self.row.tags.iter().map(String::as_str)).filter(|name| !name.is_empty())
    }

    /// The names that are new, each once.
    pub(super) fn new_names(&self, new: &HashSet<String>) -> HashSet<String> {
        self.names().filter(|name| new.contains(*name)).map(str::to_owned).collect()
    }

    /// Removes new names until at most `most` are left: tags first, then the customer, then the model. The metadata
    /// lists the fields.
    pub(super) fn leave_out_names(&mut self, new: &HashSet<String>, most: usize) {
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

/// Adds the owners to the records. Refuses those that can't be booked.
pub(super) async fn items<'a>(
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
pub(super) fn derived(id: &str) -> String {
    format!("{id}~{}", Uuid::new_v4().simple())
}
