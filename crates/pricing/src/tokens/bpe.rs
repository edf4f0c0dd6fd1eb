//! Byte pair encoding, counting only: determines the number of tokens in a piece of text.
//!
//! There are two kinds of vocabulary. [`Ranks`] (OpenAI) merges any two neighbours whose concatenated bytes are a
//! token, lowest rank first. [`Merges`] (Hugging Face) merges only the pairs that it lists, in their order.
//!
//! Short pieces are merged in place. Long pieces are merged with a heap, so that the time is nearly linear for any
//! text.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::{FxHashMap, FxHashSet};

/// Pieces with more bytes than this are merged with a heap.
const LONG_PIECE: usize = 96;

const NO_MERGE: u32 = u32::MAX;

/// A token during merging: the bytes `start..end` of the piece, and the token's id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    start: u32,
    end: u32,
    id: u32,
    /// The id of the token that this part and the next one merge to, or [`NO_MERGE`].
    merged: u32,
}

/// Buffers that are reused from piece to piece.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    parts: Vec<Part>,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

/// A vocabulary, which determines the token that two neighbouring parts merge to.
pub(crate) trait Vocabulary {
    /// Whether the whole piece is one token, so that no merging is needed.
    fn is_token(&self, piece: &[u8]) -> bool;
    fn byte(&self, byte: u8) -> u32;
    /// The id of the merged token, which is also its priority, or [`NO_MERGE`].
    fn merge(&self, piece: &[u8], left: Part, right: Part) -> u32;

    /// The number of tokens in a piece.
    fn count(&self, piece: &[u8], scratch: &mut Scratch) -> u64 {
        if piece.len() <= 1 || self.is_token(piece) {
            return u64::from(!piece.is_empty());
        }
        scratch.start(self, piece);
        if piece.len() <= LONG_PIECE {
            scratch.merge_in_place(self, piece);
            scratch.parts.len() as u64
        } else {
            scratch.merge_with_heap(self, piece)
        }
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "positions are those of parts that were made from the piece, and are checked against its length"
)]
impl Scratch {
    fn start<V: Vocabulary + ?Sized>(&mut self, vocabulary: &V, piece: &[u8]) {
        self.parts.clear();
        self.parts.extend((0u32..).zip(piece).map(|(start, byte)| Part {
            start,
            end: start + 1,
            id: vocabulary.byte(*byte),
            merged: NO_MERGE,
        }));
        for position in 1..self.parts.len() {
            let (left, right) = (self.parts[position - 1], self.parts[position]);
            self.parts[position - 1].merged = vocabulary.merge(piece, left, right);
        }
    }

    fn merge_in_place<V: Vocabulary + ?Sized>(&mut self, vocabulary: &V, piece: &[u8]) {
        let parts = &mut self.parts;
        loop {
            let mut best = (NO_MERGE, 0);
            for (position, part) in parts.iter().enumerate() {
                if part.merged < best.0 {
                    best = (part.merged, position);
                }
            }
            let (id, position) = best;
            if id == NO_MERGE {
                return;
            }
            let removed = parts.remove(position + 1);
            parts[position].id = id;
            parts[position].end = removed.end;
            parts[position].merged = match parts.get(position + 1) {
                Some(next) => vocabulary.merge(piece, parts[position], *next),
                None => NO_MERGE,
            };
            if position > 0 {
                parts[position - 1].merged = vocabulary.merge(piece, parts[position - 1], parts[position]);
            }
        }
    }

    fn merge_with_heap<V: Vocabulary + ?Sized>(&mut self, vocabulary: &V, piece: &[u8]) -> u64 {
        let length = self.parts.len();
        self.links.clear();
        self.heap.clear();
        for (position, part) in (0u32..).zip(&self.parts) {
            self.links.push(Link { previous: position.wrapping_sub(1), next: position + 1 });
            if part.merged != NO_MERGE {
                self.heap.push(Reverse((part.merged, position)));
            }
        }
        let mut count = length as u64;
        while let Some(Reverse((id, position))) = self.heap.pop() {
            let at = position as usize;
            // If a pair changed after it was queued, this entry is stale: the pair was queued again under its new id.
            if self.parts[at].merged != id {
                continue;
            }
            let removed = self.links[at].next as usize;
            count -= 1;
            let next = self.links[removed].next;
            self.parts[at].id = id;
            self.parts[at].end = self.parts[removed].end;
            self.parts[removed].merged = NO_MERGE;
            self.links[at].next = next;
            let merged = match self.parts.get(next as usize) {
                Some(following) => {
                    self.links[next as usize].previous = position;
                    vocabulary.merge(piece, self.parts[at], *following)
                }
                None => NO_MERGE,
            };
            self.set_merged(position, merged);
            let previous = self.links[at].previous;
            if (previous as usize) < length {
                let merged = vocabulary.merge(piece, self.parts[previous as usize], self.parts[at]);
                self.set_merged(previous, merged);
            }
        }
        count
    }

    fn set_merged(&mut self, position: u32, merged: u32) {
        self.parts[position as usize].merged = merged;
        if merged != NO_MERGE {
            self.heap.push(Reverse((merged, position)));
        }
    }
}

/// A vocabulary of tokens by rank: the bytes of all tokens in one buffer, and an index with open addressing.
#[derive(Debug)]
pub(crate) struct Ranks {
    bytes: Vec<u8>,
    /// The start of each token in `bytes`, and the end of the last one.
    starts: Vec<u32>,
    /// Rank plus one, by hash. 0 marks an empty slot. The length is a power of two.
    slots: Vec<u32>,
    single: [u32; 256],
}

impl Ranks {
    /// Reads the compact form: for each token, in rank order, one byte for its length, then its bytes.
    pub(crate) fn read(mut data: &[u8]) -> Self {
        let mut ranks =
            Self { bytes: Vec::with_capacity(data.len()), starts: vec![0], slots: Vec::new(), single: [NO_MERGE; 256] };
        while let Some((length, rest)) = data.split_first() {
            let Some((token, rest)) = rest.split_at_checked(usize::from(*length)) else {
                break;
            };
            if let ([byte], Ok(rank)) = (token, u32::try_from(ranks.starts.len() - 1)) {
                #[expect(clippy::indexing_slicing, reason = "the array has a place for each byte")]
                {
                    ranks.single[usize::from(*byte)] = rank;
                }
            }
            ranks.bytes.extend_from_slice(token);
            ranks.starts.push(u32::try_from(ranks.bytes.len()).unwrap_or(u32::MAX));
            data = rest;
        }
        let tokens = ranks.starts.len() - 1;
        ranks.slots = vec![0; (tokens * 2).next_power_of_two()];
        let mask = ranks.slots.len() - 1;
        for (rank, bounds) in (1u32..).zip(ranks.starts.windows(2)) {
            let [start, end] = bounds else { continue };
            let token = ranks.bytes.get(*start as usize..*end as usize).unwrap_or_default();
            let mut slot = hash(token) & mask;
            while ranks.slots.get(slot).is_some_and(|taken| *taken != 0) {
                slot = (slot + 1) & mask;
            }
            if let Some(free) = ranks.slots.get_mut(slot) {
                *free = rank;
            }
        }
        ranks
    }

    #[inline]
    fn rank(&self, token: &[u8]) -> u32 {
        let mask = self.slots.len() - 1;
        let mut slot = hash(token) & mask;
        while let Some(&rank) = self.slots.get(slot) {
            let Some(rank) = rank.checked_sub(1) else {
                break;
            };
            if self.token(rank) == token {
                return rank;
            }
            slot = (slot + 1) & mask;
        }
        NO_MERGE
    }

    #[inline]
    fn token(&self, rank: u32) -> &[u8] {
        match self.starts.get(rank as usize..rank as usize + 2) {
            Some([start, end]) => self.bytes.get(*start as usize..*end as usize).unwrap_or_default(),
            _ => &[],
        }
    }
}

impl Vocabulary for Ranks {
    #[inline]
    fn is_token(&self, piece: &[u8]) -> bool {
        self.rank(piece) != NO_MERGE
    }

    #[expect(clippy::indexing_slicing, reason = "the array has a place for each byte")]
    fn byte(&self, byte: u8) -> u32 {
        self.single[usize::from(byte)]
    }

    fn merge(&self, piece: &[u8], left: Part, right: Part) -> u32 {
        piece.get(left.start as usize..right.end as usize).map_or(NO_MERGE, |token| self.rank(token))
    }
}

/// A vocabulary of listed merges. The ids 0 to 255 are the single bytes.
#[derive(Debug)]
pub(crate) struct Merges {
    merged: FxHashMap<(u32, u32), u32>,
    special: FxHashSet<Box<str>>,
    /// The lengths of the special tokens, longest first.
    special_lengths: Vec<usize>,
}

impl Merges {
    /// Reads the compact form: the special tokens, then pairs of ids in merge order.
    pub(crate) fn read(data: &[u8]) -> Self {
        let mut merges =
            Self { merged: FxHashMap::default(), special: FxHashSet::default(), special_lengths: Vec::new() };
        let Some((count, mut rest)) = split_length(data) else {
            return merges;
        };
        for _ in 0..count {
            let Some((length, after)) = split_length(rest) else {
                return merges;
            };
            let Some((token, after)) = after.split_at_checked(length) else {
                return merges;
            };
            if let Ok(token) = std::str::from_utf8(token) {
                merges.special_lengths.push(token.len());
                merges.special.insert(token.into());
            }
            rest = after;
        }
        merges.special_lengths.sort_unstable_by_key(|length| Reverse(*length));
        merges.special_lengths.dedup();
        merges.merged.reserve(rest.len() / 6);
        for (id, pair) in (256u32..).zip(rest.chunks_exact(6)) {
            if let [a, b, c, d, e, f] = *pair {
                let left = u32::from_le_bytes([a, b, c, 0]);
                let right = u32::from_le_bytes([d, e, f, 0]);
                merges.merged.insert((left, right), id);
            }
        }
        merges
    }

    /// Splits text at the first special token. Returns the text before it and the text after it.
    pub(crate) fn split_special<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        // Every special token starts with one of these characters.
        text.match_indices(['<', '\u{ff5c}']).find_map(|(start, _)| {
            let rest = text.get(start..)?;
            let length = self
                .special_lengths
                .iter()
                .find(|length| rest.get(..**length).is_some_and(|token| self.special.contains(token)))?;
            Some((text.get(..start)?, rest.get(*length..)?))
        })
    }
}

impl Vocabulary for Merges {
    fn is_token(&self, _: &[u8]) -> bool {
        false
    }

    fn byte(&self, byte: u8) -> u32 {
        u32::from(byte)
    }

    fn merge(&self, _: &[u8], left: Part, right: Part) -> u32 {
        self.merged.get(&(left.id, right.id)).copied().unwrap_or(NO_MERGE)
    }
}

fn split_length(data: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = data.split_first_chunk::<2>()?;
    Some((usize::from(u16::from_le_bytes(*length)), rest))
}

/// Hashes a short byte string. The hash need not resist deliberate collisions: the tokens in the index are trusted, and
/// a request's text only determines which slots are read.
#[inline]
fn hash(bytes: &[u8]) -> usize {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = (bytes.len() as u64).wrapping_mul(FACTOR);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = mix(state ^ u64::from_le_bytes(*word), FACTOR);
    }
    let mut tail = 0u64;
    for byte in rest {
        tail = (tail << 8) | u64::from(*byte);
    }
    let state = mix(state ^ tail, FACTOR);
    (state ^ (state >> 32)) as usize
}

#[inline]
fn mix(state: u64, factor: u64) -> u64 {
    let product = state.wrapping_mul(factor);
    product ^ (product >> 29)
}

#[cfg(test)]
mod fuzz;
