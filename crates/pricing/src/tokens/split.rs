//! Splits text into the pieces that are encoded separately.
//!
//! The regular expressions of the encodings are written out by hand here, which is several times as fast as a regular
//! expression engine. Each function returns the end of the piece that starts at `start`.

use std::sync::LazyLock;

use unicode_general_category::{GeneralCategory as Category, get_general_category};

const LETTER: u8 = 1;
const NUMBER: u8 = 1 << 1;
const SPACE: u8 = 1 << 2;
/// Upper and title case, letters without case, and marks.
const UPPER: u8 = 1 << 3;
/// Lower case, letters without case, and marks.
const LOWER: u8 = 1 << 4;
const MARK: u8 = 1 << 5;
const PUNCTUATION: u8 = 1 << 6;
const WORD: u8 = LETTER | NUMBER | SPACE;

/// The classes of all characters, in pages of 256. Equal pages are stored once.
struct Classes {
    pages: Vec<[u8; 256]>,
    page_of: Vec<u16>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut classes = Classes { pages: Vec::new(), page_of: Vec::with_capacity(0x1100) };
    for page in 0..0x1100u32 {
        let mut content = [0; 256];
        for (code, class) in (page * 256..).zip(&mut content) {
            *class = char::from_u32(code).map_or(0, class_of);
        }
        let known = classes.pages.iter().position(|known| *known == content);
        let index = known.unwrap_or_else(|| {
            classes.pages.push(content);
            classes.pages.len() - 1
        });
        classes.page_of.push(u16::try_from(index).unwrap_or(0));
    }
    classes
});

fn class_of(c: char) -> u8 {
    let space = if c.is_whitespace() { SPACE } else { 0 };
    space
        | match get_general_category(c) {
            Category::UppercaseLetter | Category::TitlecaseLetter => LETTER | UPPER,
            Category::LowercaseLetter => LETTER | LOWER,
            Category::ModifierLetter | Category::OtherLetter => LETTER | UPPER | LOWER,
            Category::NonspacingMark | Category::SpacingMark | Category::EnclosingMark => MARK | UPPER | LOWER,
            Category::DecimalNumber | Category::LetterNumber | Category::OtherNumber => NUMBER,
            Category::ConnectorPunctuation
            | Category::DashPunctuation
            | Category::OpenPunctuation
            | Category::ClosePunctuation
            | Category::InitialPunctuation
            | Category::FinalPunctuation
            | Category::OtherPunctuation
            | Category::MathSymbol
            | Category::CurrencySymbol
            | Category::ModifierSymbol
            | Category::OtherSymbol => PUNCTUATION,
            _ => 0,
        }
}

/// A text, with access to the classes of its characters.
#[derive(Clone, Copy)]
pub(crate) struct Splitter<'a> {
    text: &'a str,
    classes: &'static Classes,
}

/// A character of the text, its class, and the position at which it ends.
#[derive(Clone, Copy)]
struct At {
    c: char,
    class: u8,
    end: usize,
}

impl At {
    fn is(self, mask: u8) -> bool {
        self.class & mask != 0
    }

    fn is_newline(self) -> bool {
        matches!(self.c, '\r' | '\n')
    }
}

impl<'a> Splitter<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, classes: &CLASSES }
    }

    #[inline]
    fn at(&self, position: usize) -> Option<At> {
        let byte = *self.text.as_bytes().get(position)?;
        let c = if byte < 0x80 { char::from(byte) } else { self.text.get(position..)?.chars().next()? };
        Some(At { c, class: self.class(c), end: position + c.len_utf8() })
    }

    #[inline]
    fn class(&self, c: char) -> u8 {
        let code = c as usize;
        let page = self.classes.page_of.get(code >> 8).copied().unwrap_or(0);
        let page = self.classes.pages.get(usize::from(page));
        page.and_then(|page| page.get(code & 0xff)).copied().unwrap_or(0)
    }

    /// The end of the run of characters that have one of these classes.
    #[inline]
    fn run(&self, mut position: usize, mask: u8) -> usize {
        while let Some(at) = self.at(position)
            && at.is(mask)
        {
            position = at.end;
        }
        position
    }

    /// The end of the run of characters that have none of these classes.
    fn run_without(&self, mut position: usize, mask: u8) -> usize {
        while let Some(at) = self.at(position)
            && !at.is(mask)
        {
            position = at.end;
        }
        position
    }

    fn run_of(&self, mut position: usize, bytes: &[u8]) -> usize {
        let text = self.text.as_bytes();
        while text.get(position).is_some_and(|byte| bytes.contains(byte)) {
            position += 1;
        }
        position
    }

    fn numbers(&self, start: usize) -> usize {
        let mut position = start;
        for _ in 0..3 {
            match self.at(position) {
                Some(at) if at.is(NUMBER) => position = at.end,
                _ => break,
            }
        }
        position
    }

    /// The end of a contraction in any letter case: `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`.
    fn contraction(&self, start: usize) -> Option<usize> {
        let mut letters = self.text.get(start..)?.strip_prefix('\'')?.chars();
        let first = letters.next()?;
        match first.to_ascii_lowercase() {
            's' | 'd' | 'm' | 't' => Some(start + 2),
            // The long s matches an s if letter case is ignored.
            'ſ' => Some(start + 1 + 'ſ'.len_utf8()),
            'l' if letters.next()?.eq_ignore_ascii_case(&'l') => Some(start + 3),
            'v' | 'r' if letters.next()?.eq_ignore_ascii_case(&'e') => Some(start + 3),
            _ => None,
        }
    }

    /// The end of a piece of white space. `newlines` determines the split if the white space contains a newline.
    /// Otherwise the piece is all of the white space at the end of the text, and all but the last character elsewhere:
    /// that character belongs to the word that follows.
    fn white_space(&self, start: usize, newlines: Newlines) -> usize {
        let mut end = start;
        let mut last = start;
        let mut after_newline = None;
        while let Some(at) = self.at(end)
            && at.is(SPACE)
        {
            last = end;
            end = at.end;
            if at.is_newline() {
                after_newline = Some(end);
            }
        }
        let is_at_end = end == self.text.len();
        match (newlines, after_newline) {
            (Newlines::First, Some(after)) => after,
            (Newlines::AfterEnd, Some(after)) if !is_at_end => after,
            _ if is_at_end || last == start => end,
            _ => last,
        }
    }

    /// Splits as `cl100k_base` does.
    pub(crate) fn cl100k(&self, start: usize) -> Option<usize> {
        let first = self.at(start)?;
        if first.c == '\''
            && let Some(end) = self.contraction(start)
        {
            return Some(end);
        }
        if first.is(LETTER) {
            return Some(self.run(first.end, LETTER));
        }
        if first.is(NUMBER) {
            return Some(self.numbers(start));
        }
        let next = self.at(first.end);
        if !first.is_newline() && next.is_some_and(|next| next.is(LETTER)) {
            return Some(self.run(first.end, LETTER));
        }
        if !first.is(SPACE) || (first.c == ' ' && next.is_some_and(|next| !next.is(WORD))) {
            let end = self.run_without(first.end, WORD);
            return Some(self.run_of(end, b"\r\n"));
        }
        Some(self.white_space(start, Newlines::AfterEnd))
    }

    /// Splits as `o200k_base` does.
    pub(crate) fn o200k(&self, start: usize) -> Option<usize> {
        let first = self.at(start)?;
        if let Some(end) = self.cased_word(start, first) {
            return Some(self.contraction(end).unwrap_or(end));
        }
        if first.is(NUMBER) {
            return Some(self.numbers(start));
        }
        let next = self.at(first.end);
        if !first.is(SPACE) || (first.c == ' ' && next.is_some_and(|next| !next.is(WORD))) {
            let end = self.run_without(first.end, WORD);
            return Some(self.run_of(end, b"\r\n/"));
        }
        Some(self.white_space(start, Newlines::First))
    }

    /// A word of capitals followed by small letters, optionally preceded by one character that is neither. Words that
    /// end in small letters are tried first, so that letters without case are kept apart from a capital that follows
    /// them.
    fn cased_word(&self, start: usize, first: At) -> Option<usize> {
        let after_prefix = (!first.is(LETTER | NUMBER) && !first.is_newline()).then_some(first.end);
        let starts = [after_prefix, Some(start)];
        let ending_small = |start| self.word_ending_small(start);
        let capitals = |start| Some(self.run(start, UPPER)).filter(|end| *end > start);
        starts.into_iter().flatten().find_map(ending_small).or_else(|| starts.into_iter().flatten().find_map(capitals))
    }

    fn word_ending_small(&self, start: usize) -> Option<usize> {
        let mut position = start;
        let mut after_caseless = None;
        while let Some(at) = self.at(position)
            && at.is(UPPER)
        {
            position = at.end;
            if at.is(LOWER) {
                after_caseless = Some(position);
            }
        }
        let end = self.run(position, LOWER);
        if end > position {
            return Some(end);
        }
        after_caseless
    }

    /// Splits by GPT-2's expression, which Anthropic's tokenizer uses.
    pub(crate) fn gpt2(&self, start: usize) -> Option<usize> {
        let first = self.at(start)?;
        let rest = self.text.get(start..)?;
        for contraction in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"] {
            if first.c == '\'' && rest.starts_with(contraction) {
                return Some(start + contraction.len());
            }
        }
        let next = match first.c {
            ' ' => self.at(first.end).filter(|next| !next.is(SPACE)),
            _ => Some(first).filter(|first| !first.is(SPACE)),
        };
        Some(match next {
            Some(word) if word.is(LETTER) => self.run(word.end, LETTER),
            Some(word) if word.is(NUMBER) => self.run(word.end, NUMBER),
            Some(word) => self.run_without(word.end, WORD),
            None => self.white_space(start, Newlines::Plain),
        })
    }

    /// Splits by `DeepSeek`'s three nested expressions: numbers, then Chinese and Japanese, then words. Calls `found`
    /// with each piece.
    pub(crate) fn deepseek(&self, found: &mut dyn FnMut(&str)) {
        let mut position = 0;
        while position < self.text.len() {
            let number = self.numbers(position);
            let end = if number > position { number } else { self.run_without(position, NUMBER) };
            if let Some(part) = self.text.get(position..end) {
                split_han(part, found);
            }
            position = end.max(position + 1);
        }
    }

    fn deepseek_word(&self, start: usize) -> Option<usize> {
        let first = self.at(start)?;
        if first.c.is_ascii_punctuation() {
            let is_letter = |byte: &u8| byte.is_ascii_alphabetic();
            let text = self.text.as_bytes().get(first.end..).unwrap_or_default();
            let letters = text.iter().take_while(|byte| is_letter(byte)).count();
            if letters > 0 {
                return Some(first.end + letters);
            }
        }
        if first.is(LETTER | MARK) {
            return Some(self.run(first.end, LETTER | MARK));
        }
        let next = self.at(first.end);
        let is_prefix = !first.is_newline() && !first.is(PUNCTUATION);
        if is_prefix && next.is_some_and(|next| next.is(LETTER | MARK)) {
            return Some(self.run(first.end, LETTER | MARK));
        }
        if first.is(PUNCTUATION) || (first.c == ' ' && next.is_some_and(|n| n.is(PUNCTUATION))) {
            let end = self.run(first.end, PUNCTUATION);
            return Some(self.run_of(end, b"\r\n"));
        }
        first.is(SPACE).then(|| self.white_space(start, Newlines::First))
    }
}

/// Where white space that contains a newline is split.
#[derive(Clone, Copy)]
enum Newlines {
    /// After the last newline.
    First,
    /// After the last newline, unless the text ends with the white space.
    AfterEnd,
    /// Like other white space.
    Plain,
}

fn is_han_or_kana(c: char) -> bool {
    matches!(c, '一'..='龥' | '\u{3040}'..='ゟ' | '゠'..='ヿ')
}

fn split_han(text: &str, found: &mut dyn FnMut(&str)) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let kind = is_han_or_kana(first);
        let end = rest.find(|c| is_han_or_kana(c) != kind).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        split_words(part, found);
        rest = after;
    }
}

fn split_words(text: &str, found: &mut dyn FnMut(&str)) {
    let splitter = Splitter::new(text);
    let mut unmatched = 0;
    let mut position = 0;
    let mut emit = |start: usize, end: usize| {
        if let Some(piece) = text.get(start..end).filter(|piece| !piece.is_empty()) {
            found(piece);
        }
    };
    while let Some(at) = splitter.at(position) {
        match splitter.deepseek_word(position) {
            Some(end) => {
                emit(unmatched, position);
                emit(position, end);
                unmatched = end;
                position = end;
            }
            None => position = at.end,
        }
    }
    emit(unmatched, text.len());
}

#[cfg(test)]
mod fuzz;
