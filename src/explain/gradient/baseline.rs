//! Where the start of an integration path is chosen: what "nothing" means to the model.

use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Embedded, Start, start::Rows};
use crate::{
    explain::{ExplainError, Misfit, Subject, random, reading::refusal},
    model::Model,
};

/// What stands for "nothing" at every ordinary token. Special tokens are their own baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaselineKind {
    /// The pad token's embedding.
    #[default]
    Pad,
    /// The mask token's embedding.
    Mask,
    /// The unknown token's embedding.
    Unk,
    /// The zero vector.
    Zero,
    /// The mean of all word embeddings.
    Mean,
    /// Words drawn at random, `draws` times; scores are averaged.
    Random,
    /// The caller's `baseline_text`, filled up with padding.
    Text,
}

/// A baseline that fits the model and the input.
pub enum Baseline {
    /// A token at every ordinary position.
    Token(u32),
    /// The zero vector.
    Zero,
    /// The mean word embedding.
    Mean,
    /// `draws` rows of random words.
    Random {
        /// How many.
        draws: usize,
        /// From which seed.
        seed: u64,
    },
    /// These tokens at the ordinary positions.
    Text(Vec<u32>),
}

impl Baseline {
    /// The baseline that the parameters name.
    ///
    /// # Errors
    /// A token that the model does not have, a text that is absent, superfluous or longer than the input.
    pub fn read(
        kind: BaselineKind,
        text: Option<&str>,
        draws: usize,
        subject: &Subject<'_>,
    ) -> Result<Self, ExplainError> {
        let special = &subject.model.special;
        if text.is_some() && kind != BaselineKind::Text {
            return Err(Misfit::parameter("baseline_text", "goes with `baseline: \"text\"`").into());
        }
        Ok(match kind {
            BaselineKind::Pad => Self::Token(token(special.pad, "pad", subject.model)?),
            BaselineKind::Mask => Self::Token(token(special.mask, "mask", subject.model)?),
            BaselineKind::Unk => Self::Token(token(special.unk, "unknown", subject.model)?),
            BaselineKind::Zero => Self::Zero,
            BaselineKind::Mean => Self::Mean,
            BaselineKind::Random => Self::Random { draws, seed: subject.seed },
            BaselineKind::Text => Self::Text(text_ids(text, subject)?),
        })
    }

    /// Baselines to average over.
    pub fn draws(&self) -> usize {
        match self {
            Self::Random { draws, .. } => *draws,
            Self::Token(_) | Self::Zero | Self::Mean | Self::Text(_) => 1,
        }
    }

    /// The points of embedding space, [`Baseline::draws`] of them.
    pub fn starts(&self, embedded: &Embedded<'_, '_>) -> Vec<Start> {
        let words = &embedded.graph().words;
        let constant = |row: Vec<f32>| vec![Start::new(embedded, Rows::Same(row.into()))];
        let spelt = |next: &mut dyn FnMut() -> u32| {
            let id = |token| if embedded.is_special(token) { 0 } else { next() };
            let ids = (0..embedded.tokens).map(id).collect();
            Start::new(embedded, Rows::Words(words.clone(), ids))
        };
        match self {
            Self::Token(id) => constant(words.row(*id).to_vec()),
            Self::Zero => constant(vec![0.0; words.hidden]),
            Self::Mean => constant(words.mean()),
            Self::Text(ids) => {
                let mut ids = ids.iter().copied();
                vec![spelt(&mut || ids.next().unwrap_or(0))]
            }
            Self::Random { draws, seed } => {
                let draw = |number: usize| {
                    let mut random = random::stream(*seed, number as u64);
                    spelt(&mut || random.random_range(0..words.count() as u32))
                };
                (0..*draws).map(draw).collect()
            }
        }
    }

    /// The token ids of the baseline, for the evidence.
    pub fn ids(&self) -> Value {
        match self {
            Self::Token(id) => json!([id]),
            Self::Text(ids) => json!(ids),
            Self::Zero | Self::Mean | Self::Random { .. } => Value::Null,
        }
    }
}

fn token(id: Option<u32>, name: &str, model: &Model) -> Result<u32, ExplainError> {
    let has = |id: Option<u32>, name: &'static str| id.map(|_| name);
    let special = &model.special;
    let missing = || {
        let named = [has(special.pad, "pad"), has(special.mask, "mask"), has(special.unk, "unk")];
        let others: Vec<&str> =
            named.into_iter().flatten().chain(["zero", "mean", "random", "text"]).collect();
        let detail = format!("the model has no {name} token; take one of: {}", others.join(", "));
        Misfit::parameter("baseline", detail).into()
    };
    id.ok_or_else(missing)
}

fn text_ids(text: Option<&str>, subject: &Subject<'_>) -> Result<Vec<u32>, ExplainError> {
    let refuse = |detail: String| -> ExplainError { Misfit::parameter("baseline_text", detail).into() };
    let Some(text) = text else {
        return Err(refuse("is required by `baseline: \"text\"`".to_owned()));
    };
    let mut ids = subject
        .model
        .tokenizer
        .piece_ids(text, subject.caps)
        .map_err(|error| refusal(&error, "/parameters/baseline_text"))?;
    let room = subject.encoded.tokens.iter().filter(|it| !it.special).count();
    if ids.len() > room {
        let detail = format!("has {} tokens and the input only {room}: a baseline is not longer", ids.len());
        return Err(refuse(detail));
    }
    let special = &subject.model.special;
    if ids.len() < room {
        let Some(filler) = special.pad.or(special.unk) else {
            return Err(refuse(format!(
                "has {} tokens and the input {room}; the model has no pad token",
                ids.len()
            )));
        };
        ids.resize(room, filler);
    }
    Ok(ids)
}
