//! This file is where tokens are gathered into features: the units that get a score.

use std::ops::Range;

use super::boundaries;
use super::encoded::{Encoded, Text};
use super::spans::{self, Span};

/// What a feature is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granularity {
    /// Each token.
    Token,
    /// Each word and each punctuation mark, as Unicode's word boundaries (UAX #29) divide the text. A token that
    /// reaches over a boundary joins what it touches.
    Word,
    /// Each sentence, as Unicode's sentence boundaries divide the text; a line break ends one.
    Sentence,
    /// The caller's ranges, in the caller's order.
    Spans(Vec<Span>),
}

/// Tokens that are scored as one, and the slice of the text that stands for them.
///
/// With the granularities `Token`, `Word` and `Sentence`, every token that comes from a text is in exactly one
/// feature. Special tokens are never in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Indices into [`Encoded::tokens`], rising; never empty.
    pub tokens: Vec<usize>,
    /// Which text.
    pub segment: u8,
    /// Start of the slice, in code points of that text.
    pub start: usize,
    /// End of the slice. Words and sentences begin and end with whole characters and not with white space.
    pub end: usize,
}

/// A granularity that does not fit the input. `index` is that of the span at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// The list of spans is empty.
    #[error("no span is given")]
    NoSpans,
    /// The span names a text that the input does not have.
    #[error("span {index} lies in text {segment}, and the input has {segments}")]
    NoSuchSegment {
        /// Which span.
        index: usize,
        /// Which text it names.
        segment: u8,
        /// How many texts there are.
        segments: usize,
    },
    /// The span's end is not after its start.
    #[error("span {index} is empty")]
    EmptySpan {
        /// Which span.
        index: usize,
    },
    /// The span ends after the text.
    #[error("span {index} ends at {end}, and the text has {length} characters")]
    SpanOutside {
        /// Which span.
        index: usize,
        /// Where it ends.
        end: usize,
        /// How long the text is.
        length: usize,
    },
    /// Two spans share a character.
    #[error("span {index} overlaps span {other}")]
    SpansOverlap {
        /// The later span of the list.
        index: usize,
        /// The earlier one.
        other: usize,
    },
    /// No token is left for the span: it holds white space only, lies in a part that was cut off, or its tokens lie
    /// for the greater part in other spans.
    #[error("no token belongs to span {index}")]
    SpanWithoutToken {
        /// Which span.
        index: usize,
    },
    /// A window of 0 words, or a stride that is 0 or leaves words out.
    #[error(
        "a window of {window} words every {stride} words: both must be at least 1, and the stride at most the window"
    )]
    Windows {
        /// The window's length.
        window: usize,
        /// The stride.
        stride: usize,
    },
}

impl FeatureError {
    /// The span at fault.
    pub fn index(&self) -> Option<usize> {
        match *self {
            Self::NoSuchSegment { index, .. }
            | Self::EmptySpan { index }
            | Self::SpanOutside { index, .. }
            | Self::SpansOverlap { index, .. }
            | Self::SpanWithoutToken { index } => Some(index),
            Self::NoSpans | Self::Windows { .. } => None,
        }
    }
}

/// The features of an input, in the order of the text (of the caller's list, for spans).
///
/// # Errors
/// Spans that do not fit the text.
pub fn features(input: &Encoded, granularity: &Granularity) -> Result<Vec<Feature>, FeatureError> {
    match granularity {
        Granularity::Token => Ok(input.content().map(|it| alone(input, it)).collect()),
        Granularity::Word => Ok(divided(input, boundaries::words)),
        Granularity::Sentence => Ok(divided(input, boundaries::sentences)),
        Granularity::Spans(spans) => spans::features(input, spans),
    }
}

fn alone(input: &Encoded, index: usize) -> Feature {
    let token = &input.tokens[index];
    let segment = token.segment.unwrap_or_default();
    Feature { tokens: vec![index], segment, start: token.start, end: token.end }
}

/// Gathers the tokens between two of the given boundaries. Where a token reaches over a boundary, it falls.
fn divided(input: &Encoded, boundaries: fn(&Text) -> Vec<usize>) -> Vec<Feature> {
    let mut features = Vec::new();
    for (segment, text) in input.texts.iter().enumerate() {
        let segment = segment as u8;
        let tokens: Vec<usize> =
            input.content().filter(|&it| input.tokens[it].segment == Some(segment)).collect();
        let (visible, blank): (Vec<usize>, Vec<usize>) =
            tokens.iter().copied().partition(|&it| !input.is_blank(&input.tokens[it]));
        let place = |index: usize| input.tokens[index].start..input.tokens[index].end;
        let bounds = between(boundaries(text), visible.iter().map(|&it| place(it)));
        let mut found: Vec<Option<Feature>> = vec![None; bounds.len()];
        for &index in &visible {
            let Range { start, end } = place(index);
            let cell = bounds.partition_point(|&it| it <= start);
            let feature = found[cell].get_or_insert(Feature { tokens: Vec::new(), segment, start, end });
            feature.tokens.push(index);
            feature.start = feature.start.min(start);
            feature.end = feature.end.max(end);
        }
        let mut found: Vec<Feature> = found.into_iter().flatten().collect();
        widen(&mut found, &boundaries::characters(text));
        adopt(&mut found, &blank, |index| alone(input, index));
        features.append(&mut found);
    }
    features
}

/// The boundaries that lie in no token.
fn between(bounds: Vec<usize>, places: impl Iterator<Item = Range<usize>>) -> Vec<usize> {
    let mut crossed = vec![false; bounds.len()];
    for place in places {
        let first = bounds.partition_point(|&it| it <= place.start);
        let inside = bounds[first..].iter().take_while(|&&it| it < place.end).count();
        crossed[first..first + inside].fill(true);
    }
    bounds.into_iter().zip(crossed).filter(|&(_, crossed)| !crossed).map(|(bound, _)| bound).collect()
}

/// Moves the ends of features outwards to whole characters: normalisers drop accents, and the tokens' places
/// then end before them.
fn widen(features: &mut [Feature], characters: &[usize]) {
    for feature in features {
        let start = characters.partition_point(|&it| it <= feature.start).saturating_sub(1);
        let end = characters.partition_point(|&it| it < feature.end);
        feature.start = characters.get(start).copied().unwrap_or(feature.start);
        feature.end = characters.get(end).copied().unwrap_or(feature.end);
    }
}

/// Gives tokens of white space to the feature after them, as if the space were part of its first token, which is
/// what most vocabularies do; or to the last feature, at the end. They do not change a feature's slice.
fn adopt(features: &mut Vec<Feature>, blank: &[usize], alone: impl Fn(usize) -> Feature) {
    let mut owners: Vec<(usize, usize)> = Vec::new();
    for (owner, feature) in features.iter().enumerate() {
        owners.extend(feature.tokens.iter().map(|&token| (token, owner)));
    }
    owners.sort_unstable();
    for &token in blank {
        let next = owners.partition_point(|&(it, _)| it < token);
        match owners.get(next).or(owners.last()) {
            Some(&(_, owner)) => features[owner].tokens.push(token),
            // Nothing but white space is left of the text, after a truncation from the left.
            None if features.is_empty() => features.push(alone(token)),
            None => features[0].tokens.push(token),
        }
    }
    features.iter_mut().for_each(|it| it.tokens.sort_unstable());
}

/// Runs of `window` words of one text, each starting `stride` words after the one before; the last may be
/// shorter. With `stride < window` they overlap, and a token is in several of them.
///
/// # Errors
/// Either number is 0, or the stride would leave words out.
pub fn windows(input: &Encoded, window: usize, stride: usize) -> Result<Vec<Feature>, FeatureError> {
    if window == 0 || stride == 0 || stride > window {
        return Err(FeatureError::Windows { window, stride });
    }
    let words = features(input, &Granularity::Word)?;
    let mut windows = Vec::new();
    for words in words.chunk_by(|one, next| one.segment == next.segment) {
        let mut start = 0usize;
        loop {
            let end = words.len().min(start.saturating_add(window));
            windows.push(union(&words[start..end]));
            if end == words.len() {
                break;
            }
            start += stride;
        }
    }
    Ok(windows)
}

/// Features of one segment as one; there must be at least one.
fn union(features: &[Feature]) -> Feature {
    let mut tokens: Vec<usize> = features.iter().flat_map(|it| it.tokens.iter().copied()).collect();
    tokens.sort_unstable();
    let start = features.iter().map(|it| it.start).min().unwrap_or_default();
    let end = features.iter().map(|it| it.end).max().unwrap_or_default();
    Feature { tokens, segment: features[0].segment, start, end }
}
