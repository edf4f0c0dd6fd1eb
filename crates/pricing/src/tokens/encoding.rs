//! The encodings with which tokens are counted. The vocabularies are compiled into the program in compressed form and
//! are unpacked on first use. `data/vocabularies/README.md` states their sources.

use std::io::Read;
use std::sync::LazyLock;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};

use crate::tokens::bpe::{Merges, Ranks, Scratch, Vocabulary};
use crate::tokens::split::Splitter;

/// OpenAI's encodings are applied to chunks of this many characters, as in LiteLLM. The count can therefore differ by a
/// token at each chunk border, and the time is at most linear in the length of the text.
const STRETCH: usize = 1024;

/// Texts with more characters than this are estimated from samples.
const LARGEST_EXACT: usize = 4_000_000;
const SAMPLES: usize = 16;

/// The encoding of a model's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// OpenAI's encoding up to GPT-4, and the substitute for every unknown model.
    Cl100k,
    /// OpenAI's encoding since GPT-4o.
    O200k,
    /// The encoding that Anthropic has published.
    Anthropic,
    /// `DeepSeek`'s encoding since version 3.
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

/// Unpacks data that is compiled into the program.
pub(crate) fn unpack(data: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    // Errors are ignored: a test unpacks all of the data.
    let _ = flate2::read::ZlibDecoder::new(data).read_to_end(&mut unpacked);
    unpacked
}

impl Encoding {
    /// Counts the tokens of a text. Special tokens are plain text in OpenAI's encodings, and one token each in the
    /// others. For texts of more than four million characters, the count is estimated from sixteen samples.
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
        // Counts are far below 2^53, so the floats are exact.
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

/// Splits after `count` characters. Returns the first part and the rest.
fn split_characters(text: &str, count: usize) -> (&str, &str) {
    if text.len() <= count {
        return (text, "");
    }
    // Every byte except 0b10xxxxxx starts a character.
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
