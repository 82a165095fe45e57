//! This file is where an encoded input is described: its texts, its tokens, and what was cut off.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::runtime::Row;

/// A text that can be cut at code points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    string: String,
    /// Where each code point starts, in bytes; and the end.
    starts: Vec<usize>,
}

/// One token of an [`Encoded`] input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Row of the word embedding.
    pub id: u32,
    /// Row of the segment embedding, for models that have one.
    pub type_id: u32,
    /// Which text it comes from (0, or 1 for the second of a pair); `None` for what the tokenizer added.
    pub segment: Option<u8>,
    /// Added by the tokenizer (`[CLS]`, `</s>`, ...). A literal `[SEP]` in the text becomes the same id, as
    /// everywhere in this model family, but it is text: it has a place and is not special.
    pub special: bool,
    /// Start of its slice of the segment's text, in code points; 0 for a special token.
    pub start: usize,
    /// End of that slice. White space around a token is not part of it, unless the token is nothing else. Tokens
    /// that share a character (byte-level vocabularies split it) share its place. A token that the tokenizer made
    /// up from nothing, such as a word-begin mark on its own, has an empty slice.
    pub end: usize,
}

/// An input as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The text, and the second one of a pair.
    pub texts: Vec<Text>,
    /// All tokens in the model's order, special ones included. Never padding.
    pub tokens: Vec<Token>,
    /// What was cut off; `None` if the input fits.
    pub truncated: Option<Truncation>,
}

/// What a truncation took away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Truncation {
    /// How many tokens the input had, special ones included.
    pub tokens: usize,
    /// How many were allowed.
    pub limit: usize,
    /// The loss of every text that lost something.
    pub dropped: Vec<Dropped>,
}

/// The part of one text that was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Which text.
    pub segment: u8,
    /// How many of its tokens.
    pub tokens: usize,
    /// Start of the first of these tokens, in code points.
    pub start: usize,
    /// End of the last of them.
    pub end: usize,
}

impl Text {
    /// Takes a string over and finds its code points.
    pub fn new(string: String) -> Self {
        let ends = std::iter::once(string.len());
        let starts = string.char_indices().map(|(start, _)| start).chain(ends).collect();
        Self { string, starts }
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.string
    }

    /// Its length in code points.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether it has no code point.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The code points from `start` to `end` (excluded). Places outside are moved to the nearest inside.
    pub fn slice(&self, start: usize, end: usize) -> &str {
        let end = end.min(self.len());
        &self.string[self.starts[start.min(end)]..self.starts[end]]
    }

    /// The code point that a byte belongs to; the length for the byte after the last.
    pub(super) fn point(&self, byte: usize) -> usize {
        self.starts.partition_point(|&it| it <= byte).saturating_sub(1)
    }

    /// The code points that a range of bytes touches.
    pub(super) fn points(&self, bytes: Range<usize>) -> Range<usize> {
        let end = self.starts.partition_point(|&it| it < bytes.end).min(self.len());
        self.point(bytes.start).min(end)..end
    }
}

impl Encoded {
    /// A slice of one of the texts, in code points; empty if there is no such text.
    pub fn slice(&self, segment: u8, start: usize, end: usize) -> &str {
        self.texts.get(usize::from(segment)).map_or("", |it| it.slice(start, end))
    }

    /// What the token stands for in its text; empty for a special token.
    pub fn token_slice(&self, token: &Token) -> &str {
        token.segment.map_or("", |segment| self.slice(segment, token.start, token.end))
    }

    /// The row that the model reads.
    pub fn row(&self) -> Row {
        let types: Arc<[u32]> = self.type_ids().into();
        Row::of(self.ids(), Some(types))
    }

    /// Indices of the tokens that come from a text.
    pub fn content(&self) -> impl Iterator<Item = usize> {
        (0..self.tokens.len()).filter(|&it| !self.tokens[it].special)
    }

    /// Indices of the tokens that the tokenizer added. They belong to no feature.
    pub fn special(&self) -> impl Iterator<Item = usize> {
        (0..self.tokens.len()).filter(|&it| self.tokens[it].special)
    }

    /// The row of ids.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|it| it.id).collect()
    }

    /// The row of segment ids.
    pub fn type_ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|it| it.type_id).collect()
    }

    /// Whether the token shows nothing of its text but white space.
    pub(super) fn is_blank(&self, token: &Token) -> bool {
        self.token_slice(token).chars().all(char::is_whitespace)
    }
}
