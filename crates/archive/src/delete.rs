//! Deleting revisions and days, and declaring revisions abandoned.

use bytes::Bytes;
use chrono::NaiveDate;

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::listing::{IDS, following, manifest_path};
use crate::store::Created;

impl Archive {
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
