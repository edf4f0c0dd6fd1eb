//! Standard output of the subcommands, all of which print with `say!`.
//!
//! Whoever reads the output may stop early, as in `litespend cost gpt-4o | head -1`. The rest is then dropped, and the
//! command finishes its work as if the output were still read: an import must not end half-way because of its reader.
//! Every other error is reported when the command has ended.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use parking_lot::Mutex;

/// The first error of standard output. After it, nothing more is written.
static ERROR: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line, with a format and arguments as in `format!`.
macro_rules! say {
    () => {
        $crate::cli::output::text(format_args!("\n"))
    };
    ($($line:tt)+) => {
        $crate::cli::output::text(format_args!("{}\n", format_args!($($line)+)))
    };
}
pub(crate) use say;

/// Prints a text.
pub(crate) fn text(text: fmt::Arguments<'_>) {
    let mut error = ERROR.lock();
    if error.is_none() {
        let mut out = io::stdout().lock();
        *error = out.write_fmt(text).and_then(|()| out.flush()).err();
    }
}

/// Prints a text for people, if possible. For a server, which serves whether or not anybody reads it.
pub(crate) fn offer(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Ends the output. An error if it could not be written, unless that was because nobody reads any more.
pub fn finish() -> anyhow::Result<()> {
    match ERROR.lock().take() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to standard output"),
        _ => Ok(()),
    }
}
