//! The store of an archive: every operation ends within a time, and its errors are those of this crate.

use std::collections::HashSet;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;

use crate::connector::is_certificate_refused;
use crate::error::{Error, Result};

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

/// The outcome of a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    Yes,
    /// There is an object of that name.
    Exists,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    inner: Arc<dyn ObjectStore>,
    limit: Duration,
    /// The directory of a local archive.
    root: Option<PathBuf>,
    /// Parquet files that were last found under their hidden names.
    hidden: Arc<Mutex<HashSet<String>>>,
}

/// The name that a Parquet file of a day has while other engines must not read it: they pass over names with another end,
/// and over names that start with an underscore. `None` for other objects.
pub(crate) fn hidden_path(path: &str) -> Option<String> {
    let (directory, name) = path.rsplit_once('/')?;
    let is_part = name.starts_with("part-") && name.ends_with(".parquet");
    is_part.then(|| format!("{directory}/_{name}{HIDDEN}"))
}

/// The end of a hidden name.
const HIDDEN: &str = ".hidden";

/// The name of a Parquet file that other engines read, from its hidden name.
pub(crate) fn shown_name(name: &str) -> Option<&str> {
    name.strip_prefix('_')?.strip_suffix(HIDDEN)
}

impl Store {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, limit: Duration, root: Option<PathBuf>) -> Self {
        Self { inner, limit, root, hidden: Arc::default() }
    }

    /// Whether the archive is a directory of this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.root.is_some()
    }

    /// Where the file of an object of a local archive is likely to be.
    pub(crate) fn file(&self, path: &str) -> Option<PathBuf> {
        let root = self.root.as_ref()?;
        self.names(path).first().map(|name| root.join(name))
    }

    /// The longest time that an operation takes.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Files in a local directory that are not finished, with the names that they would get. A process that ended
    /// while it wrote leaves them behind, and listings do not show them.
    pub(crate) fn unfinished(&self, directory: &str) -> Vec<(PathBuf, String)> {
        let Some(root) = &self.root else { return Vec::new() };
        // The directory may not exist yet.
        let entries = std::fs::read_dir(root.join(directory)).into_iter().flatten().flatten();
        let unfinished = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (final_name, number) = name.rsplit_once('#')?;
            number.bytes().all(|byte| byte.is_ascii_digit()).then(|| (entry.path(), final_name.to_owned()))
        });
        unfinished.collect()
    }

    pub(crate) fn delete_unfinished(&self, path: &std::path::Path) -> Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::Unavailable(error.to_string())),
            _ => Ok(()),
        }
    }

    async fn bounded<T>(&self, path: &str, operation: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.limit, operation).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(object_store::Error::NotFound { .. })) => Err(Error::NotFound { path: path.to_owned() }),
            Ok(Err(error)) => {
                let cause = describe(&error);
                Err(if is_refusal(&error, &cause) { Error::Refused(cause) } else { Error::Unavailable(cause) })
            }
            Err(_) => Err(Error::Unavailable(format!("no answer within {:?} for {path}", self.limit))),
        }
    }

    pub(crate) async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.bounded(path, self.inner.put(&Path::from(path), PutPayload::from(bytes))).await.map(drop)
    }

    /// Writes an object unless there is one of that name.
    pub(crate) async fn create(&self, path: &str, bytes: Bytes) -> Result<Created> {
        let location = Path::from(path);
        let options = PutOptions::from(PutMode::Create);
        let put = async {
            match self.inner.put_opts(&location, PutPayload::from(bytes), options).await {
                Ok(_) => Ok(Created::Yes),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(Created::Exists)
                }
                Err(error) => Err(error),
            }
        };
        self.bounded(path, put).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Bytes> {
        let location = Path::from(path);
        self.bounded(path, async { self.inner.get(&location).await?.bytes().await }).await
    }

    /// Reads ranges: of a file one by one, of an object in few requests, which may read what lies between them. A
    /// Parquet file is read under the name that it has at the moment.
    pub(crate) async fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        for name in self.names(path) {
            match self.get_ranges_of(&name, ranges).await {
                Err(Error::NotFound { .. }) => {}
                outcome => return outcome.inspect(|_| self.remember(path, &name)),
            }
        }
        Err(Error::NotFound { path: path.to_owned() })
    }

    /// Reads ranges of the object that has exactly this name.
    pub(crate) async fn get_ranges_of(&self, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.bounded(name, self.inner.get_ranges(&Path::from(name), ranges)).await
    }

    /// The object's size in bytes.
    pub(crate) async fn size(&self, path: &str) -> Result<u64> {
        for name in self.names(path) {
            match self.size_of(&name).await {
                Err(Error::NotFound { .. }) => {}
                outcome => return outcome.inspect(|_| self.remember(path, &name)),
            }
        }
        Err(Error::NotFound { path: path.to_owned() })
    }

    /// The size of the object that has exactly this name.
    pub(crate) async fn size_of(&self, name: &str) -> Result<u64> {
        self.bounded(name, self.inner.head(&Path::from(name))).await.map(|head| head.size)
    }

    /// The names under which an object may be, the likely one first. A file that gets its other name has both for a moment:
    /// if the second name is not there any more, the first one is.
    fn names(&self, path: &str) -> Vec<String> {
        let Some(hidden) = hidden_path(path) else { return vec![path.to_owned()] };
        let path = path.to_owned();
        if self.hidden.lock().contains(&path) {
            vec![hidden.clone(), path, hidden]
        } else {
            vec![path.clone(), hidden, path]
        }
    }

    fn remember(&self, path: &str, name: &str) {
        let mut hidden = self.hidden.lock();
        if name == path {
            hidden.remove(path);
        } else {
            hidden.insert(path.to_owned());
        }
    }

    /// Gives a file of a local archive another name, in one step that is on the disk afterwards.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.bounded(from, self.inner.rename(&Path::from(from), &Path::from(to))).await
    }

    /// The objects below a directory, by name.
    pub(crate) async fn list(&self, directory: &str) -> Result<Vec<Listed>> {
        let prefix = Path::from(directory);
        let mut listed: Vec<Listed> = self
            .bounded(directory, async {
                let objects = self.inner.list(Some(&prefix));
                let objects = objects.map_ok(|meta| Listed { path: meta.location.to_string(), bytes: meta.size });
                objects.try_collect().await
            })
            .await
            .or_else(|error| if matches!(error, Error::NotFound { .. }) { Ok(Vec::new()) } else { Err(error) })?;
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listed)
    }

    /// Deletes an object, if it is there.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        match self.bounded(path, self.inner.delete(&Path::from(path))).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    pub(crate) async fn start_upload(&self, path: &str) -> Result<Box<dyn MultipartUpload>> {
        self.bounded(path, self.inner.put_multipart(&Path::from(path))).await
    }

    /// Ends an upload's operation within the time of an operation.
    pub(crate) async fn bounded_upload<T>(
        &self,
        path: &str,
        operation: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        self.bounded(path, operation).await
    }
}

/// Whether a store answered that it does not do this, or is not the one to ask, so that asking once more is of no use.
fn is_refusal(error: &object_store::Error, cause: &str) -> bool {
    use object_store::Error::{Generic, NotImplemented, NotSupported, PermissionDenied, Unauthenticated};
    match error {
        NotImplemented { .. } | NotSupported { .. } | PermissionDenied { .. } | Unauthenticated { .. } => true,
        _ if is_certificate_refused(error) => true,
        // The library keeps the status to itself, but for its text. A wrong region is 400, or a redirection to nowhere.
        Generic { .. } => {
            let status = cause.split("non-2xx status code: ").nth(1).unwrap_or_default();
            let asks_to_wait = ["408", "425", "429"].into_iter().any(|code| status.starts_with(code));
            status.starts_with('4') && !asks_to_wait
                || status.starts_with("501")
                || cause.contains("redirect without LOCATION")
        }
        _ => false,
    }
}

/// The cause of an error in one line, without the query strings of URLs: some of them are signed.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    let words = text.split_whitespace().map(|word| match (word.contains("://"), word.split_once('?')) {
        (true, Some((address, _))) => address,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}
