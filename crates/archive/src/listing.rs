//! What is stored of a day, by the names of its objects.

use std::path::PathBuf;

use chrono::NaiveDate;

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::store::{Listed, shown_name};

pub(crate) const LOGS: &str = "spend_logs";
pub(crate) const IDS: &str = "ids";

/// What is stored of a day, by name.
#[derive(Debug, Default)]
pub(crate) struct DayListing {
    /// Revisions that are committed, ascending.
    pub(crate) committed: Vec<u32>,
    /// Revisions that are abandoned, ascending.
    pub(crate) abandoned: Vec<u32>,
    /// Parquet files.
    pub(crate) parts: Vec<ListedPart>,
    /// Files of a local archive that are not finished, with the revision that writes them.
    pub(crate) unfinished: Vec<(PathBuf, u32)>,
}

/// A Parquet file of a listing.
#[derive(Debug)]
pub(crate) struct ListedPart {
    /// The name that it has at the moment.
    pub(crate) path: String,
    /// The name by which manifests call it.
    pub(crate) shown: String,
    pub(crate) number: u32,
    /// The revision that wrote it.
    pub(crate) revision: u32,
}

impl ListedPart {
    fn of(path: &str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/')?;
        let shown = shown_name(name).unwrap_or(name);
        let (number, revision) = part_numbers(shown)?;
        Some(Self { path: path.to_owned(), shown: format!("{directory}/{shown}"), number, revision })
    }

    pub(crate) fn is_hidden(&self) -> bool {
        self.path != self.shown
    }
}

/// How a day of the archive looks to other engines, by the names of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayFiles {
    /// The day.
    pub day: NaiveDate,
    /// Its newest revision.
    pub revision: u32,
    /// Other engines read some of its files.
    pub shown: bool,
    /// Some of its files are hidden from other engines.
    pub hidden: bool,
    /// There are earlier revisions whose files were not deleted yet.
    pub superseded: bool,
}

impl DayListing {
    fn of(listed: &[Listed]) -> Self {
        let mut listing = Self::default();
        for object in listed {
            let name = object.path.rsplit('/').next().unwrap_or_default();
            if let Some(revision) = numbered(name, "_manifest-", ".json") {
                let revisions = if object.bytes == 0 { &mut listing.abandoned } else { &mut listing.committed };
                revisions.push(revision);
            } else if let Some(part) = ListedPart::of(&object.path) {
                listing.parts.push(part);
            }
        }
        // Names with more digits than others are not listed in the order of their numbers.
        listing.committed.sort_unstable();
        listing.abandoned.sort_unstable();
        listing
    }

    fn files(&self, day: NaiveDate) -> Option<DayFiles> {
        let revision = *self.committed.last()?;
        let own = || self.parts.iter().filter(|part| part.revision <= revision);
        Some(DayFiles {
            day,
            revision,
            shown: own().any(|part| !part.is_hidden()),
            hidden: own().any(ListedPart::is_hidden),
            superseded: self.committed.len() > 1,
        })
    }

    /// The newest revision, committed or abandoned.
    pub(crate) fn newest(&self) -> u32 {
        let newest = |revisions: &[u32]| revisions.last().copied().unwrap_or_default();
        newest(&self.committed).max(newest(&self.abandoned))
    }
}

fn numbered(name: &str, prefix: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    let number: u32 = digits.parse().ok()?;
    // A number that is written in another way names another object.
    (format!("{number:05}") == digits).then_some(number)
}

/// The number and the revision in `part-00000-00001-4f1c22ab.parquet`.
pub(crate) fn part_numbers(name: &str) -> Option<(u32, u32)> {
    let mut fields = name.strip_prefix("part-")?.strip_suffix(".parquet")?.split('-');
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

pub(crate) fn day_directory(day: NaiveDate) -> String {
    format!("{LOGS}/day={day}")
}

pub(crate) fn manifest_path(day: NaiveDate, revision: u32) -> String {
    format!("{}/_manifest-{revision:05}.json", day_directory(day))
}

pub(crate) fn part_path(day: NaiveDate, number: u32, revision: u32, token: &str) -> String {
    format!("{}/part-{number:05}-{revision:05}-{token}.parquet", day_directory(day))
}

pub(crate) fn ids_path(day: NaiveDate, revision: u32, token: &str) -> String {
    format!("{IDS}/{day}-{revision:05}-{token}.ids")
}

/// Eight hexadecimal digits that tell apart what several writers write.
pub(crate) fn token() -> String {
    format!("{:08x}", rand::random::<u32>())
}

impl Archive {
    /// The days of the archive in ascending order, with their newest revisions.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn days(&self) -> Result<Vec<(NaiveDate, u32)>> {
        Ok(self.day_files().await?.into_iter().map(|files| (files.day, files.revision)).collect())
    }

    /// The days of the archive in ascending order, with what other engines read of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn day_files(&self) -> Result<Vec<DayFiles>> {
        let listed = self.inner.store.list(LOGS).await?;
        let mut days = Vec::new();
        for objects in listed.chunk_by(|a, b| directory(a) == directory(b)) {
            let day = objects.first().and_then(|object| directory(object)?.strip_prefix("day=")?.parse().ok());
            days.extend(day.and_then(|day| DayListing::of(objects).files(day)));
        }
        Ok(days)
    }

    pub(crate) async fn listing(&self, day: NaiveDate) -> Result<DayListing> {
        let mut listing = DayListing::of(&self.inner.store.list(&day_directory(day)).await?);
        let unfinished = self.inner.store.unfinished(&day_directory(day)).into_iter();
        let revision = |name: &str| Some(part_numbers(shown_name(name).unwrap_or(name))?.1);
        listing.unfinished = unfinished.filter_map(|(path, name)| Some((path, revision(&name)?))).collect();
        Ok(listing)
    }
}

/// The number of the revision that follows.
pub(crate) fn following(day: NaiveDate, revision: u32) -> Result<u32> {
    // The database keeps revisions as numbers with a sign.
    let next = revision.checked_add(1).filter(|next| i32::try_from(*next).is_ok());
    next.ok_or_else(|| Error::schema(manifest_path(day, revision), "no revision can follow it"))
}

fn directory(object: &Listed) -> Option<&str> {
    object.path.split('/').nth(1)
}
