//! The encodings that tokens are counted with. Vocabularies are part of the program, deflated, and
//! are unpacked when they are first used; `data/vocabularies/README.md` says where they come from.

use std::io::Read;
use std::sync::LazyLock;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};

use crate::tokens::bpe::{Merges, Ranks, Scratch, Vocabulary};
use crate::tokens::split::Splitter;

/// OpenAI's encodings are applied to stretches of this many characters, as LiteLLM does, so that
/// the count can differ by a token at a border, and never takes more than linear time.
const STRETCH: usize = 1024;

/// Texts of more characters are estimated from samples.
const LARGEST_EXACT: usize = 4_000_000;
const SAMPLES: usize = 16;

/// How a model's text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// OpenAI's up to GPT-4, and the stand-in for every unknown model.
    Cl100k,
    /// OpenAI's since GPT-4o.
    O200k,
    /// Anthropic's published one.
    Anthropic,
    /// `DeepSeek`'s since version 3.
    DeepSeek,
}

macro_rules! vocabulary {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/vocabularies/", $name, ".zlib"))
    };
}

static CL100K: LazyLock<Ranks> = LazyLock::new(|| Ranks::read(&unpack(vocabulary!("cl100k_base.ranks"))));
static O200K: LazyLock<Ranks> = LazyLock::new(|| Ranks::read(&unpack(vocabulary!("o200k_base.ranks"))));
static ANTHROPIC: LazyLock<Merges> = LazyLock::new(|| Merges::read(&unpack(vocabulary!("anthropic.merges"))));
static DEEPSEEK: LazyLock<Merges> = LazyLock::new(|| Merges::read(&unpack(vocabulary!("deepseek.merges"))));

fn unpack(data: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    // Vocabularies are part of the program, and a test unpacks them all.
    let _ = flate2::read::ZlibDecoder::new(data).read_to_end(&mut unpacked);
    unpacked
}

impl Encoding {
    /// How many tokens a text has. Special tokens are plain text for OpenAI's encodings, and one
    /// token each for the others. Of texts over four million characters, sixteen samples are
    /// counted.
    pub fn count(self, text: &str) -> u64 {
        if text.len() > LARGEST_EXACT {
            let length = text.chars().count();
            if length > LARGEST_EXACT {
                return self.estimate(text, length);
            }
        }
        self.count_exactly(text)
    }

    fn count_exactly(self, text: &str) -> u64 {
        let mut scratch = Scratch::default();
        match self {
            Self::Cl100k => {
                stretches(text).map(|text| count_split(&*CL100K, text, |text, at| text.cl100k(at), &mut scratch)).sum()
            }
            Self::O200k => {
                stretches(text).map(|text| count_split(&*O200K, text, |text, at| text.o200k(at), &mut scratch)).sum()
            }
            Self::Anthropic => count_between_special(&ANTHROPIC, text, &mut |text| {
                let normal: String;
                let text = if is_nfkc_quick(text.chars()) == IsNormalized::Yes {
                    text
                } else {
                    normal = text.nfkc().collect();
                    &normal
                };
                count_split(&*ANTHROPIC, text, |text, at| text.gpt2(at), &mut scratch)
            }),
            Self::DeepSeek => count_between_special(&DEEPSEEK, text, &mut |text| {
                let mut count = 0;
                Splitter::new(text).deepseek(&mut |piece| {
                    count += DEEPSEEK.count(piece.as_bytes(), &mut scratch);
                });
                count
            }),
        }
    }

    fn estimate(self, text: &str, length: usize) -> u64 {
        let sample = LARGEST_EXACT / SAMPLES;
        let last_start = length - sample;
        let mut positions = text.char_indices().map(|(position, _)| position);
        let mut passed = 0;
        let mut counted = 0;
        for index in 0..SAMPLES {
            let start = last_start * index / (SAMPLES - 1);
            let Some(position) = positions.nth(start - passed) else {
                break;
            };
            passed = start + 1;
            let rest = text.get(position..).unwrap_or_default();
            counted += self.count_exactly(split_characters(rest, sample).0);
        }
        // Counts are far below 2^53: the floats are exact.
        (counted as f64 * length as f64 / (sample * SAMPLES) as f64).round_ties_even() as u64
    }
}

fn stretches(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (stretch, after) = split_characters(rest, STRETCH);
        rest = after;
        Some(stretch)
    })
}

/// The first `count` characters, and the rest.
fn split_characters(text: &str, count: usize) -> (&str, &str) {
    if text.len() <= count {
        return (text, "");
    }
    // Bytes that start a character are all but 0b10xxxxxx.
    let mut characters = 0;
    let end = text.bytes().position(|byte| {
        if byte & 0xc0 != 0x80 {
            characters += 1;
        }
        characters > count
    });
    text.split_at_checked(end.unwrap_or(text.len())).unwrap_or((text, ""))
}

fn count_split<V: Vocabulary>(
    vocabulary: &V,
    text: &str,
    next: impl Fn(&Splitter<'_>, usize) -> Option<usize>,
    scratch: &mut Scratch,
) -> u64 {
    let splitter = Splitter::new(text);
    let bytes = text.as_bytes();
    let mut count = 0;
    let mut position = 0;
    while let Some(end) = next(&splitter, position) {
        count += vocabulary.count(bytes.get(position..end).unwrap_or_default(), scratch);
        position = end;
    }
    count
}

fn count_between_special(merges: &Merges, text: &str, count: &mut dyn FnMut(&str) -> u64) -> u64 {
    let mut total = 0;
    let mut rest = text;
    while let Some((before, after)) = merges.split_special(rest) {
        total += count(before) + 1;
        rest = after;
    }
    total + count(rest)
}
