//! A day that is written: reading it back, and making it count with its manifest.

use std::sync::Arc;

use bytes::Bytes;
use chrono::NaiveDate;
use serde_json::Value;

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::listing::manifest_path;
use crate::manifest::{Manifest, Part, seal};
use crate::store::{Created, hidden_path};
use crate::sums::{Sums, SumsBuilder};

/// A day that is written and does not count yet.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub(crate) archive: Archive,
    pub(crate) base_parts: Vec<Part>,
    pub(crate) base_sums: Option<Sums>,
    pub(crate) manifest: Manifest,
}

impl Prepared {
    /// The day.
    pub fn day(&self) -> NaiveDate {
        self.manifest.day
    }

    /// The revision that [`Archive::commit`] will commit.
    pub fn revision(&self) -> u32 {
        self.manifest.revision
    }

    /// The sums over all rows, including those of the revision that this one is based on.
    pub fn sums(&self) -> &Sums {
        &self.manifest.sums
    }

    /// The files that were written for this revision.
    pub fn parts(&self) -> &[Part] {
        &self.manifest.parts
    }

    /// Reads back everything that was written: compares each file with its SHA-256, decodes all rows, and compares
    /// their values and their sums with those that were pushed. Returns the sums.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the file that is not what was written.
    pub async fn verify(&self) -> Result<Sums> {
        let mut sums = self.base_sums.as_ref().map_or_else(SumsBuilder::default, SumsBuilder::from_sums);
        for part in &self.manifest.parts {
            self.archive.verify_part(part, &mut sums).await?;
        }
        self.archive.verify_ids(&self.manifest.ids).await?;
        let sums = sums.finish();
        if sums != self.manifest.sums {
            let path = self.manifest.parts.last().map_or(&self.manifest.ids.path, |part| &part.object.path);
            return Err(Error::schema(path, "its rows have other sums than those that were written"));
        }
        Ok(sums)
    }

    /// Deletes what was written. It must not have been committed.
    ///
    /// # Errors
    /// [`Error::Unavailable`]. What is left is deleted when the day is written again.
    pub async fn discard(self) -> Result<()> {
        self.archive.discard(&self).await
    }
}

impl Archive {
    /// Makes a day count, with `extra` in its manifest. It is safe to call this again after an error: if the manifest
    /// was written although the answer was lost, that is success.
    ///
    /// Files of earlier revisions that no longer count stay until [`Archive::remove_superseded`]. Other engines do not see
    /// the new files before [`Archive::publish`].
    ///
    /// # Errors
    /// [`Error::Exists`] if another writer took the revision (what was written is deleted), or [`Error::Unavailable`].
    pub async fn commit(&self, prepared: &Prepared, extra: Value) -> Result<Arc<Manifest>> {
        let mut manifest = Manifest { extra, ..prepared.manifest.clone() };
        manifest.parts.splice(0..0, prepared.base_parts.iter().cloned());
        let (day, revision) = (manifest.day, manifest.revision);
        let path = manifest_path(day, revision);
        let text = Bytes::from(seal(&manifest)?);
        let store = &self.inner.store;
        let mut is_new = false;
        match store.create(&path, text.clone()).await {
            Ok(Created::Yes) => is_new = true,
            // The request may have been carried out and its answer lost: what is stored decides.
            Ok(Created::Exists) | Err(Error::Unavailable(_)) => match store.get(&path).await {
                Ok(stored) if stored == text => {}
                Ok(_) => {
                    if let Err(error) = self.discard(prepared).await {
                        tracing::warn!(%day, %error, "files of a revision that lost stay behind");
                    }
                    return Err(Error::Exists { day, revision });
                }
                Err(Error::NotFound { .. }) => {
                    return Err(Error::Unavailable(format!("{path} could not be written")));
                }
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        // What kept this revision from being committed is deleted as soon as a later one counts.
        let newest = self.listing(day).await?.committed.last().copied().unwrap_or_default();
        if newest > revision {
            if is_new {
                store.delete(&path).await?;
                self.discard(prepared).await?;
            }
            return Err(Error::Exists { day, revision });
        }
        let manifest = Arc::new(manifest);
        self.inner.manifests.insert((day, revision), Arc::clone(&manifest));
        Ok(manifest)
    }

    async fn discard(&self, prepared: &Prepared) -> Result<()> {
        let objects = prepared.manifest.parts.iter().map(|part| &part.object);
        for object in objects.chain([&prepared.manifest.ids]) {
            if let Some(hidden) = hidden_path(&object.path) {
                self.inner.store.delete(&hidden).await?;
            }
            self.inner.store.delete(&object.path).await?;
        }
        Ok(())
    }
}
