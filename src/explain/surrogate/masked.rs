//! Where a text becomes a game: a coalition is the text with every other feature taken out.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::explain::{
    Attribution, Case, ExplainError, Masker, Misfit, Subject, attributions,
    distribution::Drift,
    estimators::{self, Coalition, Ended, EstimateError, Game, Stop, mean_and_variance},
};

/// Coalitions handed over at once, so that rows of one length are many.
const CHUNK: usize = 1024;
/// Tokens handed over at once where a deadline should leave something to answer with, and the fewest rows.
const PARTIAL_TOKENS: usize = 4096;
const PARTIAL_ROWS: usize = 8;

/// The game whose worth is the explained scalar of every target.
pub(super) struct Masked<'a> {
    case: &'a Case<'a>,
    masker: Masker,
    what: What,
    partial: bool,
    chunk: usize,
    drift: Drift,
    /// How often each coalition was evaluated.
    seen: HashMap<Coalition, usize>,
    /// With [`What::Kept`], how far each evaluation of a coalition lies from the input.
    drifts: HashMap<Coalition, Vec<Drift>>,
    /// Draws where one feature is present or one is absent, where the error of draws is wanted.
    edge: Option<usize>,
    /// The variance of each drawn coalition's mean, by output.
    spread: HashMap<Coalition, Vec<f64>>,
}

/// What a row's outputs are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum What {
    /// The scalars of all targets.
    Scalars,
    /// The scalars of all targets, then for each target whether the decision is for it.
    ScalarsAndDecisions,
    /// For each target, whether the decision on it is that of the input.
    Kept,
}

impl<'a> Masked<'a> {
    pub(super) fn new(case: &'a Case<'a>, masker: Masker, what: What, partial: bool) -> Self {
        let rows = if partial { partial_rows(case.subject.encoded.tokens.len()) } else { CHUNK };
        let chunk = (rows / masker.variants()).max(1);
        let (drift, seen, drifts, spread) =
            (Drift::default(), HashMap::new(), HashMap::new(), HashMap::new());
        Self { case, masker, what, partial, chunk, drift, seen, drifts, edge: None, spread }
    }

    /// The same, keeping the error of drawn worths; `edge` draws where one feature is present or one is absent.
    pub(super) fn with_spread(self, edge: usize) -> Self {
        Self { edge: Some(edge), ..self }
    }

    /// Whether worths are means over draws.
    pub(super) fn drawn(&self) -> bool {
        self.masker.draws()
    }

    /// How far the perturbed texts so far lie from the input, for the evidence.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub(super) fn shift(&self) -> Result<Value, ExplainError> {
        let labels = &self.case.subject.model.labels;
        Ok(json!(self.drift.against(labels, &self.case.logits)?))
    }

    /// The same for the evaluations `asked` for alone; [`What::Kept`] knows them one by one.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub(super) fn shift_over(&self, asked: &[Coalition]) -> Result<Value, ExplainError> {
        let (mut drift, mut numbers) = (Drift::default(), HashMap::new());
        for coalition in asked {
            let number = numbers.entry(coalition).or_insert(0);
            let of = self.drifts.get(coalition).and_then(|all| all.get(*number));
            of.into_iter().for_each(|it| drift.join(it));
            *number += 1;
        }
        Ok(json!(drift.against(&self.case.subject.model.labels, &self.case.logits)?))
    }

    fn outputs_of(&self, logits: &[f32]) -> Result<Vec<f64>, ExplainError> {
        let labels = &self.case.subject.model.labels;
        let number = |holds: bool| f64::from(u8::from(holds));
        let decided = |logits: &[f32]| -> Result<Vec<bool>, ExplainError> {
            let all = labels.decisions(logits)?;
            Ok(self.case.targets.iter().map(|&target| all[target]).collect())
        };
        Ok(match self.what {
            What::Scalars => self.case.scalars(logits)?,
            What::ScalarsAndDecisions => {
                let mut all = self.case.scalars(logits)?;
                all.extend(decided(logits)?.into_iter().map(number));
                all
            }
            What::Kept => {
                let of_input = decided(&self.case.logits)?;
                decided(logits)?.iter().zip(of_input).map(|(now, then)| number(*now == then)).collect()
            }
        })
    }

    /// A deadline is one to an estimator only where its estimate so far is wanted.
    fn stop(&self, error: ExplainError) -> Stop {
        match error {
            ExplainError::Deadline if self.partial => Stop::Deadline,
            ExplainError::Cancelled => Stop::Cancelled,
            other => Stop::Failed(Box::new(other)),
        }
    }

    fn rows(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, ExplainError> {
        let mut counts = Vec::with_capacity(coalitions.len());
        let mut rows = Vec::new();
        for coalition in coalitions {
            let before = self.seen.entry(coalition.clone()).or_insert(0);
            let absent = |feature| !coalition.contains(feature);
            let (variants, drawn) = match self.edge {
                Some(edge) => self.masker.weighted(absent, *before, edge),
                None => {
                    let rows = self.masker.rows(absent, *before);
                    let weight = 1.0 / rows.len() as f64;
                    (rows.into_iter().map(|row| (row, weight)).collect(), false)
                }
            };
            *before += 1;
            let (of, weights): (Vec<_>, Vec<f64>) = variants.into_iter().unzip();
            counts.push((weights, drawn));
            rows.extend(of);
        }
        let logits = self.case.forward(rows)?;
        let labels = &self.case.subject.model.labels;
        let mut logits = logits.iter();
        let mut all = Vec::with_capacity(coalitions.len());
        for (coalition, (weights, drawn)) in coalitions.iter().zip(counts) {
            let (mut mean, mut drift) = (vec![0.0; self.outputs()], Drift::default());
            let mut draws = vec![Vec::new(); if drawn { mean.len() } else { 0 }];
            // The weights end first: the other way round a row would be lost.
            for (weight, logits) in weights.iter().zip(logits.by_ref()) {
                let outputs = self.outputs_of(logits)?;
                draws.iter_mut().zip(&outputs).for_each(|(draws, it)| draws.push(*it));
                mean.iter_mut().zip(outputs).for_each(|(mean, it)| *mean += it * weight);
                // The whole text is not perturbed.
                if coalition.len() < coalition.players() {
                    drift.add(labels, logits, *weight)?;
                }
            }
            self.drift.join(&drift);
            if self.what == What::Kept {
                self.drifts.entry(coalition.clone()).or_default().push(drift);
            }
            if drawn {
                let spread = draws.iter().map(|it| mean_and_variance(it).1).collect();
                self.spread.insert(coalition.clone(), spread);
            }
            all.push(mean);
        }
        Ok(all)
    }
}

impl Game for Masked<'_> {
    fn players(&self) -> usize {
        self.masker.len()
    }

    fn outputs(&self) -> usize {
        self.case.targets.len() * if self.what == What::ScalarsAndDecisions { 2 } else { 1 }
    }

    fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
        self.rows(coalitions).map_err(|error| self.stop(error))
    }

    fn spread(&self, coalition: &Coalition) -> Option<Vec<f64>> {
        let certain = || vec![0.0; self.outputs()];
        let kept = self.edge.is_some() && self.drawn();
        kept.then(|| self.spread.get(coalition).cloned().unwrap_or_else(certain))
    }

    fn check(&self) -> Result<(), Stop> {
        self.case.lane.check().map_err(|stop| self.stop(stop.into()))
    }

    fn chunk(&self) -> usize {
        self.chunk
    }
}

/// Rows of so many tokens to hand over at once where a deadline should leave something to answer with.
fn partial_rows(tokens: usize) -> usize {
    (PARTIAL_TOKENS / tokens.max(1)).clamp(PARTIAL_ROWS, CHUNK)
}

/// What a regression takes interactions between features for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Regression {
    /// A smooth part of the model, fitted beside the values: several times less error at equal samples.
    #[default]
    Interactions,
    /// Noise, as in the paper.
    Linear,
}

impl From<Regression> for estimators::Regression {
    fn from(it: Regression) -> Self {
        match it {
            Regression::Interactions => Self::Interactions,
            Regression::Linear => Self::Linear,
        }
    }
}

/// What a request is told when an estimator has nothing to say.
pub(super) fn refuse(error: EstimateError, subject: &Subject<'_>) -> ExplainError {
    let detail = error.to_string();
    match error {
        EstimateError::Parameter { parameter, value, limit } => {
            Misfit::parameter(parameter, format!("is {value}, {limit}")).into()
        }
        EstimateError::NoPlayers => Misfit::new(subject.pointer, detail).into(),
        EstimateError::TooManyPlayers { limit, .. } => {
            Misfit::over(subject.pointer, detail, "features", limit as u64).into()
        }
        EstimateError::Stopped(stop) => unwind(stop),
    }
}

fn unwind(stop: Stop) -> ExplainError {
    match stop {
        Stop::Deadline => ExplainError::Deadline,
        Stop::Cancelled => ExplainError::Cancelled,
        Stop::Failed(cause) => match cause.downcast::<ExplainError>() {
            Ok(error) => *error,
            Err(other) => ExplainError::Internal(other.to_string()),
        },
    }
}

/// The evidence of how an estimate ended. An estimate that a deadline cut short is an answer only where
/// `partial` was asked for.
///
/// # Errors
/// What stopped it, otherwise.
pub(super) fn settle(
    ended: Ended,
    evaluations: usize,
    partial: bool,
) -> Result<Map<String, Value>, ExplainError> {
    let mut evidence = Map::new();
    evidence.insert("ended".into(), json!(ended.name()));
    evidence.insert("evaluations".into(), json!(evaluations));
    match ended {
        Ended::Stopped(Stop::Deadline) if partial => {
            evidence.insert("partial".into(), json!(true));
        }
        Ended::Stopped(stop) => return Err(unwind(stop)),
        Ended::Exhausted | Ended::Tolerance | Ended::Budget => {}
    }
    Ok(evidence)
}

/// One attribution a feature, with its standard error where there is one.
pub(super) fn with_errors(case: &Case<'_>, scores: &[f64], errors: &[f64]) -> Vec<Attribution> {
    let mut all = attributions(case.subject.encoded, case.subject.features, scores);
    all.iter_mut()
        .zip(errors)
        .for_each(|(it, &error)| it.standard_error = error.is_finite().then_some(error));
    all
}

/// The text of a feature.
pub(super) fn text<'a>(subject: &Subject<'a>, feature: usize) -> &'a str {
    let it = &subject.features[feature];
    subject.encoded.slice(it.segment, it.start, it.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_handed_over_before_a_deadline_are_fewer_the_longer_they_are() {
        assert_eq!([4, 32, 128, 512, 8192].map(partial_rows), [1024, 128, 32, 8, 8]);
    }
}
