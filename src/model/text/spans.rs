//! This file is where the caller's ranges become features.

use std::cmp::Reverse;

use super::encoded::Encoded;
use super::features::{Feature, FeatureError};

/// A range of one text, in code points, the end excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which text: 0, or 1 for the second of a pair.
    pub segment: u8,
    /// Where it starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// One feature a span, in the caller's order, each with the caller's own start and end.
///
/// A token belongs to the span that holds most of its code points, to the earlier one in the text if two hold as
/// many; so a token that is only partly inside a span is still in it. A token of no length goes with the token
/// after it.
/// Tokens outside all spans belong to no feature.
pub(super) fn features(input: &Encoded, spans: &[Span]) -> Result<Vec<Feature>, FeatureError> {
    if spans.is_empty() {
        return Err(FeatureError::NoSpans);
    }
    let in_order = check(input, spans)?;
    let bare =
        |span: &Span| Feature { tokens: Vec::new(), segment: span.segment, start: span.start, end: span.end };
    let mut features: Vec<Feature> = spans.iter().map(bare).collect();
    let mut after = None;
    for index in input.content().collect::<Vec<_>>().into_iter().rev() {
        let token = &input.tokens[index];
        let segment = token.segment.unwrap_or_default();
        let owner = if token.start == token.end {
            after.filter(|&(_, of)| of == segment).map(|(owner, _)| owner)
        } else {
            owner(spans, &in_order, Span { segment, start: token.start, end: token.end })
        };
        after = owner.map(|owner| (owner, segment));
        if let Some(owner) = owner {
            features[owner].tokens.push(index);
        }
    }
    features.iter_mut().for_each(|it| it.tokens.reverse());
    match features.iter().position(|it| it.tokens.is_empty()) {
        Some(index) => Err(FeatureError::SpanWithoutToken { index }),
        None => Ok(features),
    }
}

/// Refuses what is outside, empty or overlapping. Returns the spans' indices in the order of the texts.
fn check(input: &Encoded, spans: &[Span]) -> Result<Vec<usize>, FeatureError> {
    for (index, &Span { segment, start, end }) in spans.iter().enumerate() {
        let segments = input.texts.len();
        let missing = FeatureError::NoSuchSegment { index, segment, segments };
        let length = input.texts.get(usize::from(segment)).ok_or(missing)?.len();
        if start >= end {
            return Err(FeatureError::EmptySpan { index });
        }
        if end > length {
            return Err(FeatureError::SpanOutside { index, end, length });
        }
    }
    let mut in_order: Vec<usize> = (0..spans.len()).collect();
    in_order.sort_by_key(|&it| (spans[it].segment, spans[it].start));
    for pair in in_order.windows(2) {
        let (left, right) = (&spans[pair[0]], &spans[pair[1]]);
        if left.segment == right.segment && left.end > right.start {
            let (index, other) = (pair[0].max(pair[1]), pair[0].min(pair[1]));
            return Err(FeatureError::SpansOverlap { index, other });
        }
    }
    Ok(in_order)
}

/// The index of the span that shares most code points with `place`.
fn owner(spans: &[Span], in_order: &[usize], place: Span) -> Option<usize> {
    let before = |&it: &usize| (spans[it].segment, spans[it].end) <= (place.segment, place.start);
    let first = in_order.partition_point(before);
    let touching = in_order[first..]
        .iter()
        .copied()
        .take_while(|&it| spans[it].segment == place.segment && spans[it].start < place.end);
    let shared = |it: usize| spans[it].end.min(place.end) - spans[it].start.max(place.start);
    touching.min_by_key(|&it| Reverse(shared(it)))
}
