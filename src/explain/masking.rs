//! Where features are taken out of an input: on token ids, never on text.
//!
//! Every perturbation and sampling method uses this engine, so an operation means the same everywhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ExplainError, Misfit, Subject};
use crate::{
    model::{Model, text::Feature},
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
}

impl Masker {
    /// The engine for `features` of the subject. `replacements` holds, for [`Operation::Replace`], the
    /// texts for each feature in order.
    ///
    /// # Errors
    /// A token that the model does not have, or replacements that do not fit the features; they point to
    /// `/parameters/operation` and `/parameters/replacements`.
    pub fn new(
        subject: &Subject<'_>,
        features: &[Feature],
        operation: Operation,
        replacements: Option<&[Vec<String>]>,
    ) -> Result<Self, ExplainError> {
        let model = subject.model;
        if replacements.is_some() && operation != Operation::Replace {
            return Err(Misfit::parameter("replacements", "goes with `operation: \"replace\"`").into());
        }
        let how = match operation {
            Operation::Delete => How::Delete,
            Operation::Mask => How::Becomes(role(model.special.mask, "mask", model)?),
            Operation::Unk => How::Becomes(role(model.special.unk, "unknown", model)?),
            Operation::Pad => How::Hidden(role(model.special.pad, "pad", model)?),
            Operation::Replace => How::Texts(texts(model, features, replacements)?),
        };
        if operation == Operation::Pad && !model.reads_mask() {
            let detail = "the model has no attention_mask input, so a pad token cannot leave it";
            return Err(Misfit::parameter("operation", detail).into());
        }
        let tokens = &subject.encoded.tokens;
        let special = &model.special;
        Ok(Self {
            ids: tokens.iter().map(|it| it.id).collect(),
            types: tokens.iter().map(|it| it.type_id).collect(),
            features: features.iter().map(|it| it.tokens.clone()).collect(),
            how,
            lone: special.unk.or(special.pad).or(special.cls).or(special.sep).unwrap_or(0),
        })
    }

    /// Features that can be taken out.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether there is no feature.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// How many rows stand for one perturbed input; their scores are averaged.
    pub fn variants(&self) -> usize {
        match &self.how {
            How::Texts(texts) => texts.iter().map(Vec::len).max().unwrap_or(1),
            How::Delete | How::Becomes(_) | How::Hidden(_) => 1,
        }
    }

    /// The rows of the input without the features for which `absent` says so: [`Masker::variants`] of
    /// them. In variant `n` a feature with fewer replacements than others uses its `n mod count`-th.
    pub fn rows(&self, absent: impl Fn(usize) -> bool) -> Vec<Row> {
        let mut gone: Vec<Option<usize>> = vec![None; self.ids.len()];
        for (feature, tokens) in self.features.iter().enumerate().filter(|(it, _)| absent(*it)) {
            tokens.iter().for_each(|&at| gone[at] = Some(feature));
        }
        (0..self.variants()).map(|variant| self.row(&gone, variant)).collect()
    }

    fn row(&self, gone: &[Option<usize>], variant: usize) -> Row {
        let mut ids = Vec::with_capacity(gone.len());
        let mut types = Vec::with_capacity(gone.len());
        let mut shown = Vec::with_capacity(gone.len());
        let mut last = None;
        for (at, feature) in gone.iter().enumerate() {
            let mut push = |id: u32, visible: bool| {
                ids.push(id);
                types.push(self.types[at]);
                shown.push(visible);
            };
            match (feature, &self.how) {
                (None, _) => push(self.ids[at], true),
                (Some(_), How::Delete) => {}
                (Some(_), How::Becomes(id)) => push(*id, true),
                (Some(_), How::Hidden(id)) => push(*id, false),
                (Some(feature), How::Texts(texts)) => {
                    // The replacement stands where the feature's first token stood.
                    if last != Some(*feature) {
                        let options = &texts[*feature];
                        options[variant % options.len()].iter().for_each(|&id| push(id, true));
                    }
                }
            }
            last = *feature;
        }
        if !shown.contains(&true) {
            (ids, types, shown) = (vec![self.lone], vec![0], vec![true]);
        }
        let mask = shown.contains(&false).then(|| Arc::from(shown));
        Row { ids: ids.into(), types: Some(types.into()), mask, extras: Vec::new() }
    }
}

fn role(id: Option<u32>, name: &str, model: &Model) -> Result<u32, ExplainError> {
    let missing = || {
        let others: Vec<&str> = [
            (true, "delete"),
            (model.special.mask.is_some(), "mask"),
            (model.special.unk.is_some(), "unk"),
            (model.special.pad.is_some(), "pad"),
            (true, "replace"),
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
    model: &Model,
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
            let pointer = format!("/{feature}/{index}");
            model.tokenizer.piece_ids(text).map_err(|error| refuse(pointer, error.to_string()))
        };
        all.push(list.iter().enumerate().map(ids).collect::<Result<_, _>>()?);
    }
    Ok(all)
}
