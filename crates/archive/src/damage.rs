//! Objects that were found damaged. They are set aside: nothing is answered from them any more.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::store::Store;

const DIRECTORY: &str = "_damaged";

#[derive(Debug, Clone)]
pub(crate) struct Damage {
    store: Store,
    paths: Arc<Mutex<HashSet<String>>>,
    /// Whether the markers that earlier processes left were read.
    is_loaded: Arc<AtomicBool>,
    /// When they could not be read the last time, and why. Locked while they are read.
    failure: Arc<tokio::sync::Mutex<Option<(Instant, Error)>>>,
}

impl Damage {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, paths: Arc::default(), is_loaded: Arc::default(), failure: Arc::default() }
    }

    /// Reads the markers that earlier processes left, unless they were read.
    pub(crate) async fn load(&self) -> Result<()> {
        if self.is_loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        let asked = Instant::now();
        let mut failure = self.failure.lock().await;
        if self.is_loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        // Those who waited do not ask one after the other.
        if let Some((when, error)) = &*failure
            && *when >= asked
        {
            return Err(error.clone());
        }
        match marked(&self.store).await {
            Ok(paths) => {
                self.paths.lock().extend(paths);
                self.is_loaded.store(true, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                *failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Forgets what is no longer marked. Does not ask the store if nothing is set aside.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let before = self.paths.lock().clone();
        if before.is_empty() {
            return Ok(());
        }
        let marked = marked(&self.store).await?;
        self.paths.lock().retain(|path| !before.contains(path) || marked.contains(path));
        Ok(())
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.paths.lock().iter().cloned().collect();
        paths.sort();
        paths
    }

    pub(crate) async fn check(&self, path: &str) -> Result<()> {
        self.load().await?;
        if self.paths.lock().contains(path) { Err(Error::damaged(path)) } else { Ok(()) }
    }

    /// Sets an object aside, and returns the error that says so.
    pub(crate) async fn mark(&self, path: &str) -> Error {
        self.paths.lock().insert(path.to_owned());
        tracing::error!(path, "an object of the archive is damaged and is set aside");
        if let Err(error) = self.store.put(&marker(path), Bytes::from(format!("{path}\n"))).await {
            tracing::warn!(path, %error, "the damage could not be noted in the archive");
        }
        Error::damaged(path)
    }

    pub(crate) async fn clear(&self, path: &str) -> Result<()> {
        self.store.delete(&marker(path)).await?;
        self.paths.lock().remove(path);
        Ok(())
    }
}

async fn marked(store: &Store) -> Result<HashSet<String>> {
    let mut paths = HashSet::new();
    for marker in store.list(DIRECTORY).await? {
        let path = store.get(&marker.path).await?;
        paths.insert(String::from_utf8_lossy(&path).trim().to_owned());
    }
    Ok(paths)
}

fn marker(path: &str) -> String {
    format!("{DIRECTORY}/{}", path.replace('/', "__"))
}
