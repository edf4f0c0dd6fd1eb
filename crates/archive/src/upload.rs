//! Objects that are written as a stream, and hashed on the way.

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload};
use tokio::task::JoinSet;

use crate::blocks::ObjectHasher;
use crate::error::{Error, Result};
use crate::manifest::StoredObject;
use crate::store::Store;

/// The size of an upload's parts. Some stores want all but the last of one size.
const PART: usize = 8 * 1024 * 1024;
/// Parts on their way at once.
const IN_FLIGHT: usize = 2;

/// An object that is being written. It appears in the store when it is finished, and not at all if it is dropped.
pub(crate) struct Upload {
    store: Store,
    /// The name under which it is written.
    path: String,
    bytes: u64,
    hasher: ObjectHasher,
    buffer: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
    sending: JoinSet<Result<()>>,
}

impl Upload {
    pub(crate) fn new(store: Store, path: String) -> Self {
        let hasher = ObjectHasher::default();
        Self { store, path, bytes: 0, hasher, buffer: Vec::new(), upload: None, sending: JoinSet::new() }
    }

    /// The bytes that were written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        while self.buffer.len() + bytes.len() >= PART {
            let (now, later) = bytes.split_at(PART - self.buffer.len());
            self.buffer.extend_from_slice(now);
            bytes = later;
            self.send().await?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) async fn write_all(&mut self, pieces: Vec<Vec<u8>>) -> Result<()> {
        for piece in pieces {
            self.write(&piece).await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<()> {
        let part = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PART)));
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.store.start_upload(&self.path).await?),
        };
        let sent = upload.put_part(PutPayload::from(part));
        let (store, path) = (self.store.clone(), self.path.clone());
        self.sending.spawn(async move { store.bounded_upload(&path, sent).await });
        while self.sending.len() > IN_FLIGHT {
            self.wait_for_one().await?;
        }
        Ok(())
    }

    async fn wait_for_one(&mut self) -> Result<()> {
        match self.sending.join_next().await {
            Some(sent) => sent.map_err(Error::local)?,
            None => Ok(()),
        }
    }

    pub(crate) async fn finish(mut self) -> Result<StoredObject> {
        if self.upload.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.buffer));
            self.store.put(&self.path, bytes).await?;
        } else {
            if !self.buffer.is_empty() {
                self.send().await?;
            }
            while !self.sending.is_empty() {
                self.wait_for_one().await?;
            }
        }
        if let Some(upload) = &mut self.upload {
            self.store.bounded_upload(&self.path, upload.complete()).await?;
        }
        self.upload = None;
        Ok(std::mem::take(&mut self.hasher).finish(&self.path))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        // What was sent so far costs money in some stores until it is given up.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, path) = (self.store.clone(), std::mem::take(&mut self.path));
            runtime.spawn(async move {
                if let Err(error) = store.bounded_upload(&path, upload.abort()).await {
                    tracing::warn!(path, %error, "an upload could not be given up");
                }
            });
        }
    }
}
