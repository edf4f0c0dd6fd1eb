//! Temporary files for responses that are read ahead of their client. The files have no name, so they disappear when
//! the response ends or the process exits. A file is used as a ring buffer, so it never grows beyond the limit for one
//! response.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The disk space budget of all responses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SpoolBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    of_answer: u64,
    of_all: u64,
    used: AtomicU64,
}

impl SpoolBudget {
    /// A budget of `of_answer` bytes for each response and `of_all` bytes for all together. Files are created in
    /// `directory`, or else in the system's directory for temporary files.
    pub fn new(directory: Option<PathBuf>, of_answer: u64, of_all: u64) -> Self {
        let directory = directory.unwrap_or_else(std::env::temp_dir);
        Self(Arc::new(Inner { directory, of_answer, of_all, used: AtomicU64::new(0) }))
    }

    /// Number of bytes in use.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Creates an empty file.
    pub fn file(&self) -> io::Result<Spool> {
        let file = tempfile::tempfile_in(&self.0.directory)?;
        Ok(Spool { file: Arc::new(file), budget: self.clone(), extent: 0, taken: 0, put: 0 })
    }

    fn charge(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.0.of_all);
        self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// The ring buffer of one response.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    budget: SpoolBudget,
    /// Number of bytes that are counted against the budget.
    extent: u64,
    /// Total numbers of bytes read from the ring and written to it so far.
    taken: u64,
    put: u64,
}

/// A range of the ring. It can be read or written without holding the lock.
#[derive(Debug)]
pub struct SpoolRange {
    file: Arc<File>,
    start: u64,
    length: usize,
    ring: u64,
}

impl Spool {
    /// Whether the ring is empty.
    pub fn is_empty(&self) -> bool {
        self.taken == self.put
    }

    /// Reserves a range of `length` bytes for writing. `None` if the ring or the budget has too little space. The range
    /// becomes readable once [`Spool::put`] is called.
    pub fn reserve(&mut self, length: usize) -> Option<SpoolRange> {
        let bytes = u64::try_from(length).ok()?;
        let ring = self.budget.0.of_answer;
        let end = self.put.checked_add(bytes)?;
        if end - self.taken > ring {
            return None;
        }
        let extent = end.min(ring);
        if extent > self.extent {
            if !self.budget.charge(extent - self.extent) {
                return None;
            }
            self.extent = extent;
        }
        Some(SpoolRange { file: Arc::clone(&self.file), start: self.put, length, ring })
    }

    /// Marks the next `length` bytes as written.
    pub fn put(&mut self, length: usize) {
        self.put += u64::try_from(length).unwrap_or(0);
    }

    /// The next range to read, at most `most` bytes. It stays valid until [`Spool::take`] is called.
    pub fn next(&self, most: usize) -> SpoolRange {
        let length = usize::try_from(self.put - self.taken).unwrap_or(usize::MAX).min(most);
        SpoolRange { file: Arc::clone(&self.file), start: self.taken, length, ring: self.budget.0.of_answer }
    }

    /// Marks the next `length` bytes as read, and releases them.
    pub fn take(&mut self, length: usize) {
        self.taken += u64::try_from(length).unwrap_or(0);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.extent, Ordering::Relaxed);
    }
}

impl SpoolRange {
    /// Number of bytes of the range before the ring wraps around, and the range's position in the file.
    fn first(&self) -> (usize, u64) {
        let position = self.start % self.ring;
        (usize::try_from(self.ring - position).unwrap_or(usize::MAX).min(self.length), position)
    }

    /// Writes `bytes` to the range.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let (first, position) = self.first();
        let (head, tail) = bytes.split_at_checked(first).unwrap_or((bytes, &[]));
        self.file.write_all_at(head, position)?;
        self.file.write_all_at(tail, 0)
    }

    /// Reads the whole range.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        let (first, position) = self.first();
        if let Some((head, tail)) = bytes.split_at_mut_checked(first) {
            self.file.read_exact_at(head, position)?;
            self.file.read_exact_at(tail, 0)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out_in_order_and_never_takes_more_than_its_bounds() {
        let budget = SpoolBudget::new(None, 100, 150);
        let mut spool = budget.file().expect("a file");
        let (mut next_in, mut next_out, mut taken) = (0_u8, 0_u8, 0);
        for round in 0..500_usize {
            let length = 1 + (round * 7) % 40;
            if let Some(range) = spool.reserve(length) {
                let bytes: Vec<u8> = (0..length)
                    .map(|_| {
                        next_in = next_in.wrapping_add(1);
                        next_in.wrapping_sub(1)
                    })
                    .collect();
                range.write(&bytes).expect("is written");
                spool.put(length);
            }
            let range = spool.next(1 + (round * 11) % 35);
            for byte in range.read().expect("is read") {
                assert_eq!(byte, next_out);
                next_out = next_out.wrapping_add(1);
            }
            spool.take(range.length);
            taken += range.length;
            assert!(spool.file.metadata().expect("a file").len() <= 100);
        }
        assert!(taken > 1000 && budget.used() == 100);
        let mut other = budget.file().expect("a file");
        assert!(other.reserve(50).is_some() && other.reserve(101).is_none() && other.reserve(51).is_none());
        drop((spool, other));
        assert_eq!(budget.used(), 0);
    }
}
