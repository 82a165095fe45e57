//! Where an input becomes a point of embedding space, and gradients are asked for at such points.

use std::sync::Arc;

use super::cotangent;
use crate::{
    explain::{Case, ExplainError, Price},
    model::{GradientGraph, Output},
    runtime::{Extra, Row, RowOut},
};

/// One point of embedding space: `[tokens, hidden]`, or how to write it into a batch.
pub type Point = Extra;

/// One input in embedding space.
pub struct Embedded<'c, 'a> {
    case: &'c Case<'a>,
    graph: &'c GradientGraph,
    /// The input's own word embeddings, `[tokens, hidden]` row-major.
    pub x: Arc<[f32]>,
    /// Tokens of the input.
    pub tokens: usize,
    /// Size of one embedding.
    pub hidden: usize,
    /// Which tokens are special.
    pub(super) special: Arc<[bool]>,
}

/// The gradient of one target's scalar at one point.
pub struct Gradient<'g> {
    /// Which point.
    pub point: usize,
    /// Which of the case's targets.
    pub target: usize,
    /// The scalar there.
    pub value: f64,
    /// `∂v/∂e`, `[tokens, hidden]` row-major.
    pub slope: &'g [f32],
}

/// What `points` gradients of each of `targets` targets cost: a probability's slope depends on the logits
/// at the point, which a forward pass finds first.
pub fn price_of(points: u64, targets: usize, output: Output) -> Price {
    let forward = if output == Output::Logit { 0 } else { points };
    Price { forward, gradient: points * targets as u64 }
}

impl<'c, 'a> Embedded<'c, 'a> {
    /// The case's input.
    ///
    /// # Errors
    /// The model has no gradient graph; refused earlier, when the request was checked.
    pub fn of(case: &'c Case<'a>) -> Result<Self, ExplainError> {
        let graph = case.subject.model.gradient()?;
        let x: Vec<f32> = case.row.ids.iter().flat_map(|&id| graph.words.row(id)).copied().collect();
        let special = case.subject.encoded.tokens.iter().map(|it| it.special).collect();
        let (tokens, hidden) = (case.row.len(), graph.words.hidden);
        Ok(Self { case, graph, x: x.into(), tokens, hidden, special })
    }

    /// The word embeddings of the model.
    pub fn graph(&self) -> &'c GradientGraph {
        self.graph
    }

    /// Whether the token is a special one, which stays as it is on every path.
    pub fn is_special(&self, token: usize) -> bool {
        self.special[token]
    }

    /// The input with every ordinary token's embedding replaced by what `of` gives for it, written when its batch is
    /// put together.
    pub fn with_ordinary(&self, of: impl Fn(usize, &mut [f32]) + Send + Sync + 'static) -> Point {
        let (x, special, hidden) = (self.x.clone(), self.special.clone(), self.hidden);
        Point::Fill(Arc::new(move |into: &mut [f32]| {
            into.copy_from_slice(&x);
            let ordinary = into.chunks_mut(hidden).enumerate().filter(|(token, _)| !special[*token]);
            ordinary.for_each(|(token, row)| of(token, row));
        }))
    }

    /// The explained scalars at each point: `[point][target]`.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run, logits that are not finite.
    pub fn values(&self, points: Vec<Point>) -> Result<Vec<Vec<f64>>, ExplainError> {
        self.logits(points)?.iter().map(|logits| self.case.scalars(logits)).collect()
    }

    /// The logits at each point.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run.
    pub fn logits(&self, points: Vec<Point>) -> Result<Vec<Vec<f32>>, ExplainError> {
        let rows = points.into_iter().map(|point| self.row(vec![point]));
        let mut logits = Vec::new();
        self.case.lane.stream(&self.graph.embedded, rows, |place, out| {
            if logits.len() <= place {
                logits.resize(place + 1, Vec::new());
            }
            logits[place] = first(out);
        })?;
        Ok(logits)
    }

    /// Gradients of the given targets (positions in the case's list) at each point, handed to `sink` in no
    /// certain order. Memory is bounded by the chunk, whatever the number of points.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run, logits that are not finite.
    pub fn gradients(
        &self,
        points: &[Point],
        targets: &[usize],
        mut sink: impl FnMut(Gradient<'_>),
    ) -> Result<(), ExplainError> {
        let slopes = self.slopes(points, targets)?;
        let (case, count) = (self.case, targets.len());
        let rows = (0..points.len() * count).map(|at| {
            let (point, which) = (at / count, at % count);
            self.row(vec![points[point].clone(), Extra::Values(slopes.at(point, which))])
        });
        let mut failed = None;
        case.lane.stream(&self.graph.gradient, rows, |place, out| {
            let (point, which) = (place / count, place % count);
            let [logits, slope] = &out.values[..] else { return };
            match case.scalars(logits) {
                Ok(values) => {
                    let target = targets[which];
                    sink(Gradient { point, target, value: values[target], slope });
                }
                Err(error) => failed = Some(error),
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// One sum over the hidden axis for each token.
    pub fn by_token(&self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.tokens];
        for (at, value) in values.enumerate() {
            sums[at / self.hidden] += value;
        }
        sums
    }

    fn row(&self, extras: Vec<Extra>) -> Row {
        Row { extras, ..self.case.row.clone() }
    }

    fn slopes(&self, points: &[Point], targets: &[usize]) -> Result<Slopes, ExplainError> {
        let (labels, output) = (&self.case.subject.model.labels, self.case.subject.output);
        let at = |logits: &[f32]| {
            let of =
                |&target: &usize| Ok(cotangent(labels, output, logits, self.case.targets[target])?.into());
            targets.iter().map(of).collect::<Result<Vec<Arc<[f32]>>, ExplainError>>()
        };
        if output == Output::Logit {
            return Ok(Slopes::Same(at(&self.case.logits)?));
        }
        let logits = self.logits(points.to_vec())?;
        Ok(Slopes::Each(logits.iter().map(|it| at(it)).collect::<Result<_, _>>()?))
    }
}

/// Cotangents of the logits, one for each target, at every point or at each.
enum Slopes {
    Same(Vec<Arc<[f32]>>),
    Each(Vec<Vec<Arc<[f32]>>>),
}

impl Slopes {
    fn at(&self, point: usize, target: usize) -> Arc<[f32]> {
        match self {
            Self::Same(slopes) => slopes[target].clone(),
            Self::Each(slopes) => slopes[point][target].clone(),
        }
    }
}

fn first(out: RowOut) -> Vec<f32> {
    out.values.into_iter().next().unwrap_or_default()
}
