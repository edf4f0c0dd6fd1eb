//! Writes the log to standard error: a bounded queue, and a thread that empties it. If the reader of the log stops
//! reading, lines are dropped and counted, and no request has to wait.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// Most bytes of lines that wait to be written.
const MAX: usize = 1024 * 1024;

/// How long the process waits at its end for the last lines to be written.
const FLUSH: Duration = Duration::from_secs(1);

static QUEUE: LazyLock<Queue> = LazyLock::new(Queue::default);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of the queued lines, and of those that are being written.
    bytes: usize,
    dropped: u64,
    /// How many of the dropped lines the log has reported.
    reported: u64,
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        if state.bytes + line.len() > MAX {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        self.changed.notify_all();
    }

    /// Writes queued lines forever.
    fn write_to(&self, mut out: impl Write) {
        loop {
            let mut state = self.state.lock();
            while state.lines.is_empty() {
                self.changed.wait(&mut state);
            }
            let lines = std::mem::take(&mut state.lines);
            drop(state);
            let text: Vec<u8> = lines.into_iter().flatten().collect();
            // A failure to write the log affects only its reader, so it is ignored.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            let mut state = self.state.lock();
            state.bytes = state.bytes.saturating_sub(text.len());
            let unreported = state.dropped - state.reported;
            state.reported = state.dropped;
            self.changed.notify_all();
            drop(state);
            if unreported > 0 {
                tracing::warn!(lines = unreported, "dropped log lines, because the log was not read fast enough");
            }
        }
    }

    fn flush(&self) {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| state.bytes > 0, FLUSH);
    }
}

/// The number of lines dropped since the start.
pub fn dropped_lines() -> u64 {
    QUEUE.state.lock().dropped
}

/// Starts the writer thread. It has its own file descriptor, so that it does not share the lock on standard error.
pub(super) fn start() -> io::Result<LogWriter> {
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new().name("log".into()).spawn(move || QUEUE.write_to(out))?;
    Ok(LogWriter)
}

/// Puts the log's lines into the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogWriter;

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl Write for LogWriter {
    /// Receives one whole line per call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When dropped, waits until the log is written, for at most one second.
#[derive(Debug)]
pub struct LogGuard;

impl Drop for LogGuard {
    fn drop(&mut self) {
        QUEUE.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Accepts no bytes until the test allows it.
    struct Stalled(mpsc::Receiver<()>, mpsc::Sender<usize>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.len()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let queue: &'static Queue = Box::leak(Box::default());
        let (go, wait) = mpsc::channel();
        let (wrote, written) = mpsc::channel();
        std::thread::spawn(move || queue.write_to(Stalled(wait, wrote)));
        let line = [b'x'; 1024];
        for _ in 0..(MAX / 1024 + 100) {
            queue.push(&line);
        }
        assert_eq!(queue.state.lock().dropped, 100);
        for _ in 0..2 {
            let _ = go.send(());
        }
        queue.flush();
        assert_eq!(queue.state.lock().bytes, 0);
        assert_eq!(written.try_iter().sum::<usize>(), MAX);
    }
}
