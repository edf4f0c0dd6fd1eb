//! The archive: how it is opened, and the manifests of its days.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::NaiveDate;
use moka::sync::Cache;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::blocks::BlockReader;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::find::MonthIndex;
use crate::ids::FanOut;
use crate::listing::{manifest_path, token};
use crate::location::Location;
use crate::manifest::{Manifest, parse, unseal};
use crate::store::{Created, Store};

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
    /// Memory for blocks that were read from an object store, in bytes. The system itself keeps those of files.
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

impl Archive {
    /// Opens the archive at a URL: a directory (a path or `file://`), `s3://bucket/path`, `gs://bucket/path` or
    /// `az://container/path`. Object stores take their settings from the usual environment variables, for example
    /// `AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP` and `AWS_CA_BUNDLE`. Creates the directory.
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
}
