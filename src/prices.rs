//! The prices in use: the embedded table, or a newer one from a file or URL, combined with the prices and aliases in
//! LiteLLM's config file. A source that is broken or unavailable never replaces a good table. Its failure is logged
//! once. The last good table from a URL is stored on disk for the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::settings::ConfigFile;
use litespend_pricing::{CustomModels, PriceTable, Pricer};

/// The file in the data directory that holds the last table from a URL.
pub const SAVED_TABLE: &str = "prices.json";

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

    fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Url(_) => "url",
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

/// Where the table in use came from.
#[derive(Clone, Debug)]
pub struct PriceStatus {
    /// `built in (LiteLLM 1.110.2)`, `file`, `url`, or `saved copy of a url`. Names no path: everybody may read it.
    pub source: String,
    /// The number of names in the table, those of retired models included.
    pub models: usize,
    /// When the table was read from its source; `None` for the built-in table.
    pub read_at: Option<SystemTime>,
    /// Why the last attempt to read a newer table failed; `None` if it did not.
    pub failure: Option<String>,
}

impl PriceStatus {
    /// How long ago the table was read from its source; `None` for the built-in table.
    pub fn age(&self) -> Option<Duration> {
        self.read_at.map(|read| read.elapsed().unwrap_or_default())
    }
}

/// The current pricer. A refresh replaces it as a whole.
pub struct Prices {
    current: RwLock<Arc<Pricer>>,
    status: Mutex<PriceStatus>,
    custom: CustomModels,
    source: Option<PriceSource>,
    kept: Option<PathBuf>,
    /// Whether a table is used although it differs much from the last one.
    trusts_source: bool,
}

impl Prices {
    /// Starts with the embedded table and the prices of the config file. If the source is a URL, a table of it that is
    /// stored on disk takes precedence over the embedded one.
    pub fn new(config: &ConfigFile, source: Option<PriceSource>, kept: Option<&Path>) -> anyhow::Result<Self> {
        let custom = CustomModels::from_config(
            Some(&Value::Array(config.model_list.clone())),
            Some(&json!({ "model_group_alias": config.model_group_alias })),
        );
        let kept = kept.filter(|_| matches!(source, Some(PriceSource::Url(_)))).map(|home| home.join(SAVED_TABLE));
        let from_disk = kept.as_ref().and_then(|path| saved(path));
        let built_in = PriceTable::embedded().context("the embedded prices are unusable")?;
        let (table, name, read_at) = match from_disk {
            Some((table, read_at)) => (table.with_retired(&built_in)?, "saved copy of a url".to_owned(), Some(read_at)),
            None => (built_in, format!("built in (LiteLLM {})", PriceTable::embedded_version()), None),
        };
        let status = PriceStatus { source: name, models: table.len(), read_at, failure: None };
        let current = RwLock::new(Arc::new(Pricer::new(Arc::new(table), custom.clone())));
        Ok(Self { current, status: Mutex::new(status), custom, source, kept, trusts_source: false })
    }

    /// Uses every table of the source that can be read, however much it differs from the last one.
    #[must_use]
    pub fn trusting(self, trusts_source: bool) -> Self {
        Self { trusts_source, ..self }
    }

    /// Where the table in use came from.
    pub fn status(&self) -> PriceStatus {
        self.status.lock().clone()
    }

    /// The pricer to use now.
    pub fn current(&self) -> Arc<Pricer> {
        Arc::clone(&self.current.read())
    }

    /// Reads the source, if there is one, and replaces the table. Returns the number of names in it. A table that lacks
    /// many of the models, or in which a price has moved by more than 100 times, is an error, unless the source is
    /// trusted.
    pub async fn refresh(&self) -> anyhow::Result<Option<usize>> {
        let read = self.read_source(self.trusts_source).await;
        self.status.lock().failure = read.as_ref().err().map(|error| format!("{error:#}"));
        read
    }

    async fn read_source(&self, trusts_source: bool) -> anyhow::Result<Option<usize>> {
        let Some(source) = &self.source else { return Ok(None) };
        let bytes = source.read().await?;
        let before = Arc::clone(self.current().table());
        let (bytes, table) = tokio::task::spawn_blocking(move || {
            let table = newer_table(&bytes, &before, trusts_source);
            (bytes, table)
        })
        .await?;
        let table = table?;
        let models = table.len();
        for entry in table.skipped() {
            tracing::warn!(?entry, "skipped an unusable entry of the price table");
        }
        let pricer = Arc::new(Pricer::new(Arc::new(table), self.custom.clone()));
        // The table is stored before it is used: a server that stops right after its first newer price starts with it.
        if let Some(path) = &self.kept
            && tokio::time::timeout(KEEPING, keep(path, &bytes)).await.is_err()
        {
            tracing::warn!("the disk is too slow to save the prices");
        }
        *self.current.write() = pricer;
        *self.status.lock() =
            PriceStatus { source: source.kind().to_owned(), models, read_at: Some(SystemTime::now()), failure: None };
        Ok(Some(models))
    }

    /// Reads a source that is a file, so that even the first request is priced with it. `keep_fresh` reads a URL, so
    /// that the start of the server never waits for another server. Returns whether the source could be read; `true` if
    /// it is not a file.
    ///
    /// The file is used even if it differs much from the built-in table: somebody has just named it.
    pub async fn read_file(&self) -> bool {
        if !matches!(self.source, Some(PriceSource::File(_))) {
            return true;
        }
        match self.read_source(true).await {
            Ok(models) => {
                tracing::info!(models, "loaded the prices");
                true
            }
            Err(error) => self.log_failure(&error, true),
        }
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
            Err(error) => self.log_failure(&error, in_order),
        }
    }

    /// Records a failure, and logs it if the previous attempt succeeded. Returns false.
    fn log_failure(&self, error: &anyhow::Error, in_order: bool) -> bool {
        let cause = format!("{error:#}");
        if in_order {
            tracing::warn!(cause, "cannot load newer prices; the previous ones stay in use");
        }
        self.status.lock().failure = Some(cause);
        false
    }
}

/// Reads a table, and adds the built-in retired models. Compares it with the table in use, unless the source is trusted.
fn newer_table(bytes: &[u8], before: &PriceTable, trusts_source: bool) -> anyhow::Result<PriceTable> {
    let table = PriceTable::from_json(bytes)?.with_retired(&PriceTable::embedded()?)?;
    if !trusts_source {
        check_plausible(before, &table)?;
    }
    Ok(table)
}

/// The part of the models that a newer table may lack, in percent.
const MISSING_PERCENT: usize = 20;

/// The factor by which a price may move.
const MOVE_LIMIT: f64 = 100.0;

/// Refuses a table that is more likely broken than newer.
pub fn check_plausible(before: &PriceTable, after: &PriceTable) -> anyhow::Result<()> {
    let changes = litespend_pricing::diff(before, after);
    let (missing, all) = (changes.lost.len(), before.priced_models());
    let trust = "use --prices-trust if that is right";
    if missing * 100 > all * MISSING_PERCENT {
        bail!("the newer table lacks {missing} of {all} models, or prices of theirs; {trust}");
    }
    for (model, fields) in &changes.changed {
        for change in fields {
            let (Some(old), Some(new)) = (&change.old, &change.new) else { continue };
            if let Some((old, new)) = implausible_move(old, new) {
                bail!(
                    "{} of {model} moves from {old} to {new}, by more than {MOVE_LIMIT} times; {trust}",
                    change.field
                );
            }
        }
    }
    Ok(())
}

/// The first number in a value that moves too far, before and after.
fn implausible_move(old: &Value, new: &Value) -> Option<(f64, f64)> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().find_map(|(name, old)| implausible_move(old, new.get(name)?))
        }
        (Value::Array(old), Value::Array(new)) => old.iter().zip(new).find_map(|(old, new)| implausible_move(old, new)),
        _ => {
            let (old, new) = (number(old)?, number(new)?);
            let plausible = old == new || (old.min(new) > 0.0 && old.max(new) / old.min(new) <= MOVE_LIMIT);
            (!plausible).then_some((old, new))
        }
    }
}

/// A number, which may be written as a string.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        value => value.as_f64(),
    }
}

/// Reads the table that an earlier run has stored, and when it did so.
fn saved(path: &Path) -> Option<(PriceTable, SystemTime)> {
    let bytes = std::fs::read(path).ok()?;
    let read_at = std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let table = PriceTable::from_json(&bytes)
        .inspect_err(|error| tracing::warn!(cause = %error, "the saved prices are unusable"))
        .ok()?;
    Some((table, read_at))
}

/// The longest that new prices wait until they are stored.
const KEEPING: Duration = Duration::from_secs(10);

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
