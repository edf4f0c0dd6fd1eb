//! The prices in use: the embedded table, or a newer one from a file or URL, combined with the prices and aliases in
//! LiteLLM's config file. A source that is broken or unavailable never replaces a good table. Its failure is logged
//! once. The last good table from a URL is stored on disk for the next start.

use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::settings::ConfigFile;
use litespend_pricing::{CustomModels, PriceTable, Pricer};

/// The largest table that is read from a source, in bytes.
const TABLE_LIMIT: usize = 64 * 1024 * 1024;

/// The longest time that a URL may take to answer.
const FETCH_LIMIT: Duration = Duration::from_secs(30);

/// The source of newer prices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PriceSource {
    /// A file in the format of LiteLLM's table.
    File(PathBuf),
    /// A URL that returns such a file.
    Url(String),
}

impl PriceSource {
    /// Parses a URL. Any other text is a path.
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
                while let Some(chunk) = response.chunk().await? {
                    bytes.extend_from_slice(&chunk);
                    if bytes.len() > TABLE_LIMIT {
                        bail!("the response is larger than {TABLE_LIMIT} bytes");
                    }
                }
                Ok(bytes)
            }
        }
    }
}

/// The current pricer. A refresh replaces it as a whole.
pub struct Prices {
    current: RwLock<Arc<Pricer>>,
    custom: CustomModels,
    source: Option<PriceSource>,
    kept: Option<PathBuf>,
}

impl Prices {
    /// Starts with the embedded table and the prices of the config file. If the source is a URL, a table of it that is
    /// stored on disk takes precedence over the embedded one.
    pub fn new(config: &ConfigFile, source: Option<PriceSource>, kept: Option<&Path>) -> anyhow::Result<Self> {
        let custom = CustomModels::from_config(
            Some(&Value::Array(config.model_list.clone())),
            Some(&json!({ "model_group_alias": config.model_group_alias })),
        );
        let kept = kept.filter(|_| matches!(source, Some(PriceSource::Url(_)))).map(|home| home.join("prices.json"));
        let from_disk = kept.as_ref().and_then(|path| std::fs::read(path).ok()).and_then(|bytes| {
            PriceTable::from_json(&bytes)
                .inspect_err(|error| tracing::warn!(cause = %error, "the saved prices are unusable"))
                .ok()
        });
        let table = match from_disk {
            Some(table) => table,
            None => PriceTable::embedded().context("the embedded prices are unusable")?,
        };
        let current = RwLock::new(Arc::new(Pricer::new(Arc::new(table), custom.clone())));
        Ok(Self { current, custom, source, kept })
    }

    /// The pricer to use now.
    pub fn current(&self) -> Arc<Pricer> {
        Arc::clone(&self.current.read())
    }

    /// Reads the source, if there is one, and replaces the table. Returns the number of models in it.
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
            tracing::warn!(?entry, "skipped an unusable entry of the price table");
        }
        let pricer = Arc::new(Pricer::new(Arc::new(table), self.custom.clone()));
        *self.current.write() = pricer;
        if let Some(path) = &self.kept {
            keep(path, &bytes).await;
        }
        Ok(Some(models))
    }

    /// Reads a source that is a file, so that even the first request is priced with it. `keep_fresh` reads a URL, so
    /// that the start of the server never waits for another server. Returns whether the source could be read; `true` if
    /// it is not a file.
    pub async fn read_file(&self) -> bool {
        !matches!(self.source, Some(PriceSource::File(_))) || self.refresh_and_log(true).await
    }

    /// Reads a URL at once; a file has already been read. Then reads the source again every `interval` until cancelled.
    /// Without an interval, it reads once. `in_order` is the result of `read_file`.
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

    /// Refreshes the prices. Logs a failure only if the previous attempt succeeded. Returns whether this attempt
    /// succeeded.
    async fn refresh_and_log(&self, in_order: bool) -> bool {
        match self.refresh().await {
            Ok(models) => {
                if let Some(models) = models {
                    tracing::info!(models, "loaded the prices");
                }
                true
            }
            Err(error) => {
                if in_order {
                    tracing::warn!(
                        cause = format!("{error:#}"),
                        "cannot load newer prices; the previous ones stay in use"
                    );
                }
                false
            }
        }
    }
}

/// Stores a table for the next start, completely or not at all.
async fn keep(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("new");
    let written = async {
        tokio::fs::write(&draft, bytes).await?;
        tokio::fs::rename(&draft, path).await
    };
    if let Err(error) = written.await {
        tracing::debug!(cause = %error, "cannot save the prices to disk");
    }
}
