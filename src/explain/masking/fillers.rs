//! Where words are found that could stand for a word of the input: its neighbours in embedding space, or what a
//! masked language model would write into the gap.
//!
//! A word of several tokens is one gap, and each of its fillers is one token that begins a word, so that a filled
//! text is made of whole words. A feature of several words has a gap for each; with a masked language model all
//! of them are open at once, and the fillings are drawn independently of one another.

use serde_json::{Value, json};

use super::{Fate, Removal, fill, row};
use crate::{
    explain::{Case, ExplainError, Misfit, Subject, estimators::random::Stream},
    model::{
        Model, ScoreError,
        text::{Feature, Granularity, features as divide},
    },
    runtime::Row,
};

/// Words that may stand for the words of each feature.
pub(super) struct Fillers {
    /// The words of each feature.
    pub slots: Vec<Vec<Slot>>,
    /// Fillings drawn for one set of absent features.
    pub draws: usize,
    seed: u64,
}

/// One word of a feature.
pub(super) struct Slot {
    /// Its tokens.
    pub tokens: Vec<usize>,
    /// What may stand for it, and how probable it is; the probabilities sum to 1.
    pub options: Vec<(u32, f64)>,
}

/// Marks the stream of fillings among a seed's.
const PURPOSE: u64 = 0x6669_6c6c;

/// Refuses an input that the companion cannot read.
pub(super) fn check(subject: &Subject<'_>) -> Result<(), ExplainError> {
    let companion = subject.model.fill_mask()?;
    let tokens = subject.encoded.tokens.len();
    match companion.max_length {
        Some(limit) if tokens > limit => {
            let detail = format!("has {tokens} tokens; the companion masked language model reads {limit}");
            Err(Misfit::over(subject.pointer, detail, "max_length", limit as u64).into())
        }
        _ => Ok(()),
    }
}

impl Fillers {
    /// The `k` words nearest to each word of each feature, all equally probable. A word of several tokens lies
    /// where the mean of their embeddings does.
    ///
    /// # Errors
    /// A vocabulary without a word that could stand for another.
    pub fn neighbors(
        subject: &Subject<'_>,
        features: &[Feature],
        removal: &Removal<'_>,
    ) -> Result<Self, ExplainError> {
        let words = subject.model.words()?;
        let ids: Vec<u32> = subject.encoded.ids();
        let options = |tokens: &[usize]| {
            let near = match tokens {
                [only] => words.neighbors(ids[*only]).to_vec(),
                several => {
                    let mut mean = vec![0.0f32; words.hidden];
                    for &token in several {
                        let share = 1.0 / several.len() as f32;
                        mean.iter_mut().zip(words.row(ids[token])).for_each(|(sum, it)| *sum += share * it);
                    }
                    words.nearest(&mean)
                }
            };
            let class = Class::of(subject.model, ids[tokens[0]]);
            let fitting = near.into_iter().filter(|&it| class.admits(subject.model, it));
            fitting.take(removal.k).map(|id| (id, 1.0)).collect()
        };
        Self::with(subject, words_of(subject, features)?, removal, options)
    }

    /// The `k` most probable fillers of each gap, with their probabilities among one another.
    ///
    /// # Errors
    /// What stops evaluations; a vocabulary without a word that could stand for another.
    pub fn mlm(case: &Case<'_>, features: &[Feature], removal: &Removal<'_>) -> Result<Self, ExplainError> {
        let subject = &case.subject;
        check(subject)?;
        let companion = subject.model.fill_mask()?;
        let slots = words_of(subject, features)?;
        let gapped: Vec<(Row, Vec<usize>)> =
            slots.iter().map(|it| gaps(subject, it, companion.mask)).collect();
        let ids = subject.encoded.ids();
        let mut found: Vec<Vec<Vec<(u32, f64)>>> = vec![Vec::new(); slots.len()];
        let rows = gapped.iter().map(|it| it.0.clone());
        let mut failed = None;
        case.lane.stream(&companion.program, rows, |place, out| {
            let logits = out.values.first().map_or(&[][..], Vec::as_slice);
            let fitting = slots[place]
                .iter()
                .zip(&gapped[place].1)
                .map(|(tokens, &at)| {
                    let row = logits.get(at * companion.columns..(at + 1) * companion.columns);
                    let class = Class::of(subject.model, ids[tokens[0]]);
                    let admits = |id: u32| class.admits(subject.model, id);
                    likeliest(row.unwrap_or_default(), removal.k, removal.floor, admits)
                })
                .collect();
            match fitting {
                Ok(fitting) => found[place] = fitting,
                Err(error) => failed = Some(error),
            }
        })?;
        failed.map_or(Ok(()), Err)?;
        let mut options = found.into_iter().flatten();
        Self::with(subject, slots, removal, |_| options.next().unwrap_or_default())
    }

    fn with(
        subject: &Subject<'_>,
        words: Vec<Vec<Vec<usize>>>,
        removal: &Removal<'_>,
        mut options: impl FnMut(&[usize]) -> Vec<(u32, f64)>,
    ) -> Result<Self, ExplainError> {
        let mut slot = |tokens: Vec<usize>| {
            let mut options = options(&tokens);
            let sum: f64 = options.iter().map(|it| it.1).sum();
            if options.is_empty() || !(sum.is_finite() && sum > 0.0) {
                let word = subject.encoded.token_slice(&subject.encoded.tokens[tokens[0]]);
                let detail = format!("the vocabulary has no word that could stand for `{word}`");
                return Err(ExplainError::from(Misfit::parameter("operation", detail)));
            }
            options.iter_mut().for_each(|it| it.1 /= sum);
            Ok(Slot { tokens, options })
        };
        let slots = words
            .into_iter()
            .map(|words| words.into_iter().map(&mut slot).collect())
            .collect::<Result<Vec<Vec<Slot>>, _>>()?;
        Ok(Self { slots, draws: removal.draws.max(1), seed: subject.seed })
    }

    /// One filling of all words of the absent features.
    pub fn drawn(&self, absent: &[usize], variant: usize) -> impl Iterator<Item = (&[usize], u32)> {
        let mut stream = stream(self.seed, absent, variant);
        let slots: Vec<&Slot> = absent.iter().flat_map(|&it| &self.slots[it]).collect();
        slots.into_iter().map(move |slot| {
            let mut left = stream.fraction();
            let picked = slot.options.iter().find(|(_, weight)| {
                left -= weight;
                left < 0.0
            });
            let last = slot.options.last().map_or(0, |it| it.0);
            (&slot.tokens[..], picked.map_or(last, |it| it.0))
        })
    }

    /// For each feature, for each of its words: what may stand there.
    pub fn shown(&self, model: &Model) -> Value {
        let option = |(id, weight): &(u32, f64)| json!({ "text": model.token_name(*id), "weight": weight });
        let slot = |it: &Slot| it.options.iter().map(option).collect::<Vec<_>>();
        json!(self.slots.iter().map(|it| it.iter().map(slot).collect()).collect::<Vec<Vec<_>>>())
    }
}

/// The tokens of each word of each feature; where a feature ends within a word, the part that it has.
fn words_of(subject: &Subject<'_>, features: &[Feature]) -> Result<Vec<Vec<Vec<usize>>>, ExplainError> {
    let words = divide(subject.encoded, &Granularity::Word)
        .map_err(|error| ExplainError::Internal(error.to_string()))?;
    let mut word_of = vec![usize::MAX; subject.encoded.tokens.len()];
    for (word, it) in words.iter().enumerate() {
        it.tokens.iter().for_each(|&token| word_of[token] = word);
    }
    let split = |it: &Feature| {
        let same = |a: &usize, b: &usize| word_of[*a] == word_of[*b];
        it.tokens.chunk_by(same).map(<[usize]>::to_vec).collect()
    };
    Ok(features.iter().map(split).collect())
}

/// The input with a mask token for each word, and where in the row those stand.
fn gaps(subject: &Subject<'_>, words: &[Vec<usize>], mask: u32) -> (Row, Vec<usize>) {
    let tokens = &subject.encoded.tokens;
    let mut fates = vec![Fate::Stays; tokens.len()];
    words.iter().for_each(|it| fill(&mut fates, it, mask));
    let stands = |fate: &&Fate<'_>| !matches!(fate, Fate::Goes);
    let places = words.iter().map(|it| fates[..it[0]].iter().filter(stands).count()).collect();
    let (ids, types) = (subject.encoded.ids(), subject.encoded.type_ids());
    (row(&ids, &types, &fates, mask), places)
}

/// Whether a token begins a word, as its vocabulary spells it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// WordPiece's `##ing`.
    Continues,
    /// `Ġthe` and `▁the`.
    AfterSpace,
    /// Everything else: begins a word in WordPiece, follows without a space in byte-level vocabularies.
    Bare,
}

impl Class {
    fn of(model: &Model, id: u32) -> Self {
        Self::of_text(&model.token_name(id))
    }

    fn of_text(text: &str) -> Self {
        match text {
            it if it.len() > 2 && it.starts_with("##") => Self::Continues,
            it if it.starts_with(['Ġ', '▁']) => Self::AfterSpace,
            _ => Self::Bare,
        }
    }

    /// Whether a token can stand where one of this class stood.
    fn admits(self, model: &Model, id: u32) -> bool {
        let text = model.token_name(id);
        !model.special.all.contains(&id)
            && !text.is_empty()
            && !text.starts_with("[unused")
            && Self::of_text(&text) == self
    }
}

/// The `k` likeliest admitted tokens of a row of logits, with their probabilities over the whole vocabulary;
/// without those below `floor`, but for the likeliest. A logit of minus infinity is a token that cannot be.
///
/// # Errors
/// Logits that make no probabilities.
fn likeliest(
    logits: &[f32],
    k: usize,
    floor: f64,
    admits: impl Fn(u32) -> bool,
) -> Result<Vec<(u32, f64)>, ScoreError> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |it: f32| f64::from(it - highest).exp();
    let sum: f64 = logits.iter().map(|&it| weight(it)).sum();
    if !sum.is_finite() {
        return Err(ScoreError::NotANumber { what: "the fillers' probability", value: sum });
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let falling =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    let head = (16 * k + 64).min(order.len());
    if head < order.len() {
        order.select_nth_unstable_by(head, falling);
    }
    order[..head].sort_unstable_by(falling);
    let mut found: Vec<u32> = order[..head].iter().copied().filter(|&id| admits(id)).take(k).collect();
    if found.len() < k {
        order[head..].sort_unstable_by(falling);
        let missing = k - found.len();
        found.extend(order[head..].iter().copied().filter(|&id| admits(id)).take(missing));
    }
    let probable = found.into_iter().map(|id| (id, weight(logits[id as usize]) / sum));
    Ok(probable.enumerate().filter(|(place, it)| *place == 0 || it.1 >= floor).map(|(_, it)| it).collect())
}

/// The random numbers of one filling of the absent features.
pub(super) fn stream(seed: u64, absent: &[usize], variant: usize) -> Stream {
    Stream::new(seed, PURPOSE.wrapping_add(variant as u64), mark(absent))
}

/// A number that is the same for the same absent features, on every machine (FNV-1a, 64 bits).
fn mark(absent: &[usize]) -> u64 {
    let bytes = absent.iter().flat_map(|it| (*it as u64).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_admitted_tokens_come_with_their_probabilities() {
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln(), 8f32.ln()];
        let all = likeliest(&logits, 3, 0.0, |id| id != 3).unwrap();
        let shares = [(2, 5.0 / 16.0), (1, 2.0 / 16.0), (0, 1.0 / 16.0)];
        for (found, wanted) in all.iter().zip(shares) {
            assert!(found.0 == wanted.0 && (found.1 - wanted.1).abs() < 1e-7, "{all:?}");
        }
        assert_eq!(likeliest(&logits, 3, 0.1, |id| id != 3).unwrap().len(), 2);
        assert_eq!(likeliest(&logits, 3, 0.9, |id| id != 3).unwrap().len(), 1);
    }

    #[test]
    fn tokens_are_found_beyond_a_head_that_is_not_admitted() {
        let logits: Vec<f32> = (0..1000).map(|it| -(it as f32)).collect();
        let found = likeliest(&logits, 2, 0.0, |id| id >= 500).unwrap();
        assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [500, 501]);
    }

    #[test]
    fn logits_that_make_no_probabilities_are_the_models_fault() {
        let never = f32::NEG_INFINITY;
        for logits in [[0.0, f32::NAN], [f32::NAN; 2], [0.0, f32::INFINITY], [never; 2]] {
            let error = likeliest(&logits, 1, 0.0, |_| true).unwrap_err();
            assert!(matches!(error, ScoreError::NotANumber { .. }), "{logits:?}: {error}");
        }
        assert_eq!(likeliest(&[never, 0.0], 2, 0.0, |_| true).unwrap(), [(1, 1.0), (0, 0.0)]);
    }
}
