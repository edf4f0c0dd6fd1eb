//! The prices in use: the embedded table or a newer one from a file or URL, with the prices and aliases of LiteLLM's
//! config file on top. A source that is broken or away never replaces a good table; it is logged once, and the last
//! good table of a URL is kept on disk for the next start.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::settings::ConfigFile;
use litespend_pricing::{CustomModels, PriceTable, Pricer};

/// Largest table that is read from a source, bytes.
const TABLE_LIMIT: usize = 64 * 1024 * 1024;

/// Time for a source to answer.
const FETCH_LIMIT: Duration = Duration::from_secs(30);

/// Where newer prices come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PriceSource {
    /// A file in LiteLLM's own form.
    File(PathBuf),
    /// A URL that answers with such a file.
    Url(String),
}

impl PriceSource {
    /// A URL, or else a path.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            Self::Url(text.to_owned())
        } else {
            Self::File(PathBuf::from(text))
        }
    }

    async fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => {
                let size = tokio::fs::metadata(path).await.with_context(|| path.display().to_string())?.len();
                if usize::try_from(size).map_or(true, |size| size > TABLE_LIMIT) {
                    bail!("{} is larger than {TABLE_LIMIT} bytes", path.display());
                }
                tokio::fs::read(path).await.with_context(|| path.display().to_string())
            }
            Self::Url(url) => {
                let client = reqwest::Client::builder().timeout(FETCH_LIMIT).build()?;
                let mut response = client.get(url).send().await?.error_for_status()?;
                let mut bytes = Vec::new();
                while let Some(piece) = response.chunk().await? {
                    bytes.extend_from_slice(&piece);
                    if bytes.len() > TABLE_LIMIT {
                        bail!("the answer is larger than {TABLE_LIMIT} bytes");
                    }
                }
                Ok(bytes)
            }
        }
    }
}

/// The pricer in use, replaced whole.
pub struct Prices {
    current: RwLock<Arc<Pricer>>,
    custom: CustomModels,
    source: Option<PriceSource>,
    kept: Option<PathBuf>,
}

impl Prices {
    /// The embedded table under the config file's prices. With a source, what was kept of it on disk goes first.
    pub fn new(config: &ConfigFile, source: Option<PriceSource>, kept: Option<&Path>) -> anyhow::Result<Self> {
        let custom = CustomModels::from_config(
            Some(&Value::Array(config.model_list.clone())),
            Some(&json!({ "model_group_alias": config.model_group_alias })),
        );
        let kept = kept.filter(|_| matches!(source, Some(PriceSource::Url(_)))).map(|home| home.join("prices.json"));
        let from_disk = kept.as_ref().and_then(|path| std::fs::read(path).ok()).and_then(|bytes| {
            PriceTable::from_json(&bytes)
                .inspect_err(|error| tracing::warn!(cause = %error, "kept prices are unusable"))
                .ok()
        });
        let table = match from_disk {
            Some(table) => table,
            None => PriceTable::embedded().context("the embedded prices are unusable")?,
        };
        let current = RwLock::new(Arc::new(Pricer::new(Arc::new(table), custom.clone())));
        Ok(Self { current, custom, source, kept })
    }

    /// The pricer as it stands.
    pub fn current(&self) -> Arc<Pricer> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the source, if there is one, and replaces the table; returns how many models it has.
    pub async fn refresh(&self) -> anyhow::Result<Option<usize>> {
        let Some(source) = &self.source else { return Ok(None) };
        let bytes = source.read().await?;
        let (bytes, table) = tokio::task::spawn_blocking(move || {
            let table = PriceTable::from_json(&bytes);
            (bytes, table)
        })
        .await?;
        let table = table?;
        let models = table.len();
        for entry in table.skipped() {
            tracing::warn!(?entry, "an entry of the prices was left out");
        }
        let pricer = Arc::new(Pricer::new(Arc::new(table), self.custom.clone()));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = pricer;
        if let Some(path) = &self.kept {
            keep(path, &bytes).await;
        }
        Ok(Some(models))
    }

    /// Reads a source that is a file, so that the first request is priced by it already. A URL is left to `keep_fresh`:
    /// no start waits for somebody else's server. Returns whether the source is in order.
    pub async fn read_file(&self) -> bool {
        !matches!(self.source, Some(PriceSource::File(_))) || self.refresh_and_log(true).await
    }

    /// Reads the source at once, unless it is a file, and then every `interval`, until cancelled. Without an interval,
    /// once. `in_order` is what `read_file` said.
    pub async fn keep_fresh(self: Arc<Self>, in_order: bool, interval: Option<Duration>, stop: CancellationToken) {
        let mut in_order = in_order;
        if matches!(self.source, Some(PriceSource::Url(_))) {
            in_order = self.refresh_and_log(in_order).await;
        }
        let (Some(_), Some(interval)) = (&self.source, interval) else { return };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            in_order = self.refresh_and_log(in_order).await;
        }
    }

    /// Refreshes; says that the source fails when it had not failed before.
    async fn refresh_and_log(&self, in_order: bool) -> bool {
        match self.refresh().await {
            Ok(models) => {
                if let Some(models) = models {
                    tracing::info!(models, "prices read");
                }
                true
            }
            Err(error) => {
                if in_order {
                    tracing::warn!(cause = format!("{error:#}"), "newer prices could not be read; the last ones stand");
                }
                false
            }
        }
    }
}

/// Keeps a table for the next start; whole or not at all.
async fn keep(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("new");
    let written = async {
        tokio::fs::write(&draft, bytes).await?;
        tokio::fs::rename(&draft, path).await
    };
    if let Err(error) = written.await {
        tracing::debug!(cause = %error, "prices could not be kept on disk");
    }
}
