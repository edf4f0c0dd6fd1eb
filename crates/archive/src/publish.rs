//! What other engines see. A file is written under a hidden name, which they pass over, and gets the name that its manifest
//! lists when its day counts. Reads of this crate find it under either name.

use bytes::Bytes;
use chrono::NaiveDate;
use sha2::{Digest, Sha256};

use crate::archive::Archive;
use crate::blocks::{BLOCK, VerifiedObject};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, StoredObject, hexadecimal};
use crate::store::hidden_path;
use crate::upload::Upload;

/// Bytes that are copied at once.
const PIECE: u64 = 64 * BLOCK;

impl Archive {
    /// Shows the files of a day's newest revision to other engines, and nothing else of the day. Can be interrupted
    /// anywhere and run again. Reads of this crate are the same before and after.
    ///
    /// # Errors
    /// Any [`Error`] about the day's files.
    pub async fn publish(&self, day: NaiveDate) -> Result<()> {
        // First, so that nobody reads a row twice.
        self.remove_superseded(day).await?;
        let Some(manifest) = self.manifest(day).await? else { return Ok(()) };
        for part in &manifest.parts {
            if let Some(hidden) = hidden_path(&part.object.path) {
                self.move_object(&part.object, &hidden, &part.object.path).await?;
            }
        }
        Ok(())
    }

    /// Hides the files of a day from other engines. Can be interrupted anywhere and run again. Reads of this crate are the
    /// same before and after.
    ///
    /// # Errors
    /// Any [`Error`] about the day's files.
    pub async fn hide(&self, day: NaiveDate) -> Result<()> {
        self.remove_superseded(day).await?;
        let Some(manifest) = self.manifest(day).await? else { return Ok(()) };
        for part in &manifest.parts {
            if let Some(hidden) = hidden_path(&part.object.path) {
                self.move_object(&part.object, &part.object.path, &hidden).await?;
            }
        }
        Ok(())
    }

    /// The days that other engines read as a whole, with their revisions, and the days that they do not; each in ascending
    /// order.
    ///
    /// # Errors
    /// Any [`Error`] about the manifests of days with hidden files.
    pub async fn published_days(&self) -> Result<(Vec<(NaiveDate, u32)>, Vec<NaiveDate>)> {
        let (mut published, mut hidden) = (Vec::new(), Vec::new());
        for files in self.day_files().await? {
            if files.hidden && !self.is_published(files.day, files.revision).await? {
                hidden.push(files.day);
            } else {
                published.push((files.day, files.revision));
            }
        }
        Ok((published, hidden))
    }

    /// Whether other engines see rows of a day in this revision.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn is_shown(&self, manifest: &Manifest) -> Result<bool> {
        let listing = self.listing(manifest.day).await?;
        let is_shown = |path: &String| listing.parts.iter().any(|part| part.path == *path);
        Ok(manifest.parts.iter().any(|part| is_shown(&part.object.path)))
    }

    async fn is_published(&self, day: NaiveDate, revision: u32) -> Result<bool> {
        let manifest = self.manifest_at(day, revision).await?;
        let listing = self.listing(day).await?;
        let is_shown = |path: &String| listing.parts.iter().any(|part| part.path == *path);
        Ok(manifest.parts.iter().all(|part| is_shown(&part.object.path)))
    }

    /// Gives an object another name. There is no moment at which it has none.
    async fn move_object(&self, object: &StoredObject, from: &str, to: &str) -> Result<()> {
        let store = &self.inner.store;
        if store.is_local() {
            return match store.rename(from, to).await {
                // It has the other name already.
                Err(Error::NotFound { .. }) => store.size_of(to).await.map(drop),
                outcome => outcome,
            };
        }
        match store.size_of(from).await {
            Ok(_) => {}
            Err(Error::NotFound { .. }) => return store.size_of(to).await.map(drop),
            Err(error) => return Err(error),
        }
        // Object stores cannot rename, and what their own copies promise differs. So the bytes come and go, and are read
        // back before the first object is deleted.
        if !self.has_bytes_of(object, to).await? {
            self.copy_object(object, from, to).await?;
            if !self.has_bytes_of(object, to).await? {
                return Err(Error::Unavailable(format!("{to} does not have the bytes that were written")));
            }
        }
        store.delete(from).await
    }

    /// Writes the object's bytes under another name. None arrive that were not compared with their hashes.
    async fn copy_object(&self, object: &StoredObject, from: &str, to: &str) -> Result<()> {
        let verified = VerifiedObject::from(object);
        let mut upload = Upload::new(self.inner.store.clone(), to.to_owned());
        let mut start = 0;
        while start < object.bytes {
            let range = start..object.bytes.min(start + PIECE);
            start = range.end;
            let mut attempts = 0;
            let bytes = loop {
                attempts += 1;
                let pieces = self.inner.store.get_ranges_of(from, std::slice::from_ref(&range)).await?;
                match pieces.into_iter().next().filter(|bytes| verified.are_right(&range, bytes)) {
                    Some(bytes) => break bytes,
                    None if attempts < 2 => {}
                    None => return Err(Error::Unavailable(format!("{from} was not read as it was written"))),
                }
            };
            upload.write(&bytes).await?;
        }
        upload.finish().await.map(drop)
    }

    /// Whether there is an object of exactly this name with the bytes of another.
    async fn has_bytes_of(&self, object: &StoredObject, name: &str) -> Result<bool> {
        match self.inner.store.size_of(name).await {
            Ok(size) if size == object.bytes => {}
            Ok(_) | Err(Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        let mut sha256 = Sha256::new();
        let mut start = 0;
        while start < object.bytes {
            let range = start..object.bytes.min(start + PIECE);
            start = range.end;
            let pieces = self.inner.store.get_ranges_of(name, std::slice::from_ref(&range)).await?;
            pieces.iter().for_each(|piece: &Bytes| sha256.update(piece));
        }
        Ok(hexadecimal(&sha256.finalize()) == object.sha256)
    }
}
