//! Objects that were found damaged. They are set aside: nothing is answered from them any more.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::store::Store;

const DIRECTORY: &str = "_damaged";

#[derive(Debug, Clone)]
pub(crate) struct Damage {
    store: Store,
    paths: Arc<Mutex<HashSet<String>>>,
}

impl Damage {
    /// Reads the markers that earlier processes left.
    pub(crate) async fn load(store: Store) -> Result<Self> {
        let paths = marked(&store).await?;
        Ok(Self { store, paths: Arc::new(Mutex::new(paths)) })
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

    pub(crate) fn check(&self, path: &str) -> Result<()> {
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
