//! `litespend import`: books the rows of a spend log from files, in the same way as all other records. The rows' ids
//! make it idempotent: after an interruption, or after bad lines have been corrected, the same import can be run again.

mod archive;
mod report;
mod rows;

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::booking::booker::{Booker, Outcome};
use crate::booking::limits::Refusal;
use crate::booking::{Draft, log_row};
use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::with_pool;
use crate::cli::import::report::Report;
use crate::cli::import::rows::Rows;
use crate::cli::output::say;
use crate::settings::BookingLimits;

/// The number of rows per transaction.
const BATCH: usize = 5000;

/// The number of bytes of metadata, prompts and answers per transaction.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// The arguments of `import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// Files to import: JSON lines, a JSON array as GET /spend/logs returns it, or CSV with a header. They may be
    /// compressed (.gz). - is standard input. An archive of closed days (a directory, or a URL such as s3://bucket/path) is
    /// read as a whole.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File that receives the lines that could not be imported. Default: FILE.errors.jsonl.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Runs `litespend import`.
pub fn run(args: &ImportArgs) -> Result<(), Failure> {
    for file in args.files.iter().filter(|file| !is_stdin(file) && archive::url(file).is_none()) {
        File::open(file).with_context(|| format!("cannot read {}", file.display())).map_err(Failure::Setting)?;
    }
    with_pool(&args.database, async |pool, _| {
        let booker = Booker::new(pool, BookingLimits::default());
        let mut bad = 0;
        for file in &args.files {
            bad += import(&booker, file, args.errors.as_deref()).await?;
        }
        if bad > 0 {
            return Err(Failure::Runtime(anyhow::anyhow!("{bad} rows were not imported; all other rows were")));
        }
        Ok(())
    })
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// A line of the file with its row, or with the error in it.
struct Line {
    number: u64,
    text: String,
    draft: Result<Draft, Refusal>,
}

impl Line {
    fn new(number: u64, text: &dyn Fn() -> String, draft: Result<Draft, Refusal>) -> Self {
        let text = if draft.is_err() { text().chars().take(2000).collect() } else { String::new() };
        Self { number, text, draft }
    }

    /// The number of bytes in its long strings.
    fn bytes(&self) -> usize {
        let Ok(draft) = &self.draft else { return self.text.len() };
        draft.row.text_bytes()
    }
}

/// Lines that are booked in one transaction.
#[derive(Default)]
struct Batch {
    lines: Vec<Line>,
    bytes: usize,
}

impl Batch {
    /// Adds a line. Returns all lines if they are enough for a transaction.
    fn push(&mut self, line: Line) -> Option<Vec<Line>> {
        self.bytes += line.bytes();
        self.lines.push(line);
        if self.lines.len() < BATCH && self.bytes < BATCH_BYTES {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.lines))
    }
}

#[derive(Default)]
struct Counts {
    recorded: u64,
    duplicate: u64,
    bad: u64,
}

/// Reads the rows of a file and sends them in batches.
fn read(rows: &mut Rows, sender: &mpsc::Sender<Vec<Line>>) -> anyhow::Result<()> {
    let (now, mut batch) = (Utc::now(), Batch::default());
    rows.for_each(&mut |number, text, row| {
        let draft = row.map_err(Refusal::from).and_then(|row| log_row::into_draft(row, now));
        match batch.push(Line::new(number, text, draft)) {
            // The receiver is gone only if booking has failed, and that error is reported instead.
            Some(full) => sender.blocking_send(full).context("stopped"),
            None => Ok(()),
        }
    })?;
    sender.blocking_send(batch.lines).context("stopped")
}

/// Imports one file or archive. Returns the number of rows that were not imported.
async fn import(booker: &Booker, file: &Path, errors: Option<&Path>) -> Result<u64, Failure> {
    let position = Arc::new(AtomicU64::new(0));
    let (sender, mut batches) = mpsc::channel::<Vec<Line>>(2);
    let (bar, reader, input) = if let Some(url) = archive::url(file) {
        let archive = crate::cli::archive::open_url("the archive", url).await?;
        (progress_bar(None), tokio::spawn(archive::read(archive, sender)), Path::new("archive"))
    } else {
        let mut rows = Rows::open(file, Arc::clone(&position)).map_err(Failure::Setting)?;
        let bar = progress_bar(rows.size());
        (bar, tokio::task::spawn_blocking(move || read(&mut rows, &sender)), file)
    };
    let mut report = Report::new(input, errors).map_err(Failure::Setting)?;
    let mut counts = Counts::default();
    let started = Instant::now();
    while let Some(batch) = batches.recv().await {
        book(booker, batch, &mut counts, &mut report).await?;
        bar.set_position(position.load(Ordering::Relaxed));
        bar.set_message(rate(&counts, started.elapsed()));
    }
    bar.finish_and_clear();
    let read = reader.await.context("the reader failed")?;
    say!("{}: {}", file.display(), rate(&counts, started.elapsed()));
    read.with_context(|| format!("cannot read {} to the end", file.display()))?;
    if let Some(path) = report.finish()? {
        say!("{}: lines that were not imported are in {}", file.display(), path.display());
    }
    Ok(counts.bad)
}

async fn book(booker: &Booker, batch: Vec<Line>, counts: &mut Counts, report: &mut Report) -> Result<(), Failure> {
    let mut positions = Vec::with_capacity(batch.len());
    let mut drafts = Vec::with_capacity(batch.len());
    for line in batch {
        match line.draft {
            Ok(draft) => {
                positions.push((line.number, draft.row.request_id.clone()));
                drafts.push(draft);
            }
            Err(error) => {
                counts.bad += 1;
                report.add(line.number, &error.message, &line.text)?;
            }
        }
    }
    let outcomes = booker
        .book("import", drafts)
        .await
        .context("stopped; imported rows are kept: run the command again to continue")?;
    for ((number, id), outcome) in positions.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Recorded { .. } => counts.recorded += 1,
            Outcome::Duplicate { .. } => counts.duplicate += 1,
            Outcome::Rejected(error) => {
                counts.bad += 1;
                report.add(number, &error.message.replace("idempotency_key", "request_id"), &id)?;
            }
        }
    }
    Ok(())
}

fn rate(counts: &Counts, elapsed: Duration) -> String {
    let rows = counts.recorded + counts.duplicate + counts.bad;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = rows as f64 / elapsed.as_secs_f64().max(0.001);
    format!("{} imported, {} already there, {} bad, {rate:.0} rows/s", counts.recorded, counts.duplicate, counts.bad)
}

fn progress_bar(size: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {percent:>3} %  {msg}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
