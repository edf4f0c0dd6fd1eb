//! Files of digests: which ids occur on a day, or in a month.
//!
//! A file has three parts:
//!
//! 1. The entries, in ascending order, all of one width: 8 bytes of a digest, and in the file of a month one more byte
//!    for the day of the month. Of several equal entries, there is one.
//! 2. The fan-out table: for each value of the first `bits` bits of a digest the number of the first entry that has it,
//!    and at the end the number of entries; each 8 bytes, little-endian.
//! 3. The trailer of 32 bytes: the word `LSIDS001`, the width and the bits (4 bytes each, little-endian), the number of
//!    entries (8 bytes, little-endian), and 8 bytes of zero.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use rustc_hash::FxHashSet;
use sha2::{Digest, Sha256};

use crate::blocks::{BlockReader, VerifiedObject};
use crate::error::{Error, Result};
use crate::manifest::StoredObject;
use crate::upload::Upload;

const MAGIC: &[u8; 8] = b"LSIDS001";
const TRAILER: u64 = 32;
/// The most bits of the fan-out table.
const MOST_BITS: u32 = 16;
/// Entries that a lookup reads at most, on average.
const ENTRIES_PER_LOOKUP: u64 = 2_048;
/// Values of a kind that are known to be in the file.
const KNOWN: usize = 1 << 16;
/// Longer values are not kept, and get their digest each time.
const KNOWN_BYTES: usize = 256;
/// Bytes that a source reads at once.
const READ: u64 = 256 * 1024;
/// The width of a digest.
const DIGEST: u64 = 8;

/// A kind of id that can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// `request_id`.
    RequestId,
    /// `litellm_call_id`.
    CallId,
    /// `session_id`.
    Session,
    /// `api_key`.
    ApiKey,
    /// `user`.
    User,
    /// `end_user`.
    EndUser,
    /// `team_id`.
    Team,
}

impl IdKind {
    fn byte(self) -> u8 {
        match self {
            Self::RequestId => 1,
            Self::CallId => 2,
            Self::Session => 3,
            Self::ApiKey => 4,
            Self::User => 5,
            Self::EndUser => 6,
            Self::Team => 7,
        }
    }
}

/// The digest of an id: the first 8 bytes of SHA-256 over the kind, a zero byte and the value.
pub(crate) fn digest(kind: IdKind, value: &str) -> u64 {
    let mut sha256 = Sha256::new();
    sha256.update([kind.byte(), 0]);
    sha256.update(value.as_bytes());
    sha256.finalize().as_slice().get_u64()
}

/// Collects the digests of a day. Beyond a number of them, they wait in a temporary file.
pub(crate) struct DigestCollector {
    digests: Vec<u64>,
    known: [FxHashSet<Box<str>>; 5],
    spilled: Option<File>,
    /// Where each sorted run ends in the file.
    ends: Vec<u64>,
    scratch: Arc<std::path::Path>,
    most: usize,
}

impl DigestCollector {
    pub(crate) fn new(scratch: Arc<std::path::Path>, most: usize) -> Self {
        Self { digests: Vec::new(), known: Default::default(), spilled: None, ends: Vec::new(), scratch, most }
    }

    /// Adds an id that hardly ever repeats.
    pub(crate) fn add(&mut self, kind: IdKind, value: &str) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        self.digests.push(digest(kind, value));
        if self.digests.len() >= self.most { self.spill() } else { Ok(()) }
    }

    /// Adds an id that repeats from row to row.
    pub(crate) fn add_repeating(&mut self, kind: IdKind, value: &str) -> Result<()> {
        if let Some(known) = self.known.get_mut(usize::from(kind.byte().saturating_sub(3))) {
            if known.contains(value) {
                return Ok(());
            }
            if known.len() >= KNOWN {
                known.clear();
            }
            if value.len() <= KNOWN_BYTES {
                known.insert(Box::from(value));
            }
        }
        self.add(kind, value)
    }

    fn sort(&mut self) {
        self.digests.sort_unstable();
        self.digests.dedup();
    }

    fn spill(&mut self) -> Result<()> {
        self.sort();
        let file = match &mut self.spilled {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.scratch).map_err(Error::local)?),
        };
        let mut bytes = Vec::with_capacity(64 * 1024);
        for digests in self.digests.chunks(8 * 1024) {
            bytes.clear();
            digests.iter().for_each(|digest| bytes.extend_from_slice(&digest.to_be_bytes()));
            file.write_all(&bytes).map_err(Error::local)?;
        }
        let start = self.ends.last().copied().unwrap_or_default();
        self.ends.push(start + self.digests.len() as u64 * DIGEST);
        self.digests.clear();
        Ok(())
    }

    /// The collected digests, sorted in themselves.
    pub(crate) fn sources(&mut self) -> Result<Vec<Source>> {
        self.sort();
        let mut sources = Vec::new();
        if let Some(file) = &self.spilled {
            let mut start = 0;
            for end in &self.ends {
                let file = file.try_clone().map_err(Error::local)?;
                sources.push(Source::new(None, From::File(file), start..*end));
                start = *end;
            }
        }
        let memory: Vec<u8> = self.digests.iter().flat_map(|digest| digest.to_be_bytes()).collect();
        sources.push(Source::new(None, From::Memory(Bytes::from(memory)), 0..self.digests.len() as u64 * DIGEST));
        Ok(sources)
    }
}

enum From {
    Memory(Bytes),
    File(File),
    Object(BlockReader, VerifiedObject),
}

/// Sorted digests that are merged.
pub(crate) struct Source {
    day: Option<u8>,
    from: From,
    rest: std::ops::Range<u64>,
    buffer: Bytes,
}

impl Source {
    fn new(day: Option<u8>, from: From, rest: std::ops::Range<u64>) -> Self {
        Self { day, from, rest, buffer: Bytes::new() }
    }

    /// The entries of a day's file. `day` is the day of the month that they get.
    pub(crate) async fn of_object(reader: &BlockReader, object: &StoredObject, day: Option<u8>) -> Result<Self> {
        let verified = VerifiedObject::from(object);
        let trailer = Trailer::read(reader, &verified).await?;
        if trailer.width != DIGEST {
            return Err(Error::schema(&object.path, "the file is not that of a day"));
        }
        let end = trailer.count * DIGEST;
        Ok(Self::new(day, From::Object(reader.clone(), verified), 0..end))
    }

    async fn next(&mut self) -> Result<Option<u64>> {
        if self.buffer.is_empty() {
            let end = self.rest.end.min(self.rest.start + READ);
            if self.rest.start >= end {
                return Ok(None);
            }
            let range = self.rest.start..end;
            self.rest.start = end;
            self.buffer = match &mut self.from {
                From::Memory(bytes) => std::mem::take(bytes),
                From::File(file) => read_file(file, range).map_err(Error::local)?,
                From::Object(reader, object) => reader.read_once(object, range).await?,
            };
            if matches!(self.from, From::Memory(_)) {
                self.rest.start = self.rest.end;
            }
        }
        self.buffer.try_get_u64().map(Some).map_err(Error::local)
    }
}

fn read_file(file: &mut File, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
    // The clones of a file share their position, and only one of them reads at a time.
    file.seek(SeekFrom::Start(range.start))?;
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
    file.read_exact(&mut bytes)?;
    Ok(Bytes::from(bytes))
}

/// Merges sources into a file. Returns the object and the number of its entries.
pub(crate) async fn merge(mut sources: Vec<Source>, mut upload: Upload) -> Result<(StoredObject, u64)> {
    let mut heap = BinaryHeap::with_capacity(sources.len());
    let width = if sources.iter().any(|source| source.day.is_some()) { DIGEST + 1 } else { DIGEST };
    for (number, source) in sources.iter_mut().enumerate() {
        if let Some(digest) = source.next().await? {
            heap.push(Reverse((digest, source.day, number)));
        }
    }
    let mut counts = vec![0u64; 1 << MOST_BITS];
    let mut count = 0;
    let mut last = None;
    let mut bytes = Vec::with_capacity(64 * 1024);
    while let Some(mut top) = heap.peek_mut() {
        let Reverse((digest, day, number)) = *top;
        if last != Some((digest, day)) {
            last = Some((digest, day));
            count += 1;
            bytes.extend_from_slice(&digest.to_be_bytes());
            bytes.extend(day);
            let bucket = usize::try_from(digest >> (64 - MOST_BITS)).unwrap_or_default();
            if let Some(entries) = counts.get_mut(bucket) {
                *entries += 1;
            }
        }
        let following = match sources.get_mut(number) {
            Some(source) => source.next().await?,
            None => None,
        };
        match following {
            Some(following) => *top = Reverse((following, day, number)),
            None => drop(PeekMut::pop(top)),
        }
        if bytes.len() >= 60 * 1024 {
            upload.write(&bytes).await?;
            bytes.clear();
            tokio::task::yield_now().await;
        }
    }
    let bits = bits_for(count);
    append_table(&mut bytes, &counts, bits);
    append_trailer(&mut bytes, width, bits, count);
    upload.write(&bytes).await?;
    Ok((upload.finish().await?, count))
}

fn bits_for(count: u64) -> u32 {
    let buckets = count.div_ceil(ENTRIES_PER_LOOKUP).max(1).next_power_of_two();
    buckets.trailing_zeros().min(MOST_BITS)
}

fn append_table(bytes: &mut Vec<u8>, counts: &[u64], bits: u32) {
    let mut start = 0u64;
    for bucket in counts.chunks(1 << (MOST_BITS - bits)) {
        bytes.extend_from_slice(&start.to_le_bytes());
        start += bucket.iter().sum::<u64>();
    }
    bytes.extend_from_slice(&start.to_le_bytes());
}

fn append_trailer(bytes: &mut Vec<u8>, width: u64, bits: u32, count: u64) {
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&u32::try_from(width).unwrap_or_default().to_le_bytes());
    bytes.extend_from_slice(&bits.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
}

#[derive(Debug, Clone, Copy)]
struct Trailer {
    width: u64,
    bits: u32,
    count: u64,
}

impl Trailer {
    async fn read(reader: &BlockReader, object: &VerifiedObject) -> Result<Self> {
        let bad = || Error::schema(&**object.path(), "the file has no trailer of a file of digests");
        let start = object.bytes().checked_sub(TRAILER).ok_or_else(bad)?;
        let mut bytes = reader.read(object, start..object.bytes()).await?;
        if bytes.len() != usize::try_from(TRAILER).unwrap_or_default() || !bytes.starts_with(MAGIC) {
            return Err(bad());
        }
        bytes.advance(MAGIC.len());
        let trailer =
            Self { width: u64::from(bytes.get_u32_le()), bits: bytes.get_u32_le(), count: bytes.get_u64_le() };
        let is_plausible = (trailer.width == DIGEST || trailer.width == DIGEST + 1) && trailer.bits <= MOST_BITS;
        let length = trailer.count.checked_mul(trailer.width);
        let length = length.and_then(|length| length.checked_add(((1u64 << trailer.bits.min(16)) + 1) * 8 + TRAILER));
        if is_plausible && length == Some(object.bytes()) { Ok(trailer) } else { Err(bad()) }
    }
}

/// The fan-out table of a file.
#[derive(Debug)]
pub(crate) struct FanOut {
    trailer: Trailer,
    starts: Vec<u64>,
}

impl FanOut {
    pub(crate) async fn read(reader: &BlockReader, object: &VerifiedObject) -> Result<Self> {
        let trailer = Trailer::read(reader, object).await?;
        let start = trailer.count * trailer.width;
        let bytes = reader.read(object, start..object.bytes() - TRAILER).await?;
        let starts = bytes.as_chunks::<8>().0.iter().map(|start| u64::from_le_bytes(*start)).collect();
        Ok(Self { trailer, starts })
    }

    pub(crate) fn weight(&self) -> u32 {
        u32::try_from(self.starts.len() * 8 + 64).unwrap_or(u32::MAX)
    }

    /// The entries that may hold a digest, as a range of bytes.
    fn range(&self, digest: u64) -> Option<std::ops::Range<u64>> {
        let bucket =
            if self.trailer.bits == 0 { 0 } else { usize::try_from(digest >> (64 - self.trailer.bits)).ok()? };
        let (start, end) = (*self.starts.get(bucket)?, *self.starts.get(bucket + 1)?);
        (start <= end && end <= self.trailer.count).then(|| start * self.trailer.width..end * self.trailer.width)
    }

    /// Whether the file of a day has the digest.
    pub(crate) async fn contains(&self, reader: &BlockReader, object: &VerifiedObject, digest: u64) -> Result<bool> {
        let entries = self.entries(reader, object, digest).await?;
        let digests = entries.as_chunks::<8>().0;
        Ok(digests.binary_search_by_key(&digest, |entry| u64::from_be_bytes(*entry)).is_ok())
    }

    /// The days of the month that have the digest.
    pub(crate) async fn days(&self, reader: &BlockReader, object: &VerifiedObject, digest: u64) -> Result<Vec<u8>> {
        let entries = self.entries(reader, object, digest).await?;
        let entries = entries.as_chunks::<9>().0;
        let key = digest.to_be_bytes();
        let first = entries.partition_point(|entry| entry.as_slice() < key.as_slice());
        let found = entries.iter().skip(first).take_while(|entry| entry.starts_with(&key));
        Ok(found.filter_map(|entry| entry.last().copied()).collect())
    }

    async fn entries(&self, reader: &BlockReader, object: &VerifiedObject, digest: u64) -> Result<Bytes> {
        let bad = || Error::schema(&**object.path(), "the fan-out table is not in order");
        reader.read(object, self.range(digest).ok_or_else(bad)?).await
    }
}
