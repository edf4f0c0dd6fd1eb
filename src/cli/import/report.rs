//! The file of lines that could not be imported. It is written completely under another name and then moved into place.
//! Whatever is in its place, even a link, is replaced and never written through.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use tempfile::NamedTempFile;

/// The report file. It is created when the first bad line is found.
pub(super) struct Report {
    path: PathBuf,
    file: Option<BufWriter<NamedTempFile>>,
}

impl Report {
    /// A report for an input file: at the path `given`, or else next to the input. Refuses a path that exists and is
    /// not a file.
    pub(super) fn new(input: &Path, given: Option<&Path>) -> anyhow::Result<Self> {
        let name = if crate::cli::import::is_stdin(input) { "stdin".into() } else { input.as_os_str().to_owned() };
        let mut default = name;
        default.push(".errors.jsonl");
        let path = given.map_or_else(|| PathBuf::from(default), Path::to_owned);
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => bail!("{} is not a file: set another file with --errors", path.display()),
            _ => Ok(Self { path, file: None }),
        }
    }

    /// Adds a bad line.
    pub(super) fn add(&mut self, line: u64, error: &str, text: &str) -> anyhow::Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        if self.file.is_none() {
            let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let directory = directory.unwrap_or_else(|| Path::new("."));
            self.file = Some(BufWriter::new(NamedTempFile::new_in(directory).with_context(failed)?));
        }
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", json!({"line": line, "error": error, "text": text})).with_context(failed)?;
        }
        Ok(())
    }

    /// Moves the file into place. Returns its path if there was a bad line.
    pub(super) fn finish(self) -> anyhow::Result<Option<PathBuf>> {
        let Some(file) = self.file else { return Ok(None) };
        let failed = || format!("cannot write {}", self.path.display());
        file.into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .with_context(failed)?
            .persist(&self.path)
            .with_context(failed)?;
        Ok(Some(self.path))
    }
}
