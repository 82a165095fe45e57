//! Where attention probabilities come out of the model, and how they are mixed from layer to layer.

use std::sync::Arc;

use crate::{
    explain::{Case, ExplainError},
    runtime::{Extra, Program, Row},
};

/// The attention of one input.
pub struct Weights {
    /// Tokens of the input.
    pub tokens: usize,
    /// The logits that the attention graph computed.
    pub logits: Vec<f32>,
    /// For each layer, `[heads, tokens, tokens]`, row-major; the row attends. One head stands for all where the
    /// graph has mixed them already.
    pub layers: Vec<Vec<f32>>,
    /// The gradients of the weighted logits, shaped like `layers`; empty where they are not asked for, or mixed into
    /// `layers`.
    slopes: Vec<Vec<f32>>,
}

impl Weights {
    /// The probabilities of the case's input.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run.
    pub fn of(case: &Case<'_>) -> Result<Self, ExplainError> {
        let graph = case.subject.model.attention()?;
        let mut found = Self::run(case, &graph.forward()?, vec![Vec::new()])?;
        found.pop().ok_or_else(|| ExplainError::Internal("a row is missing".to_owned()))
    }

    /// As [`Weights::of`], heads averaged.
    ///
    /// # Errors
    /// As [`Weights::of`].
    pub fn averaged(case: &Case<'_>) -> Result<Self, ExplainError> {
        let graph = case.subject.model.attention()?;
        let mut found = Self::run(case, &graph.rollout()?, vec![Vec::new()])?;
        found.pop().ok_or_else(|| ExplainError::Internal("a row is missing".to_owned()))
    }

    /// What [`Weights::relevance`] reads, once for each of the `cotangents` of the logits.
    ///
    /// # Errors
    /// As [`Weights::of`].
    pub fn with_slopes(case: &Case<'_>, cotangents: Vec<Arc<[f32]>>) -> Result<Vec<Self>, ExplainError> {
        let graph = case.subject.model.attention()?;
        let seeds = cotangents.into_iter().map(|it| vec![Extra::Values(it)]).collect();
        Self::run(case, &graph.gradient()?, seeds)
    }

    fn run(
        case: &Case<'_>,
        program: &Arc<Program>,
        seeds: Vec<Vec<Extra>>,
    ) -> Result<Vec<Self>, ExplainError> {
        let graph = case.subject.model.attention()?;
        let count = graph.heads.len();
        let outs = case.run(program, seeded(case, seeds)?)?;
        let read = |out: crate::runtime::RowOut| {
            let mut values = out.values.into_iter();
            let logits = values.next().unwrap_or_default();
            let layers = values.by_ref().take(count).collect();
            Self { tokens: case.row.len(), logits, layers, slopes: values.collect() }
        };
        Ok(outs.into_iter().map(read).collect())
    }

    /// A layer's probabilities, their mean over heads.
    pub fn mean(&self, layer: usize) -> Square {
        self.over_heads(layer, |at| f64::from(self.layers[layer][at]))
    }

    /// `mean_h (∇A ⊙ A)⁺` of a layer.
    pub fn relevance(&self, layer: usize) -> Square {
        let weights = &self.layers[layer];
        match self.slopes.get(layer) {
            Some(slopes) => {
                self.over_heads(layer, |at| (f64::from(weights[at]) * f64::from(slopes[at])).max(0.0))
            }
            None => self.mean(layer),
        }
    }

    fn over_heads(&self, layer: usize, value: impl Fn(usize) -> f64) -> Square {
        let size = self.tokens * self.tokens;
        let heads = (self.layers[layer].len() / size.max(1)).max(1);
        let mean = |at: usize| (0..heads).map(|head| value(head * size + at)).sum::<f64>() / heads as f64;
        Square { size: self.tokens, values: (0..size).map(mean).collect() }
    }
}

/// The case's row behind its word embedding, once for each of the `seeds`.
pub(super) fn seeded(case: &Case<'_>, seeds: Vec<Vec<Extra>>) -> Result<Vec<Row>, ExplainError> {
    let words = &case.subject.model.attention()?.embedded.words;
    let x: Arc<[f32]> = case.row.ids.iter().flat_map(|&id| words.row(id)).copied().collect();
    let row = |seed: Vec<Extra>| {
        let extras = std::iter::once(Extra::Values(x.clone())).chain(seed).collect();
        Row { extras, ..case.row.clone() }
    };
    Ok(seeds.into_iter().map(row).collect())
}

/// A matrix over pairs of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Square {
    /// Tokens.
    pub size: usize,
    /// Row-major.
    pub values: Vec<f64>,
}

impl Square {
    /// Ones on the diagonal.
    pub fn identity(size: usize) -> Self {
        let values = (0..size * size).map(|at| f64::from(u8::from(at / size == at % size))).collect();
        Self { size, values }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.size..][..self.size]
    }

    fn times(&self, other: &Self) -> Self {
        let size = self.size;
        let mut values = vec![0.0; size * size];
        for (into, row) in values.chunks_mut(size.max(1)).zip(self.values.chunks(size.max(1))) {
            for (weight, from) in row.iter().zip(other.values.chunks(size.max(1))) {
                into.iter_mut().zip(from).for_each(|(into, it)| *into += weight * it);
            }
        }
        Self { size, values }
    }
}

/// How what flows through one layer is put behind what flowed through those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixing {
    /// `R ← normalised(½A + ½I)·R`: half of a position comes from itself, past the attention.
    Rollout,
    /// `R ← R + A·R`.
    Relevance,
}

impl Mixing {
    /// What each position holds of each token, `[tokens, tokens]`, behind `layers` in their order.
    pub fn mix(self, layers: impl Iterator<Item = Square>, tokens: usize) -> Square {
        layers.fold(Square::identity(tokens), |so_far, mut layer| match self {
            Self::Rollout => {
                for (row, values) in layer.values.chunks_mut(tokens.max(1)).enumerate() {
                    values.iter_mut().for_each(|it| *it *= 0.5);
                    values[row] += 0.5;
                    let sum: f64 = values.iter().sum();
                    values.iter_mut().for_each(|it| *it /= sum.max(f64::MIN_POSITIVE));
                }
                layer.times(&so_far)
            }
            Self::Relevance => {
                let mut added = layer.times(&so_far);
                added.values.iter_mut().zip(&so_far.values).for_each(|(it, before)| *it += before);
                added
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 4] = [0.25, 0.75, 1.0, 0.0];
    const B: [f64; 4] = [0.5, 0.5, 0.0, 1.0];

    fn squares() -> impl Iterator<Item = Square> {
        [A, B].into_iter().map(|it| Square { size: 2, values: it.to_vec() })
    }

    #[test]
    fn rollout_multiplies_halves_by_hand() {
        // ½A + ½I = [.625 .375; .5 .5], ½B + ½I = [.75 .25; 0 1]; the later layer stands on the left.
        let found = Mixing::Rollout.mix(squares(), 2).values;
        assert_eq!(found, [0.59375, 0.40625, 0.5, 0.5]);
    }

    #[test]
    fn relevance_adds_what_a_layer_brings() {
        // (I + B)(I + A) by hand.
        let found = Mixing::Relevance.mix(squares(), 2).values;
        assert_eq!(found, [1.5 * 1.25 + 0.5, 1.5 * 0.75 + 0.5, 2.0, 2.0]);
    }
}
