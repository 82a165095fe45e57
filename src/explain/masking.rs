//! Where features are taken out of an input: on token ids, never on text.
//!
//! Every perturbation and sampling method uses this engine, so an operation means the same everywhere.

mod fillers;

use std::{ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use self::fillers::Fillers;
use super::{Case, ExplainError, Misfit, Subject, reading::refusal};
use crate::{
    model::{Model, Need, text::Feature},
    runtime::Row,
};

/// How a feature is taken out of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Its tokens leave the sequence and positions close up.
    Delete,
    /// Each of its tokens becomes the mask token.
    #[default]
    Mask,
    /// Each of its tokens becomes the unknown token.
    Unk,
    /// Each of its tokens becomes the pad token and leaves the attention mask.
    Pad,
    /// It becomes each of the caller's `replacements` in turn, and the scores are averaged.
    Replace,
    /// Each of its words becomes one of the `k` words that are nearest in the model's own embedding space.
    Neighbors,
    /// Each of its words becomes one of the `k` most probable fillers that a companion masked language model
    /// finds for the gap (Kim et al. 2020, Interpretation of NLP models through input marginalization).
    Mlm,
}

impl Operation {
    /// What the operation needs of the model.
    pub fn needs(self) -> Vec<Need> {
        match self {
            Self::Neighbors => vec![Need::Words],
            Self::Mlm => vec![Need::FillMask],
            Self::Delete | Self::Mask | Self::Unk | Self::Pad | Self::Replace => Vec::new(),
        }
    }

    /// Whether it draws what stands for an absent feature.
    pub fn fills(self) -> bool {
        matches!(self, Self::Neighbors | Self::Mlm)
    }
}

/// What the parameters of a method say about taking features out.
#[derive(Debug, Clone, Copy)]
pub struct Removal<'a> {
    /// How a feature is taken out.
    pub operation: Operation,
    /// For [`Operation::Replace`], the texts for each feature in order.
    pub replacements: Option<&'a [Vec<String>]>,
    /// For neighbors and mlm: words that may stand for a word.
    pub k: usize,
    /// For mlm: fillers that are less probable are left out; the most probable stays.
    pub floor: f64,
    /// For neighbors and mlm: fillings drawn for a set of absent features.
    pub draws: usize,
}

/// Rows that taking features out costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// For one set of absent features, at the most.
    pub variants: usize,
    /// Once for an input, before anything is taken out.
    pub once: usize,
}

impl Effort {
    /// With `edge` draws where one feature is present or one is absent.
    #[must_use]
    pub fn with_edges(self, features: usize, edge: usize) -> Self {
        Self { once: self.once + 2 * features * edge.saturating_sub(self.variants), ..self }
    }

    /// That of words drawn from a pool, `draws` for a set of absent features.
    pub fn drawn(draws: usize) -> Self {
        Self { variants: draws, once: BASE_DRAWS.saturating_sub(draws) }
    }
}

/// Fillings drawn where few others would average their chance out.
const BASE_DRAWS: usize = 32;

impl<'a> Removal<'a> {
    /// How often a method that evaluates `samples` subsets draws fillings for each: once, and more often where
    /// all subsets are fewer than the samples.
    pub fn draws_for(features: usize, samples: usize) -> usize {
        samples.checked_shr(features as u32).unwrap_or(0).clamp(1, BASE_DRAWS)
    }

    /// The same where the draws' own error is told: at least two.
    pub fn draws_with_error(features: usize, samples: usize) -> usize {
        Self::draws_for(features, samples).max(2)
    }

    /// Draws for a set of one present, or of one absent feature, on whose scores much rests, where a method
    /// evaluates `samples` sets with `draws` for each: up to 32, and no more in all than for the other sets.
    pub fn edge_draws(features: usize, samples: usize, draws: usize) -> usize {
        (samples.saturating_mul(draws) / (2 * features.max(1))).clamp(draws, BASE_DRAWS.max(draws))
    }

    /// An operation that draws nothing.
    pub fn plain(operation: Operation, replacements: Option<&'a [Vec<String>]>) -> Self {
        Self { operation, replacements, k: 1, floor: 0.0, draws: 1 }
    }

    /// What it will cost, before anything was evaluated.
    ///
    /// # Errors
    /// A token that the model does not have, replacements that do not fit the features, an input that is too
    /// long for the companion; they point to the parameter.
    pub fn effort(&self, subject: &Subject<'_>, features: &[Feature]) -> Result<Effort, ExplainError> {
        self.refuse_misfits(subject)?;
        if !self.operation.fills() {
            let how = self.how(subject, features)?;
            return Ok(Effort { variants: how.variants(), once: 0 });
        }
        if self.operation == Operation::Mlm {
            fillers::check(subject)?;
        }
        let gaps = if self.operation == Operation::Mlm { features.len() } else { 0 };
        Ok(Effort { variants: self.draws, once: gaps + BASE_DRAWS.saturating_sub(self.draws) })
    }

    /// The engine for `features` of the case; with [`Operation::Mlm`] it asks the companion, one row a feature.
    ///
    /// # Errors
    /// As [`Removal::effort`], and what stops evaluations.
    pub fn masker(&self, case: &Case<'_>, features: &[Feature]) -> Result<Masker, ExplainError> {
        let subject = &case.subject;
        self.refuse_misfits(subject)?;
        let how = match self.operation {
            Operation::Neighbors => How::Fillers(Fillers::neighbors(subject, features, self)?),
            Operation::Mlm => How::Fillers(Fillers::mlm(case, features, self)?),
            _ => self.how(subject, features)?,
        };
        let tokens = &subject.encoded.tokens;
        let special = &subject.model.special;
        Ok(Masker {
            ids: tokens.iter().map(|it| it.id).collect(),
            types: tokens.iter().map(|it| it.type_id).collect(),
            features: features.iter().map(|it| it.tokens.clone()).collect(),
            how,
            lone: special.unk.or(special.pad).or(special.cls).or(special.sep).unwrap_or(0),
        })
    }

    fn refuse_misfits(&self, subject: &Subject<'_>) -> Result<(), ExplainError> {
        if self.replacements.is_some() && self.operation != Operation::Replace {
            return Err(Misfit::parameter("replacements", "goes with `operation: \"replace\"`").into());
        }
        if self.operation == Operation::Pad && !subject.model.reads_mask() {
            let detail = "the model has no attention_mask input, so a pad token cannot leave it";
            return Err(Misfit::parameter("operation", detail).into());
        }
        Ok(())
    }

    fn how(&self, subject: &Subject<'_>, features: &[Feature]) -> Result<How, ExplainError> {
        let model = subject.model;
        Ok(match self.operation {
            Operation::Mask => How::Becomes(role(model.special.mask, "mask", model)?),
            Operation::Unk => How::Becomes(role(model.special.unk, "unknown", model)?),
            Operation::Pad => How::Hidden(role(model.special.pad, "pad", model)?),
            Operation::Replace => How::Texts(texts(subject, features, self.replacements)?),
            Operation::Delete | Operation::Neighbors | Operation::Mlm => How::Delete,
        })
    }
}

/// Rows with features of one input taken out.
pub struct Masker {
    ids: Vec<u32>,
    types: Vec<u32>,
    /// Tokens of each feature.
    features: Vec<Vec<usize>>,
    how: How,
    /// What stands alone when every token was deleted and the tokenizer adds none.
    lone: u32,
}

enum How {
    Delete,
    Becomes(u32),
    Hidden(u32),
    /// For each feature, the token ids of each of its replacements.
    Texts(Vec<Vec<Vec<u32>>>),
    /// Words that may stand for the words of each feature.
    Fillers(Fillers),
    /// Words, as token ids, any of which may stand for any feature.
    Pool {
        words: Vec<Vec<u32>>,
        draws: usize,
        seed: u64,
    },
}

impl How {
    fn variants(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.iter().map(Vec::len).max().unwrap_or(1),
            Self::Fillers(Fillers { draws, .. }) | Self::Pool { draws, .. } => *draws,
            Self::Delete | Self::Becomes(_) | Self::Hidden(_) => 1,
        }
    }
}

/// What becomes of one token of the input.
#[derive(Clone, Copy)]
enum Fate<'a> {
    Stays,
    Goes,
    Becomes(u32),
    Hidden(u32),
    Texts(&'a [u32]),
}

impl Masker {
    /// Features that can be taken out.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether there is no feature.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// How many rows stand for one set of absent features, but see [`Masker::rows`].
    pub fn variants(&self) -> usize {
        self.how.variants()
    }

    /// Puts one of `words` (token ids) in place of each absent feature, drawn for each anew, `draws` times.
    #[must_use]
    pub fn drawing_from(mut self, words: Vec<Vec<u32>>, draws: usize, seed: u64) -> Self {
        self.how = How::Pool { words, draws: draws.max(1), seed };
        self
    }

    /// Whether rows are drawn, so that the mean of their scores has an error.
    pub fn draws(&self) -> bool {
        matches!(self.how, How::Fillers(_) | How::Pool { .. })
    }

    /// As [`Masker::rows`], with `edge` draws where one feature is present or one is absent; and whether the rows
    /// are drawn. The whole text is one row; for an absent feature of one word with no more than `edge` fillers
    /// these come all. The weights sum to 1.
    pub fn weighted(
        &self,
        absent: impl Fn(usize) -> bool,
        before: usize,
        edge: usize,
    ) -> (Vec<(Row, f64)>, bool) {
        let gone: Vec<usize> = (0..self.features.len()).filter(|&it| absent(it)).collect();
        let even = |rows: Vec<Row>| {
            let weight = 1.0 / rows.len() as f64;
            rows.into_iter().map(|row| (row, weight)).collect()
        };
        if !self.draws() {
            return (even(self.rows(absent, before)), false);
        }
        if let How::Fillers(fillers) = &self.how
            && let [feature] = gone[..]
            && let [slot] = &fillers.slots[feature][..]
            && slot.options.len() <= edge
        {
            return (self.without(feature), false);
        }
        match gone.len() {
            0 => (even(self.variant_rows(&gone, 0..1)), false),
            count if before == 0 && count < self.len() && (count == 1 || count + 1 == self.len()) => {
                (even(self.variant_rows(&gone, 0..edge.max(self.variants()))), true)
            }
            _ => (even(self.rows(absent, before)), true),
        }
    }

    /// The rows of the input without the features for which `absent` says so; their scores are averaged. In
    /// row `n` a feature with fewer replacements than others uses its `n mod count`-th.
    ///
    /// Fillers are drawn, for each absent word its own, and depend on the seed, the absent features, the row's
    /// number and `before` alone, which tells how often the same features were taken out before. When all
    /// features are taken out for the first time at least 32 fillings are drawn: much rests on that score.
    pub fn rows(&self, absent: impl Fn(usize) -> bool, before: usize) -> Vec<Row> {
        let absent: Vec<usize> = (0..self.features.len()).filter(|&it| absent(it)).collect();
        let (first, count) = match &self.how {
            How::Fillers(Fillers { draws, .. }) | How::Pool { draws, .. } => {
                if before == 0 && absent.len() == self.len() {
                    (0, (*draws).max(BASE_DRAWS))
                } else {
                    (BASE_DRAWS + before * draws, *draws)
                }
            }
            how => (0, how.variants()),
        };
        self.variant_rows(&absent, first..first + count)
    }

    fn variant_rows(&self, absent: &[usize], variants: Range<usize>) -> Vec<Row> {
        let row = |variant| {
            let mut fates = vec![Fate::Stays; self.ids.len()];
            match &self.how {
                How::Fillers(fillers) => {
                    for (slot, id) in fillers.drawn(absent, variant) {
                        fill(&mut fates, slot, id);
                    }
                }
                How::Pool { words, seed, .. } => {
                    let mut stream = fillers::stream(*seed, absent, variant);
                    for &it in absent {
                        self.features[it].iter().for_each(|&token| fates[token] = Fate::Goes);
                        fates[self.features[it][0]] = Fate::Texts(&words[stream.below(words.len())]);
                    }
                }
                how => absent.iter().for_each(|&it| self.mark(&mut fates, how, it, variant)),
            }
            self.row(&fates)
        };
        variants.map(row).collect()
    }

    /// The rows of the input without one feature, and the weight of each in the mean; the weights sum to 1. The
    /// fillers of a feature of one word come all, with their probabilities; for more words joint fillings are
    /// drawn as in [`Masker::rows`].
    pub fn without(&self, feature: usize) -> Vec<(Row, f64)> {
        if let How::Fillers(fillers) = &self.how
            && let [slot] = &fillers.slots[feature][..]
        {
            let filled = |(id, weight): &(u32, f64)| {
                let mut fates = vec![Fate::Stays; self.ids.len()];
                fill(&mut fates, &slot.tokens, *id);
                (self.row(&fates), *weight)
            };
            return slot.options.iter().map(filled).collect();
        }
        let rows = self.variant_rows(&[feature], 0..self.variants());
        let weight = 1.0 / rows.len() as f64;
        rows.into_iter().map(|row| (row, weight)).collect()
    }

    /// Whether [`Masker::without`] draws: the mean over its rows is one over chance then.
    pub fn draws_without(&self, feature: usize) -> bool {
        matches!(&self.how, How::Fillers(fillers) if fillers.slots[feature].len() > 1)
    }

    /// The words that may stand for each word of each feature, with their weights; `None` where an operation
    /// puts nothing of its own into the text.
    pub fn fillers(&self, model: &Model) -> Option<Value> {
        match &self.how {
            How::Fillers(fillers) => Some(fillers.shown(model)),
            _ => None,
        }
    }

    fn mark<'s>(&'s self, fates: &mut [Fate<'s>], how: &'s How, feature: usize, variant: usize) {
        for (place, &token) in self.features[feature].iter().enumerate() {
            fates[token] = match how {
                How::Delete | How::Fillers(_) | How::Pool { .. } => Fate::Goes,
                How::Becomes(id) => Fate::Becomes(*id),
                How::Hidden(id) => Fate::Hidden(*id),
                // The replacement stands where the feature's first token stood.
                How::Texts(texts) if place == 0 => {
                    Fate::Texts(&texts[feature][variant % texts[feature].len()])
                }
                How::Texts(_) => Fate::Goes,
            };
        }
    }

    fn row(&self, fates: &[Fate<'_>]) -> Row {
        row(&self.ids, &self.types, fates, self.lone)
    }
}

/// A word becomes one token, which stands where its first stood.
fn fill(fates: &mut [Fate<'_>], tokens: &[usize], id: u32) {
    tokens.iter().for_each(|&it| fates[it] = Fate::Goes);
    if let Some(&first) = tokens.first() {
        fates[first] = Fate::Becomes(id);
    }
}

fn row(ids: &[u32], types: &[u32], fates: &[Fate<'_>], lone: u32) -> Row {
    let mut row: Vec<(u32, u32, bool)> = Vec::with_capacity(ids.len());
    for ((&own, &kind), fate) in ids.iter().zip(types).zip(fates) {
        match *fate {
            Fate::Stays => row.push((own, kind, true)),
            Fate::Goes => {}
            Fate::Becomes(id) => row.push((id, kind, true)),
            Fate::Hidden(id) => row.push((id, kind, false)),
            Fate::Texts(ids) => row.extend(ids.iter().map(|&id| (id, kind, true))),
        }
    }
    if !row.iter().any(|it| it.2) {
        row = vec![(lone, 0, true)];
    }
    let shown: Vec<bool> = row.iter().map(|it| it.2).collect();
    let ids: Vec<u32> = row.iter().map(|it| it.0).collect();
    let types: Vec<u32> = row.iter().map(|it| it.1).collect();
    let mask = shown.contains(&false).then(|| Arc::from(shown));
    Row { ids: ids.into(), types: Some(types.into()), mask, extras: Vec::new() }
}

fn role(id: Option<u32>, name: &str, model: &Model) -> Result<u32, ExplainError> {
    let missing = || {
        let others: Vec<&str> = [
            (true, "delete"),
            (model.special.mask.is_some(), "mask"),
            (model.special.unk.is_some(), "unk"),
            (model.special.pad.is_some(), "pad"),
            (true, "replace"),
            (model.words.is_ok(), "neighbors"),
            (model.fill_mask.is_ok(), "mlm"),
        ]
        .into_iter()
        .filter_map(|(there, it)| there.then_some(it))
        .collect();
        let detail = format!("the model has no {name} token; take one of: {}", others.join(", "));
        Misfit::parameter("operation", detail).into()
    };
    id.ok_or_else(missing)
}

fn texts(
    subject: &Subject<'_>,
    features: &[Feature],
    replacements: Option<&[Vec<String>]>,
) -> Result<Vec<Vec<Vec<u32>>>, ExplainError> {
    let refuse = |pointer: String, detail: String| -> ExplainError {
        Misfit::new(format!("/parameters/replacements{pointer}"), detail).into()
    };
    let Some(lists) = replacements else {
        return Err(refuse(String::new(), "is required by `operation: \"replace\"`".to_owned()));
    };
    if lists.len() != features.len() {
        let detail = format!("{} lists of texts for {} features", lists.len(), features.len());
        return Err(refuse(String::new(), detail));
    }
    let mut all = Vec::with_capacity(lists.len());
    for (feature, list) in lists.iter().enumerate() {
        if list.is_empty() {
            return Err(refuse(format!("/{feature}"), "holds no text".to_owned()));
        }
        let ids = |(index, text): (usize, &String)| {
            let pointer = format!("/parameters/replacements/{feature}/{index}");
            let tokenizer = &subject.model.tokenizer;
            tokenizer.piece_ids(text, subject.caps).map_err(|error| refusal(&error, &pointer))
        };
        all.push(list.iter().enumerate().map(ids).collect::<Result<_, _>>()?);
    }
    fit(subject, features, &all)?;
    Ok(all)
}

/// Refuses replacements with which a row could outgrow the model, and has the longest row priced: that of the
/// longest replacement of every feature.
fn fit(subject: &Subject<'_>, features: &[Feature], texts: &[Vec<Vec<u32>>]) -> Result<(), ExplainError> {
    let growth = |(feature, texts): (usize, &Vec<Vec<u32>>)| {
        let (index, longest) = texts.iter().enumerate().max_by_key(|(_, it)| it.len())?;
        let growth = longest.len().saturating_sub(features[feature].tokens.len());
        Some((growth, format!("/parameters/replacements/{feature}/{index}")))
    };
    outgrow(subject, texts.iter().enumerate().filter_map(growth))
}

/// Refuses rows that could outgrow the model, and has the longest priced. `growths` tells for each feature how many tokens
/// more than its own may stand for it, and which parameter has it so.
pub(super) fn outgrow(
    subject: &Subject<'_>,
    growths: impl Iterator<Item = (usize, String)>,
) -> Result<(), ExplainError> {
    let growths: Vec<(usize, String)> = growths.collect();
    let tokens = subject.encoded.tokens.len() + growths.iter().map(|it| it.0).sum::<usize>();
    subject.lengthen(tokens);
    let Some(limit) = subject.model.max_length.filter(|&limit| tokens > limit) else { return Ok(()) };
    let pointer = growths.into_iter().rev().max_by_key(|it| it.0).map(|it| it.1).unwrap_or_default();
    let detail = format!("makes the input a row of {tokens} tokens; the model's limit is {limit}");
    Err(Misfit::over(pointer, detail, "max_length", limit as u64).into())
}
