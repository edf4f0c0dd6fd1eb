//! Checks that texts of all kinds are split exactly as the encodings' own regular expressions split them.

use fancy_regex::Regex;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::randomness::check;

// The expressions as tiktoken and the tokenizers' own files contain them.
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥\u{3040}-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
];

/// The pieces of a text: the matches, and the text between them.
fn isolate<'a>(expression: &Regex, text: &'a str) -> Vec<&'a str> {
    let (mut pieces, mut done) = (Vec::new(), 0);
    for found in expression.find_iter(text) {
        let found = found.unwrap();
        pieces.extend([&text[done..found.start()], found.as_str()]);
        done = found.end();
    }
    pieces.push(&text[done..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn split<'a>(text: &'a str, next: impl Fn(&Splitter<'a>, usize) -> Option<usize>) -> Vec<&'a str> {
    let splitter = Splitter::new(text);
    let (mut pieces, mut position) = (Vec::new(), 0);
    while let Some(end) = next(&splitter, position) {
        assert!(end > position, "no step forward in {text:?} at {position}");
        pieces.push(&text[position..end]);
        position = end;
    }
    pieces
}

/// Whether a character is assigned. This crate and the regular expressions may use different versions of Unicode, which
/// agree only about assigned characters.
fn is_known(c: char) -> bool {
    !matches!(get_general_category(c), Category::Unassigned)
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => select(vec![
            " ", "  ", "\n", "\r\n", "\r", "\t", "\u{a0}", "\u{2028}", "\u{3000}", "\u{85}", "'", "'s", "'S", "'ſ", "'ll",
            "'LL", "'vE", "'re", "'d", "'m", "'t", "’s", "/", "//", "-", "_", "!", "?!", "$", "+", "€", "\u{301}", "\u{200d}",
            "\0", "\u{7f}", "😀", "ABC", "Abc", "abc", "aB", "Ǆ", "ǅ", "ʰ", "ß", "İ", "ı", "ſ", "K", "中文", "日本語", "ひら", "カナ",
            "한글", "שלום", "مرحبا", "हिन्दी", "ไทย", "1", "12", "1234", "１２", "½", "Ⅷ", "٣", "龥", "龦", "゠", "ヿ", "\u{3040}",
        ]).prop_map(str::to_owned),
        2 => "[a-zA-Z]{1,6}",
        1 => "[ \n\r\t]{1,5}",
        1 => "[!-/:-@\\[-`{-~]{1,4}",
        1 => any::<char>().prop_map(|c| c.to_string()),
        1 => "\\PC{1,4}",
    ];
    vec(piece, 0..14).prop_map(|pieces| pieces.concat().chars().filter(|c| is_known(*c)).collect())
}

#[test]
fn every_assigned_character_is_classed_as_the_expressions_class_it() {
    let classes = [
        (r"\p{L}+", LETTER),
        (r"\p{N}+", NUMBER),
        (r"\s+", SPACE),
        (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+", UPPER),
        (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+", LOWER),
        (r"\p{M}+", MARK),
        (r"[\p{P}\p{S}]+", PUNCTUATION),
    ];
    // Finds all characters of a class at once, in one text that contains every character.
    let all: String = (0..=0x0010_ffff).filter_map(char::from_u32).filter(|c| is_known(*c)).collect();
    for (expression, mask) in classes {
        let matcher = Regex::new(expression).unwrap();
        let ours = all.chars().filter(|c| class_of(*c) & mask != 0);
        let theirs: String = matcher.find_iter(&all).map(|found| found.unwrap().as_str()).collect();
        let difference = ours.zip(theirs.chars()).find(|(ours, theirs)| ours != theirs);
        assert_eq!(difference, None, "{expression}");
        assert_eq!(all.chars().filter(|c| class_of(*c) & mask != 0).count(), theirs.chars().count(), "{expression}");
    }
}

#[test]
fn cl100k_splits_as_its_expression() {
    let expression = Regex::new(CL100K).unwrap();
    check(2_500, text(), |text| {
        prop_assert_eq!(split(&text, |splitter, at| splitter.cl100k(at)), isolate(&expression, &text));
        Ok(())
    });
}

#[test]
fn o200k_splits_as_its_expression() {
    let expression = Regex::new(O200K).unwrap();
    check(2_500, text(), |text| {
        prop_assert_eq!(split(&text, |splitter, at| splitter.o200k(at)), isolate(&expression, &text));
        Ok(())
    });
}

#[test]
fn gpt2_splits_as_its_expression() {
    let expression = Regex::new(GPT2).unwrap();
    check(2_500, text(), |text| {
        prop_assert_eq!(split(&text, |splitter, at| splitter.gpt2(at)), isolate(&expression, &text));
        Ok(())
    });
}

#[test]
fn deepseek_splits_as_its_three_expressions_one_inside_the_other() {
    let expressions = DEEPSEEK.map(|expression| Regex::new(expression).unwrap());
    check(2_500, text(), |text| {
        let mut expected = vec![text.as_str()];
        for expression in &expressions {
            expected = expected.iter().flat_map(|piece| isolate(expression, piece)).collect();
        }
        let mut pieces = Vec::new();
        Splitter::new(&text).deepseek(&mut |piece| pieces.push(piece.to_owned()));
        prop_assert_eq!(pieces, expected);
        Ok(())
    });
}
