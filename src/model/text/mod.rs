//! Texts: tokens with offsets, and the features that are made of them.

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::{Manifest, Model};
use crate::{
    explain::{ExplainError, Limits, Misfit},
    runtime::Row,
};

/// Reads texts into tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// Why a text or a tokenizer cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(String);

/// One token of an input.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its segment id, as the model reads it.
    pub type_id: u32,
    /// Which text it comes from; `None` for special tokens.
    pub segment: Option<u8>,
    /// Whether the tokenizer added it.
    pub special: bool,
    /// First code point in its text.
    pub start: usize,
    /// One past its last code point.
    pub end: usize,
}

/// What was cut off.
#[derive(Debug, Clone, Serialize)]
pub struct Truncated {
    /// Tokens that were dropped.
    pub tokens: usize,
}

/// One input as the model reads it.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The text and, for a pair, the second text.
    pub texts: Vec<String>,
    /// In the model's order, special tokens included.
    pub tokens: Vec<Token>,
    /// What was cut off, if anything.
    pub truncated: Option<Truncated>,
}

/// One unit that gets a score.
#[derive(Debug, Clone)]
pub struct Feature {
    /// Its tokens' places in [`Encoded::tokens`].
    pub tokens: Vec<usize>,
    /// Which text it is in.
    pub segment: u8,
    /// First code point.
    pub start: usize,
    /// One past the last code point.
    pub end: usize,
}

/// A range of code points in one text.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Which text.
    pub segment: u8,
    /// First code point.
    pub start: usize,
    /// One past the last code point.
    pub end: usize,
}

/// What one feature stands for.
#[derive(Debug, Clone)]
pub enum Granularity {
    /// One token.
    Token,
    /// One word.
    Word,
    /// One sentence.
    Sentence,
    /// The caller's ranges.
    Spans(Vec<Span>),
}

impl Tokenizer {
    /// Opens a folder's `tokenizer.json`.
    ///
    /// # Errors
    /// The file is not a tokenizer.
    pub fn open(manifest: &Manifest) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_file(&manifest.tokenizer)
            .map_err(|error| TokenizerError(error.to_string()))?;
        Ok(Self { inner })
    }

    /// The ids of the shortest input.
    pub fn shortest_ids(&self) -> Vec<u32> {
        self.inner.encode("a", true).map(|it| it.get_ids().to_vec()).unwrap_or_default()
    }

    /// The ids of a piece of text without special tokens.
    ///
    /// # Errors
    /// The tokenizer's words.
    pub fn piece_ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoded = self.inner.encode(text, false).map_err(|error| TokenizerError(error.to_string()))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// A token's text.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

impl Encoded {
    /// A slice of one of the texts, in code points.
    pub fn slice(&self, segment: u8, start: usize, end: usize) -> &str {
        let text = &self.texts[usize::from(segment)];
        let at = |point: usize| text.char_indices().nth(point).map_or(text.len(), |(byte, _)| byte);
        &text[at(start)..at(end)]
    }

    /// The row that the model reads.
    pub fn row(&self) -> Row {
        let ids: Vec<u32> = self.tokens.iter().map(|it| it.id).collect();
        Row::of(ids, Some(self.tokens.iter().map(|it| it.type_id).collect()))
    }
}

impl Model {
    /// Reads one input.
    ///
    /// # Errors
    /// Misfits that point to `pointer`.
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        _truncate: bool,
        _limits: &Limits,
        pointer: &str,
    ) -> Result<Encoded, ExplainError> {
        let refuse = |detail: &str| ExplainError::from(Misfit::new(pointer, detail));
        if text.trim().is_empty() {
            return Err(refuse("is empty"));
        }
        let encoded = match pair {
            None => self.tokenizer.inner.encode_char_offsets(text, true),
            Some(pair) => self.tokenizer.inner.encode_char_offsets((text, pair), true),
        }
        .map_err(|error| refuse(&error.to_string()))?;
        let tokens: Vec<Token> = (0..encoded.len())
            .map(|at| {
                let (start, end) = encoded.get_offsets()[at];
                let special = encoded.get_special_tokens_mask()[at] == 1;
                Token {
                    id: encoded.get_ids()[at],
                    type_id: encoded.get_type_ids()[at],
                    segment: if special { None } else { encoded.get_sequence_ids()[at].map(|it| it as u8) },
                    special,
                    start,
                    end,
                }
            })
            .collect();
        if self.max_length.is_some_and(|most| tokens.len() > most) {
            return Err(refuse("is longer than the model reads"));
        }
        let texts = std::iter::once(text).chain(pair).map(str::to_owned).collect();
        Ok(Encoded { texts, tokens, truncated: None })
    }
}

/// The features of an input.
///
/// # Errors
/// Spans that do not fit the text.
pub fn features(encoded: &Encoded, granularity: &Granularity) -> Result<Vec<Feature>, TokenizerError> {
    let spans: Vec<Span> = match granularity {
        Granularity::Token => encoded
            .tokens
            .iter()
            .filter_map(|it| it.segment.map(|segment| Span { segment, start: it.start, end: it.end }))
            .collect(),
        Granularity::Word => bounds(encoded, |text| text.split_word_bound_indices().collect()),
        Granularity::Sentence => bounds(encoded, |text| text.split_sentence_bound_indices().collect()),
        Granularity::Spans(spans) => spans.clone(),
    };
    let inside = |span: &Span, it: &Token| {
        it.segment == Some(span.segment) && it.start >= span.start && it.end <= span.end
    };
    let feature = |span: Span| {
        let tokens: Vec<usize> =
            (0..encoded.tokens.len()).filter(|&at| inside(&span, &encoded.tokens[at])).collect();
        let Span { segment, start, end } = span;
        (!tokens.is_empty()).then_some(Feature { tokens, segment, start, end })
    };
    Ok(spans.into_iter().filter_map(feature).collect())
}

/// Windows of `window` words, `stride` apart.
///
/// # Errors
/// A window of no word.
pub fn windows(encoded: &Encoded, window: usize, stride: usize) -> Result<Vec<Feature>, TokenizerError> {
    if window == 0 || stride == 0 {
        return Err(TokenizerError("a window and its stride hold at least one word".to_owned()));
    }
    let words = features(encoded, &Granularity::Word)?;
    Ok((0..words.len())
        .step_by(stride)
        .map(|from| {
            let group = &words[from..(from + window).min(words.len())];
            Feature {
                tokens: group.iter().flat_map(|it| it.tokens.clone()).collect(),
                segment: group[0].segment,
                start: group[0].start,
                end: group[group.len() - 1].end,
            }
        })
        .collect())
}

fn bounds(encoded: &Encoded, split: impl Fn(&str) -> Vec<(usize, &str)>) -> Vec<Span> {
    let of = |(segment, text): (usize, &String)| {
        let points = |byte: usize| text[..byte].chars().count();
        split(text)
            .into_iter()
            .map(|(byte, part)| {
                let body = part.trim();
                let start = byte + (part.len() - part.trim_start().len());
                Span { segment: segment as u8, start: points(start), end: points(start + body.len()) }
            })
            .collect::<Vec<_>>()
    };
    encoded.texts.iter().enumerate().flat_map(of).collect()
}
