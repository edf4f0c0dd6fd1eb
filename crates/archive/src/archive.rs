//! The archive: which days there are, in which revision, and what they are made of.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{Datelike, NaiveDate};
use moka::sync::Cache;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::blocks::BlockReader;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::find::MonthIndex;
use crate::ids::FanOut;
use crate::location::Location;
use crate::manifest::{Manifest, parse, unseal};
use crate::store::{Created, Listed, Store, shown_name};

pub(crate) const LOGS: &str = "spend_logs";
pub(crate) const IDS: &str = "ids";

/// How an archive is opened.
#[derive(Clone, PartialEq)]
pub struct Options {
    /// Settings of the object store, by the names of their environment variables, for example `AWS_ENDPOINT_URL`. They
    /// take precedence over the environment.
    pub settings: Vec<(String, String)>,
    /// The longest time that one request to the store may take, with all its retries.
    pub time_limit: Duration,
    /// How often a request to an object store is repeated within the time limit.
    pub retries: usize,
    /// Memory for blocks of objects that were read, in bytes.
    pub block_cache_bytes: u64,
    /// Memory for the metadata of Parquet files, fan-out tables and manifests, in bytes.
    pub metadata_cache_bytes: u64,
    /// The most digests of ids that are kept in memory while a day is written; 8 bytes each.
    pub digests_in_memory: usize,
    /// The directory for temporary files. They hold digests of ids while a day is written.
    pub scratch: PathBuf,
    /// The most rows of a Parquet file.
    pub rows_per_part: u64,
    /// The size at which a Parquet file ends, in bytes. A file is larger by a row group at most.
    pub bytes_per_part: u64,
    /// The most rows of a row group.
    pub rows_per_group: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settings: Vec::new(),
            time_limit: Duration::from_secs(15),
            retries: 3,
            block_cache_bytes: 32 * 1024 * 1024,
            metadata_cache_bytes: 32 * 1024 * 1024,
            digests_in_memory: 1 << 20,
            scratch: std::env::temp_dir(),
            rows_per_part: 4_000_000,
            bytes_per_part: 1 << 30,
            rows_per_group: 131_072,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values of settings may be secrets.
        let names: Vec<&String> = self.settings.iter().map(|(name, _)| name).collect();
        formatter
            .debug_struct("Options")
            .field("settings", &names)
            .field("time_limit", &self.time_limit)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// An archive of closed days. Clones are cheap and share their caches.
#[derive(Debug, Clone)]
pub struct Archive {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) location: Location,
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) damage: Damage,
    pub(crate) reader: BlockReader,
    pub(crate) metadata: Cache<Arc<str>, ArrowReaderMetadata>,
    pub(crate) manifests: Cache<(NaiveDate, u32), Arc<Manifest>>,
    pub(crate) fan_outs: Cache<Arc<str>, Arc<FanOut>>,
    pub(crate) months: Cache<(i32, u32), Arc<MonthIndex>>,
    /// Whether nobody has found out yet that the store can be written as it must be.
    pub(crate) is_untried: AtomicBool,
}

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
    /// Opens the archive at a URL: a directory (a path or `file://`), `s3://bucket/path`, `gs://bucket/path` or
    /// `az://container/path`. Object stores take their settings from the usual environment variables, for example
    /// `AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL` and `AWS_ALLOW_HTTP`. Creates the directory.
    ///
    /// In a URL, `%` and two digits stand for a byte: names of objects begin with the decoded path. A path without `://` is the
    /// directory's name as it stands.
    ///
    /// # Errors
    /// [`Error::BadUrl`], or [`Error::Unavailable`] if the store does not answer.
    pub async fn open(url: &str, options: Options) -> Result<Self> {
        let archive = Self::at(url, options)?;
        archive.inner.damage.load().await?;
        archive.inner.is_untried.store(false, Ordering::Relaxed);
        Ok(archive)
    }

    /// The archive at a URL, as [`Archive::open`], whose store is not asked before it is needed: it may be away for now.
    /// Before the first day is written, [`Archive::probe`] is run.
    ///
    /// # Errors
    /// [`Error::BadUrl`].
    pub fn at(url: &str, options: Options) -> Result<Self> {
        let location = Location::parse(url)?;
        let store = location.store(&options)?;
        let store = Store::new(store, options.time_limit, location.directory());
        let damage = Damage::new(store.clone());
        let reader = BlockReader::new(store.clone(), damage.clone(), options.block_cache_bytes);
        let share = options.metadata_cache_bytes / 4;
        let metadata = Cache::builder()
            .weigher(|_, metadata: &ArrowReaderMetadata| {
                u32::try_from(metadata.metadata().memory_size()).unwrap_or(u32::MAX)
            })
            .max_capacity(share * 2);
        let manifests = Cache::builder()
            .weigher(|_, manifest: &Arc<Manifest>| {
                let objects = manifest.parts.iter().map(|part| &part.object).chain([&manifest.ids]);
                let weight: usize = objects.map(|object| object.blocks.len() * 8 + 512).sum();
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .max_capacity(share);
        let fan_outs = Cache::builder().weigher(|_, table: &Arc<FanOut>| table.weight()).max_capacity(share);
        // A month that another process has compacted in the meantime is noticed after a while. Until then, the files
        // of its days serve.
        let months = Cache::builder().max_capacity(64).time_to_live(Duration::from_secs(60));
        Ok(Self {
            inner: Arc::new(Inner {
                location,
                store,
                damage,
                reader,
                metadata: metadata.build(),
                manifests: manifests.build(),
                fan_outs: fan_outs.build(),
                months: months.build(),
                is_untried: AtomicBool::new(true),
                options,
            }),
        })
    }

    /// Asks the store whether it is there. With `is_written`, also [probes](Archive::probe) it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it does not answer, or another error that a second attempt does not change.
    pub async fn check(&self, is_written: bool) -> Result<()> {
        self.inner.damage.load().await?;
        if is_written { self.probe().await } else { Ok(()) }
    }

    /// Whether the archive is a directory of this machine.
    pub fn is_local(&self) -> bool {
        self.inner.store.is_local()
    }

    /// Writes, reads and deletes a small object, so that a place without the necessary rights is found out at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Refused`].
    pub async fn probe(&self) -> Result<()> {
        let store = &self.inner.store;
        let path = format!("_probe-{}", token());
        let bytes = Bytes::from_static(b"litespend\n");
        if store.create(&path, bytes.clone()).await? == Created::Exists {
            return Err(Error::Refused("an object that was not there before exists".to_owned()));
        }
        let read = store.get(&path).await?;
        // A store that ignores the condition would let two writers write one revision of a day.
        let again = store.create(&path, Bytes::from_static(b"second\n")).await?;
        store.delete(&path).await?;
        if read != bytes {
            return Err(Error::Refused("the store returned other bytes than were written".to_owned()));
        }
        if again == Created::Yes {
            return Err(Error::Refused("the store does not support conditional writes".to_owned()));
        }
        self.inner.is_untried.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The archive's URL, or its directory as an absolute path.
    pub fn url(&self) -> String {
        self.inner.location.url()
    }

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

    /// The newest revision of a day. `None` if the day is not in the archive. Asks the store.
    ///
    /// # Errors
    /// Any [`Error`] about the manifest.
    pub async fn manifest(&self, day: NaiveDate) -> Result<Option<Arc<Manifest>>> {
        match self.listing(day).await?.committed.last() {
            Some(revision) => self.manifest_at(day, *revision).await.map(Some),
            None => Ok(None),
        }
    }

    /// A revision of a day that the caller knows of, or the newest one if that was replaced meanwhile. As long as the day
    /// stays closed, that has all rows of the earlier one. If the day was opened and closed again, it has the rows that the
    /// log had the second time.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is neither, or any [`Error`] about the manifest.
    pub(crate) async fn manifest_from(&self, day: NaiveDate, revision: u32) -> Result<Arc<Manifest>> {
        match self.manifest_at(day, revision).await {
            Err(Error::NotFound { path }) => match self.manifest(day).await? {
                Some(newest) if newest.revision > revision => Ok(newest),
                _ => Err(Error::NotFound { path }),
            },
            result => result,
        }
    }

    /// Learns which objects are still set aside: another process may have put some right.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn refresh_damage(&self) -> Result<()> {
        self.inner.damage.refresh().await
    }

    /// A revision of a day that the caller knows of. Asks the store at most once for each revision.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such revision, or any [`Error`] about the manifest.
    pub async fn manifest_at(&self, day: NaiveDate, revision: u32) -> Result<Arc<Manifest>> {
        if let Some(manifest) = self.inner.manifests.get(&(day, revision)) {
            return Ok(manifest);
        }
        let path = manifest_path(day, revision);
        let text = self.sealed(&path).await?;
        let manifest: Manifest = parse(&path, &text)?;
        if (manifest.day, manifest.revision) != (day, revision) {
            return Err(Error::schema(path, "it is the manifest of another day"));
        }
        manifest.check().map_err(|reason| Error::schema(path, reason))?;
        let manifest = Arc::new(manifest);
        self.inner.manifests.insert((day, revision), Arc::clone(&manifest));
        Ok(manifest)
    }

    /// Reads a sealed text.
    pub(crate) async fn sealed(&self, path: &str) -> Result<String> {
        self.inner.damage.check(path).await?;
        for _ in 0..2 {
            let bytes = self.inner.store.get(path).await?;
            if bytes.is_empty() {
                return Err(Error::NotFound { path: path.to_owned() });
            }
            if let Some(text) = unseal(&bytes) {
                return Ok(text.to_owned());
            }
        }
        Err(self.inner.damage.mark(path).await)
    }

    /// The objects that were found damaged and are set aside.
    pub fn damaged(&self) -> Vec<String> {
        self.inner.damage.paths()
    }

    /// Answers from an object again that was set aside as damaged, after it was put right.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn clear_damage(&self, path: &str) -> Result<()> {
        self.inner.damage.clear(path).await?;
        self.forget();
        Ok(())
    }

    fn forget(&self) {
        self.inner.reader.forget_all();
        self.inner.metadata.invalidate_all();
        self.inner.fan_outs.invalidate_all();
        self.inner.manifests.invalidate_all();
        self.inner.months.invalidate_all();
    }

    /// Declares a revision abandoned, so that nobody can commit it any more.
    pub(crate) async fn abandon(&self, day: NaiveDate, revision: u32) -> Result<()> {
        let path = manifest_path(day, revision);
        let created = self.inner.store.create(&path, Bytes::new()).await;
        if created == Ok(Created::Yes) {
            return Ok(());
        }
        // The request may have been carried out and its answer lost: what is stored decides.
        match (self.inner.store.size(&path).await, created) {
            (Ok(0), _) => Ok(()),
            (Ok(_), _) => Err(Error::Exists { day, revision }),
            (Err(Error::NotFound { .. }), Err(error)) | (Err(error), _) => Err(error),
        }
    }

    /// Deletes what the newest revision of a day does not list: older revisions, the files that only they list, and
    /// what interrupted attempts left. Readers that still use an older revision get [`Error::NotFound`].
    ///
    /// # Errors
    /// Any [`Error`] about the manifest.
    pub async fn remove_superseded(&self, day: NaiveDate) -> Result<()> {
        let listing = self.listing(day).await?;
        let Some(newest) = listing.committed.last().copied() else { return Ok(()) };
        let manifest = self.manifest_at(day, newest).await?;
        let store = &self.inner.store;
        // A file of a newer revision belongs to an attempt that may still be committed.
        let kept = |path: &str| manifest.parts.iter().any(|part| part.object.path == path);
        for part in listing.parts.iter().filter(|part| part.revision <= newest && !kept(&part.shown)) {
            store.delete(&part.path).await?;
        }
        for (path, _) in listing.unfinished.iter().filter(|(_, revision)| *revision <= newest) {
            store.delete_unfinished(path)?;
        }
        // After the files: as long as files of an earlier revision may be left, its manifest says so.
        for revision in listing.committed.iter().chain(&listing.abandoned).filter(|revision| **revision < newest) {
            store.delete(&manifest_path(day, *revision)).await?;
            self.inner.manifests.invalidate(&(day, *revision));
        }
        self.remove_ids(day, newest, Some(&manifest.ids.path)).await
    }

    async fn remove_ids(&self, day: NaiveDate, newest: u32, kept: Option<&str>) -> Result<()> {
        let prefix = format!("{day}-");
        let is_old = |name: &str| {
            let revision = name.strip_prefix(&prefix).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            revision.is_some_and(|revision| revision <= newest)
        };
        let store = &self.inner.store;
        for object in store.list(IDS).await? {
            let name = object.path.rsplit('/').next().unwrap_or_default();
            if is_old(name) && Some(object.path.as_str()) != kept {
                store.delete(&object.path).await?;
            }
        }
        for (path, _) in store.unfinished(IDS).into_iter().filter(|(_, name)| is_old(name)) {
            store.delete_unfinished(&path)?;
        }
        Ok(())
    }

    /// Deletes a day with all its revisions. Afterwards the day does not exist; a new revision of it gets a higher
    /// number than every earlier one.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Exists`] if another writer commits a revision at this moment.
    pub async fn delete_day(&self, day: NaiveDate) -> Result<()> {
        let listing = self.listing(day).await?;
        let newest = listing.newest();
        if listing.committed.is_empty() && listing.parts.is_empty() {
            return Ok(());
        }
        // Fences off a writer that is at work on the next revision, and keeps the numbers growing.
        let fence = following(day, newest)?;
        self.abandon(day, fence).await?;
        let store = &self.inner.store;
        let mut revisions: Vec<u32> = listing.committed.iter().chain(&listing.abandoned).copied().collect();
        revisions.sort_unstable();
        // Oldest first: as long as the day exists, it is the newest revision.
        for revision in revisions {
            store.delete(&manifest_path(day, revision)).await?;
            self.inner.manifests.invalidate(&(day, revision));
        }
        for part in &listing.parts {
            store.delete(&part.path).await?;
        }
        for (path, _) in &listing.unfinished {
            store.delete_unfinished(path)?;
        }
        self.remove_ids(day, fence, None).await
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

/// A month, as the key of a cache.
pub(crate) fn month_of(day: NaiveDate) -> (i32, u32) {
    (day.year(), day.month())
}
