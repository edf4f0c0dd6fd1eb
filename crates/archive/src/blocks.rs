//! Reads that are checked: every block of an object is compared with its hash before anything is taken from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::Hasher;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use twox_hash::XxHash3_64;

use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::manifest::{StoredObject, hexadecimal};
use crate::store::Store;

/// The size of a block. A row that is read alone needs a block of each of its columns.
pub(crate) const BLOCK: u64 = 64 * 1024;
/// The most blocks that are in memory twice while a large range is read.
const BLOCKS_AT_ONCE: u64 = 128;

fn hash(block: &[u8]) -> u64 {
    XxHash3_64::oneshot(block)
}

/// Computes the hashes of an object while it is written.
pub(crate) struct ObjectHasher {
    sha256: Sha256,
    block: XxHash3_64,
    in_block: u64,
    blocks: Vec<u64>,
    bytes: u64,
}

impl Default for ObjectHasher {
    fn default() -> Self {
        Self { sha256: Sha256::new(), block: XxHash3_64::new(), in_block: 0, blocks: Vec::new(), bytes: 0 }
    }
}

impl ObjectHasher {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = usize::try_from(BLOCK - self.in_block).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.write(now);
            self.in_block += now.len() as u64;
            if self.in_block == BLOCK {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        self.blocks.push(self.block.finish());
        self.block = XxHash3_64::new();
        self.in_block = 0;
    }

    pub(crate) fn finish(mut self, path: &str) -> StoredObject {
        if self.in_block > 0 {
            self.end_block();
        }
        StoredObject {
            path: path.to_owned(),
            bytes: self.bytes,
            sha256: hexadecimal(&self.sha256.finalize()),
            blocks: self.blocks,
        }
    }
}

/// An object that can be read block by block.
#[derive(Debug, Clone)]
pub(crate) struct VerifiedObject(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Arc<str>,
    bytes: u64,
    blocks: Vec<u64>,
}

impl From<&StoredObject> for VerifiedObject {
    fn from(object: &StoredObject) -> Self {
        let (path, blocks) = (Arc::from(object.path.as_str()), object.blocks.clone());
        Self(Arc::new(Inner { path, bytes: object.bytes, blocks }))
    }
}

impl VerifiedObject {
    pub(crate) fn path(&self) -> &Arc<str> {
        &self.0.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes
    }

    fn blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() { 0..0 } else { range.start / BLOCK..(range.end - 1) / BLOCK + 1 }
    }

    fn bytes_of(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * BLOCK..(blocks.end * BLOCK).min(self.0.bytes)
    }

    /// Refuses a range outside the object, before anything is done for each of its blocks.
    fn has(&self, range: &Range<u64>) -> Result<()> {
        if range.start <= range.end && range.end <= self.0.bytes {
            return Ok(());
        }
        Err(Error::schema(&**self.path(), "a range outside the object was asked for"))
    }

    /// Whether the bytes of a range, which starts with a block and ends with one, are those that were written.
    pub(crate) fn are_right(&self, range: &Range<u64>, bytes: &[u8]) -> bool {
        let size = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        bytes.len() as u64 == range.end.saturating_sub(range.start)
            && self.blocks_of(range).zip(bytes.chunks(size)).all(|(number, block)| self.is_right(number, block))
    }

    /// Reads ranges of the object from its file. `None` if that is not possible, if a block is not as it was written, or if
    /// nobody wants them any more.
    fn read_from(&self, file: &mut File, ranges: &[Range<u64>], is_wanted: impl Fn() -> bool) -> Option<Vec<Bytes>> {
        let mut block = Vec::with_capacity(usize::try_from(BLOCK).ok()?);
        // The number of the block that was read last. Ranges of one column lie close to each other.
        let mut last = None;
        let read = ranges.iter().map(|range| {
            let room = range.end.saturating_sub(range.start).min(BLOCKS_AT_ONCE * BLOCK);
            let mut bytes = Vec::with_capacity(usize::try_from(room).ok()?);
            for number in self.blocks_of(range) {
                let own = self.bytes_of(&(number..number + 1));
                if last != Some(number) {
                    is_wanted().then_some(())?;
                    block.clear();
                    file.seek(SeekFrom::Start(own.start)).ok()?;
                    file.take(own.end - own.start).read_to_end(&mut block).ok()?;
                    last = self.is_right(number, &block).then_some(number);
                    last?;
                }
                let start = usize::try_from(range.start.saturating_sub(own.start)).ok()?;
                let end = usize::try_from(range.end.min(own.end) - own.start).ok()?;
                bytes.extend_from_slice(block.get(start..end)?);
            }
            Some(Bytes::from(bytes))
        });
        read.collect()
    }

    fn is_right(&self, number: u64, block: &[u8]) -> bool {
        let expected = usize::try_from(number).ok().and_then(|number| self.0.blocks.get(number));
        expected.is_some_and(|expected| hash(block) == *expected)
    }
}

/// Reads objects. The blocks of object stores that were read last are kept in memory.
#[derive(Debug, Clone)]
pub(crate) struct BlockReader {
    store: Store,
    damage: Damage,
    cache: Cache<(Arc<str>, u64), Bytes>,
}

/// What one request brought.
enum Attempt {
    /// Blocks by number, and the numbers of those that are wrong.
    Blocks(Vec<(u64, Bytes)>, Vec<u64>),
    /// The answer failed or was not complete.
    Failed(String),
}

impl BlockReader {
    pub(crate) fn new(store: Store, damage: Damage, cache_bytes: u64) -> Self {
        let weigh = |_: &(Arc<str>, u64), block: &Bytes| u32::try_from(block.len() + 128).unwrap_or(u32::MAX);
        Self { store, damage, cache: Cache::builder().weigher(weigh).max_capacity(cache_bytes).build() }
    }

    /// Reads a range.
    pub(crate) async fn read(&self, object: &VerifiedObject, range: Range<u64>) -> Result<Bytes> {
        let mut read = self.read_ranges(object, std::slice::from_ref(&range)).await?;
        read.pop().ok_or_else(|| Error::damaged(&**object.path()))
    }

    /// Reads ranges.
    pub(crate) async fn read_ranges(&self, object: &VerifiedObject, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.damage.check(object.path()).await?;
        ranges.iter().try_for_each(|range| object.has(range))?;
        if let Some(read) = self.read_file(object, ranges).await {
            return Ok(read);
        }
        let mut blocks = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for number in ranges.iter().flat_map(|range| object.blocks_of(range)) {
            match self.cache.get(&(Arc::clone(object.path()), number)) {
                Some(block) => drop(blocks.insert(number, block)),
                None => drop(missing.insert(number)),
            }
        }
        if !missing.is_empty() {
            for (number, block) in self.fetch(object, &runs(missing)).await? {
                // A copy: a slice would keep the whole answer in memory as long as one of its blocks is used.
                let block = Bytes::copy_from_slice(&block);
                self.cache.insert((Arc::clone(object.path()), number), block.clone());
                blocks.insert(number, block);
            }
        }
        ranges.iter().map(|range| cut(object, &blocks, range)).collect()
    }

    /// Reads a range without keeping its blocks in memory.
    pub(crate) async fn read_once(&self, object: &VerifiedObject, range: Range<u64>) -> Result<Bytes> {
        self.damage.check(object.path()).await?;
        object.has(&range)?;
        // What the manifest says about the size is believed only as far as bytes arrive.
        let room = range.end.saturating_sub(range.start).min(BLOCKS_AT_ONCE * BLOCK);
        let mut joined = BytesMut::with_capacity(usize::try_from(room).unwrap_or(0));
        let mut blocks = object.blocks_of(&range);
        while !blocks.is_empty() {
            let run = blocks.start..blocks.end.min(blocks.start + BLOCKS_AT_ONCE);
            blocks.start = run.end;
            let covered = object.bytes_of(&run);
            let wanted = covered.start.max(range.start)..covered.end.min(range.end);
            if let Some(read) = self.read_file(object, std::slice::from_ref(&wanted)).await {
                read.iter().for_each(|piece| joined.extend_from_slice(piece));
                continue;
            }
            let fetched: BTreeMap<u64, Bytes> = self.fetch(object, &[run]).await?.into_iter().collect();
            pieces(object, &fetched, &wanted)?.iter().for_each(|piece| joined.extend_from_slice(piece));
        }
        Ok(joined.freeze())
    }

    /// Reads ranges of a file of a local archive. The system keeps files in memory, so their blocks are not kept here, too.
    /// `None` if the archive is elsewhere, and if anything is not as expected: then the blocks are fetched, which tells what
    /// it is.
    async fn read_file(&self, object: &VerifiedObject, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let file = self.store.file(object.path())?;
        let (object, ranges) = (object.clone(), ranges.to_vec());
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let read = tokio::task::spawn_blocking(move || {
            object.read_from(&mut File::open(file).ok()?, &ranges, || is_wanted.strong_count() > 0)
        });
        let read = tokio::time::timeout(self.store.limit(), read).await;
        // Until here, and not if this read is given up before.
        drop(wanted);
        read.ok()?.ok()?
    }

    /// Fetches runs of blocks. Wrong ones are fetched once more: if they are wrong again, the object is damaged.
    async fn fetch(&self, object: &VerifiedObject, runs: &[Range<u64>]) -> Result<Vec<(u64, Bytes)>> {
        let mut outcome = self.attempt(object, runs).await?;
        if let Attempt::Failed(cause) = &outcome {
            tracing::warn!(path = %object.path(), cause, "an object is read once more");
            outcome = self.attempt(object, runs).await?;
        }
        let (mut blocks, wrong) = match outcome {
            Attempt::Blocks(blocks, wrong) => (blocks, wrong),
            Attempt::Failed(cause) => return Err(Error::Unavailable(cause)),
        };
        for number in wrong {
            tracing::warn!(path = %object.path(), number, "a block has the wrong bytes and is read once more");
            let alone = number..number + 1;
            match self.attempt(object, std::slice::from_ref(&alone)).await? {
                Attempt::Blocks(right, wrong) if wrong.is_empty() => blocks.extend(right),
                Attempt::Blocks(..) => return Err(self.damage.mark(object.path()).await),
                Attempt::Failed(cause) => return Err(Error::Unavailable(cause)),
            }
        }
        Ok(blocks)
    }

    async fn attempt(&self, object: &VerifiedObject, runs: &[Range<u64>]) -> Result<Attempt> {
        let ranges: Vec<Range<u64>> = runs.iter().map(|run| object.bytes_of(run)).collect();
        let cause = match self.store.get_ranges(object.path(), &ranges).await {
            Ok(answers) => {
                let lengths = ranges.iter().map(|range| range.end.saturating_sub(range.start));
                if answers.iter().map(|bytes| bytes.len() as u64).eq(lengths) {
                    return Ok(compare(object, runs, answers));
                }
                format!("fewer bytes than there are arrived from {}", object.path())
            }
            Err(missing @ Error::NotFound { .. }) => return Err(missing),
            Err(Error::Unavailable(cause)) => cause,
            Err(other) => other.to_string(),
        };
        // An object of another size cannot be what was written. Otherwise the answer failed, and not the object.
        match self.store.size(object.path()).await {
            Ok(size) if size != object.bytes() => Err(self.damage.mark(object.path()).await),
            Err(missing @ Error::NotFound { .. }) => Err(missing),
            _ => Ok(Attempt::Failed(cause)),
        }
    }

    /// Forgets what is in memory of an object.
    pub(crate) fn forget(&self, object: &VerifiedObject) {
        for number in 0..object.0.blocks.len() as u64 {
            self.cache.invalidate(&(Arc::clone(object.path()), number));
        }
    }

    pub(crate) fn forget_all(&self) {
        self.cache.invalidate_all();
    }
}

fn compare(object: &VerifiedObject, runs: &[Range<u64>], answers: Vec<Bytes>) -> Attempt {
    let (mut blocks, mut wrong) = (Vec::new(), Vec::new());
    for (run, mut rest) in runs.iter().zip(answers) {
        for number in run.clone() {
            let size = usize::try_from(BLOCK).unwrap_or(usize::MAX).min(rest.len());
            let block = rest.split_to(size);
            if object.is_right(number, &block) {
                blocks.push((number, block));
            } else {
                wrong.push(number);
            }
        }
    }
    Attempt::Blocks(blocks, wrong)
}

/// Consecutive numbers as ranges.
fn runs(numbers: BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

/// A range, from its blocks.
fn cut(object: &VerifiedObject, blocks: &BTreeMap<u64, Bytes>, range: &Range<u64>) -> Result<Bytes> {
    let pieces = pieces(object, blocks, range)?;
    if let [only] = pieces.as_slice() {
        return Ok(only.clone());
    }
    let mut joined = BytesMut::with_capacity(usize::try_from(range.end - range.start).unwrap_or_default());
    pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
    Ok(joined.freeze())
}

/// What a range has of each of its blocks.
fn pieces(object: &VerifiedObject, blocks: &BTreeMap<u64, Bytes>, range: &Range<u64>) -> Result<Vec<Bytes>> {
    object.has(range)?;
    let pieces = object.blocks_of(range).map(|number| {
        let block = blocks.get(&number)?;
        let start = usize::try_from(range.start.saturating_sub(number * BLOCK)).ok()?;
        let end = usize::try_from(range.end - number * BLOCK).ok()?.min(block.len());
        (start <= end).then(|| block.slice(start..end))
    });
    let pieces: Option<Vec<Bytes>> = pieces.collect();
    pieces.ok_or_else(|| Error::schema(&**object.path(), "a range outside the object was asked for"))
}
