//! Gradient SHAP: expected gradients over a set of baselines.

use std::sync::Arc;

use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{Baseline, BaselineKind, Embedded, Point, price_of};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Misfit, Price, Subject, Typed,
        gradient::token_finding, nothing_more, random,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&GRADIENT_SHAP;

static GRADIENT_SHAP: Typed<GradientShap> = Typed {
    about: About {
        slug: "gradient-shap",
        family: Family::Gradient,
        summary: "The expected gradient at a random point between a random baseline and the input, times the \
                  way between them.",
        reference: "Erion et al. (2021), Improving performance of deep learning models with axiomatic \
                    attribution priors and expected gradients, arXiv:1906.10670",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: false,
        example: r#"{"samples": 32}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of gradient SHAP.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GradientShap {
    /// The set from which baselines are drawn; each kind counts alike.
    #[schema(default = json!(["pad", "mask", "zero", "random"]))]
    pub baselines: Vec<BaselineKind>,
    /// Points drawn.
    #[schema(minimum = 2, maximum = 4096, default = 64)]
    pub samples: usize,
    /// Random baselines in the set, for the kind `random`.
    #[schema(minimum = 1, maximum = 64, default = 8)]
    pub draws: usize,
}

impl Default for GradientShap {
    fn default() -> Self {
        let baselines = vec![BaselineKind::Pad, BaselineKind::Mask, BaselineKind::Zero, BaselineKind::Random];
        Self { baselines, samples: 64, draws: 8 }
    }
}

impl GradientShap {
    fn starts(&self, subject: &Subject<'_>) -> Result<Vec<Baseline>, ExplainError> {
        if self.baselines.is_empty() {
            return Err(Misfit::parameter("baselines", "holds no baseline").into());
        }
        if let Some(at) = self.baselines.iter().position(|it| *it == BaselineKind::Text) {
            let detail = "`text` is a baseline of integrated-gradients only";
            return Err(Misfit::parameter(&format!("baselines/{at}"), detail).into());
        }
        self.baselines.iter().map(|&kind| Baseline::read(kind, None, self.draws, subject)).collect()
    }
}

/// One gradient for each sample; the scores of the input and of every baseline.
fn price(parameters: &GradientShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let bases: usize = parameters.starts(subject)?.iter().map(Baseline::draws).sum();
    let samples = price_of(parameters.samples as u64, subject.targets, subject.output);
    Ok(Price { forward: samples.forward + 1 + bases as u64, gradient: samples.gradient })
}

/// `score(token) = E[Σ_h (e − b)_h · ∂v/∂e_h (b + α(e − b))]`, `α ~ U(0, 1)`, `b` from the set.
///
/// Samples go through the baselines in turn, and `α` is stratified within each baseline's samples: unbiased,
/// with less variance than independent draws. Standard errors treat samples as independent and so are
/// conservative.
fn run(parameters: &GradientShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let kinds = parameters.starts(&case.subject)?;
    let groups: Vec<Vec<Arc<[f32]>>> = kinds.iter().map(|it| it.points(&embedded)).collect();
    let mut ends = vec![Point::Values(embedded.x.clone())];
    ends.extend(groups.iter().flatten().cloned().map(Point::Values));
    let values = embedded.values(ends)?;

    let samples = parameters.samples;
    let start_of = |sample: usize| {
        let group = &groups[sample % groups.len()];
        &group[(sample / groups.len()) % group.len()]
    };
    let strata = samples.div_ceil(groups.len());
    let points: Vec<Point> = (0..samples)
        .map(|sample| {
            let within: f64 = random::stream(case.subject.seed, sample as u64).random();
            let share = ((sample / groups.len()) as f64 + within) / strata as f64;
            Embedded::between(start_of(sample), &embedded.x, share as f32)
        })
        .collect();
    let targets: Vec<usize> = (0..case.targets.len()).collect();
    let mut draws = vec![vec![Vec::new(); samples]; targets.len()];
    embedded.gradients(&points, &targets, |it| {
        let way = embedded.x.iter().zip(&**start_of(it.point)).map(|(x, b)| f64::from(*x) - f64::from(*b));
        let along = it.slope.iter().zip(way).map(|(slope, way)| f64::from(*slope) * way);
        draws[it.target][it.point] = embedded.by_token(along);
    })?;

    let base_of = |target: usize| {
        let mut first = 1;
        let means = groups.iter().map(|group| {
            let of = &values[first..first + group.len()];
            first += group.len();
            of.iter().map(|it| it[target]).sum::<f64>() / group.len() as f64
        });
        means.sum::<f64>() / groups.len() as f64
    };
    let finding = |target: usize| {
        let (scores, _) = moments(&draws[target], embedded.tokens);
        let base = base_of(target);
        let mut evidence = Map::new();
        let delta = scores.iter().sum::<f64>() - (values[0][target] - base);
        evidence.insert("completeness_delta".into(), json!(delta));
        evidence.insert("samples".into(), json!(samples));
        let mut finding = token_finding(case, values[0][target], Some(base), &scores, evidence);
        standard_errors(case, &draws[target], &mut finding);
        finding
    };
    Ok(targets.iter().map(|&target| finding(target)).collect())
}

/// Mean and standard error of the mean, position by position.
fn moments(draws: &[Vec<f64>], width: usize) -> (Vec<f64>, Vec<f64>) {
    let n = draws.len() as f64;
    let mut means = vec![0.0; width];
    draws.iter().for_each(|draw| means.iter_mut().zip(draw).for_each(|(mean, it)| *mean += it / n));
    let mut errors = vec![0.0; width];
    for draw in draws {
        for ((error, it), mean) in errors.iter_mut().zip(draw).zip(&means) {
            *error += (it - mean).powi(2);
        }
    }
    errors.iter_mut().for_each(|it| *it = (*it / (n * (n - 1.0).max(1.0))).sqrt());
    (means, errors)
}

/// Standard errors of the features' sums, and of the special tokens behind them.
fn standard_errors(case: &Case<'_>, draws: &[Vec<f64>], finding: &mut Finding) {
    let features = case.subject.features;
    let special = case.subject.encoded.tokens.iter().enumerate().filter(|(_, it)| it.special);
    let groups: Vec<Vec<usize>> =
        features.iter().map(|it| it.tokens.clone()).chain(special.map(|(at, _)| vec![at])).collect();
    let sums: Vec<Vec<f64>> = draws
        .iter()
        .map(|draw| groups.iter().map(|group| group.iter().map(|&at| draw[at]).sum()).collect())
        .collect();
    let (_, errors) = moments(&sums, groups.len());
    for (attribution, error) in finding.attributions.iter_mut().zip(errors) {
        attribution.standard_error = Some(error);
    }
}
