//! Checks both ways of merging against step-by-step merging, with real and with random vocabularies.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::randomness::check;

/// Merges the first pair of the lowest rank until no pair is left, as the algorithm is defined. Returns the tokens'
/// bytes.
fn naive<'p>(vocabulary: &impl Vocabulary, piece: &'p [u8]) -> Vec<&'p [u8]> {
    let mut parts: Vec<Part> = (0..)
        .zip(piece)
        .map(|(start, byte)| Part { start, end: start + 1, id: vocabulary.byte(*byte), merged: NO_MERGE })
        .collect();
    while let Some((id, at)) = (1..parts.len())
        .map(|at| (vocabulary.merge(piece, parts[at - 1], parts[at]), at))
        .filter(|(id, _)| *id != NO_MERGE)
        .min()
    {
        let right = parts.remove(at);
        parts[at - 1] = Part { end: right.end, id, ..parts[at - 1] };
    }
    parts.iter().map(|part| &piece[part.start as usize..part.end as usize]).collect()
}

fn agrees(vocabulary: &impl Vocabulary, piece: &[u8], scratch: &mut Scratch) -> Result<(), TestCaseError> {
    let tokens = naive(vocabulary, piece);
    // The concatenated tokens must equal the text.
    prop_assert_eq!(tokens.concat(), piece);
    let expected = if !piece.is_empty() && vocabulary.is_token(piece) { 1 } else { tokens.len() as u64 };
    prop_assert_eq!(vocabulary.count(piece, scratch), expected);
    if piece.len() > 1 && !vocabulary.is_token(piece) {
        scratch.start(vocabulary, piece);
        scratch.merge_in_place(vocabulary, piece);
        prop_assert_eq!(scratch.parts.len() as u64, expected);
        scratch.start(vocabulary, piece);
        prop_assert_eq!(scratch.merge_with_heap(vocabulary, piece), expected);
    }
    Ok(())
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(select(b"abc".to_vec()), 0..40),
        vec(select(b"ab".to_vec()), 90..220),
        vec(any::<u8>(), 0..40),
        "[a-z]{1,30}".prop_map(String::into_bytes),
        "(the|ing|tion|and|er| |_|0|xx){0,60}".prop_map(String::into_bytes),
        "\\PC{0,20}".prop_map(String::into_bytes),
    ]
}

#[test]
fn made_up_ranks_count_as_step_by_step() {
    let token = vec(select(b"abc".to_vec()), 1..6);
    check(800, (vec(token, 0..40), vec(piece(), 1..4)), |(tokens, pieces)| {
        let data: Vec<u8> =
            tokens.iter().flat_map(|token| std::iter::once(token.len() as u8).chain(token.iter().copied())).collect();
        let (ranks, mut scratch) = (Ranks::read(&data), Scratch::default());
        for piece in &pieces {
            agrees(&ranks, piece, &mut scratch)?;
        }
        Ok(())
    });
}

#[test]
fn made_up_merges_count_as_step_by_step() {
    let ids = prop_oneof![select(vec![97_u32, 98, 99]), 256..300_u32];
    check(800, (vec((ids.clone(), ids), 0..40), vec(piece(), 1..4)), |(pairs, pieces)| {
        let mut data = vec![0, 0];
        for (left, right) in pairs {
            data.extend_from_slice(&left.to_le_bytes()[..3]);
            data.extend_from_slice(&right.to_le_bytes()[..3]);
        }
        let (merges, mut scratch) = (Merges::read(&data), Scratch::default());
        for piece in &pieces {
            agrees(&merges, piece, &mut scratch)?;
        }
        Ok(())
    });
}

#[test]
fn the_real_vocabularies_count_as_step_by_step() {
    let vocabulary = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/vocabularies").join(name);
        let mut unpacked = Vec::new();
        let file = std::fs::File::open(path).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(file), &mut unpacked).unwrap();
        unpacked
    };
    let ranks = [Ranks::read(&vocabulary("cl100k_base.ranks.zlib")), Ranks::read(&vocabulary("o200k_base.ranks.zlib"))];
    let merges =
        [Merges::read(&vocabulary("anthropic.merges.zlib")), Merges::read(&vocabulary("deepseek.merges.zlib"))];
    check(300, piece(), |piece| {
        let mut scratch = Scratch::default();
        for ranks in &ranks {
            agrees(ranks, &piece, &mut scratch)?;
        }
        for merges in &merges {
            agrees(merges, &piece, &mut scratch)?;
        }
        Ok(())
    });
}

#[test]
fn any_bytes_are_a_vocabulary_of_what_they_hold() {
    check(800, (vec(any::<u8>(), 0..200), piece(), "\\PC{0,30}"), |(data, piece, text)| {
        let mut scratch = Scratch::default();
        agrees(&Ranks::read(&data), &piece, &mut scratch)?;
        let merges = Merges::read(&data);
        agrees(&merges, &piece, &mut scratch)?;
        if let Some((before, after)) = merges.split_special(&text) {
            prop_assert!(text.starts_with(before) && text.ends_with(after));
        }
        Ok(())
    });
}
