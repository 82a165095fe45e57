//! Gradient SHAP: expected gradients over a set of baselines.

use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{Baseline, BaselineKind, Embedded, Point, Start, price_of};
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
    /// The set from which baselines are drawn; each kind counts alike, and once however often it is named.
    #[schema(max_items = 6, default = json!(["pad", "mask", "zero", "random"]))]
    pub baselines: Vec<BaselineKind>,
    /// Points drawn, shared evenly between the kinds of baseline; at least one for each.
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

/// All kinds but `text`.
const MOST_BASELINES: usize = 6;

impl GradientShap {
    /// The baselines, each kind once.
    fn starts(&self, subject: &Subject<'_>) -> Result<Vec<Baseline>, ExplainError> {
        let named = self.baselines.len();
        if named > MOST_BASELINES {
            let detail = format!("names {named} baselines; at most {MOST_BASELINES} are drawn from");
            let limit = MOST_BASELINES as u64;
            return Err(Misfit::over("/parameters/baselines", detail, "baselines", limit).into());
        }
        if self.baselines.is_empty() {
            return Err(Misfit::parameter("baselines", "holds no baseline").into());
        }
        if let Some(at) = self.baselines.iter().position(|it| *it == BaselineKind::Text) {
            let detail = "`text` is a baseline of integrated-gradients only";
            return Err(Misfit::parameter(&format!("baselines/{at}"), detail).into());
        }
        let kinds = self.baselines.iter().enumerate();
        let first = kinds.filter(|(at, kind)| !self.baselines[..*at].contains(kind));
        first.map(|(_, &kind)| Baseline::read(kind, None, self.draws, subject)).collect()
    }
}

/// One gradient for each sample; the scores of the input and of every baseline.
fn price(parameters: &GradientShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let kinds = parameters.starts(subject)?;
    let bases: usize = kinds.iter().map(Baseline::draws).sum();
    let samples = parameters.samples.max(kinds.len()) as u64;
    let samples = price_of(samples, subject.targets, subject.output);
    Ok(Price { forward: samples.forward + 1 + bases as u64, gradient: samples.gradient })
}

/// `score(token) = E[Σ_h (e − b)_h · ∂v/∂e_h (b + α(e − b))]`, `α ~ U(0, 1)`, `b` from the set.
///
/// Every kind of baseline counts alike, whatever its share of the samples; `α` is stratified within each kind:
/// unbiased, with less variance than independent draws. Standard errors treat the samples of a kind as independent
/// and so are conservative; there is none where a kind has one sample.
fn run(parameters: &GradientShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let kinds = parameters.starts(&case.subject)?;
    let groups: Vec<Vec<Start>> = kinds.iter().map(|it| it.starts(&embedded)).collect();
    let mut ends = vec![Point::Values(embedded.x.clone())];
    ends.extend(groups.iter().flatten().map(Start::point));
    let values = embedded.values(ends)?;

    let plan = plan(parameters.samples, groups.len());
    let samples = plan.len();
    let start_of = |sample: usize| {
        let Drawn { kind, place, .. } = plan[sample];
        &groups[kind][place % groups[kind].len()]
    };
    let points: Vec<Point> = (0..samples)
        .map(|sample| {
            let within: f64 = random::stream(case.subject.seed, SHARES + sample as u64).random();
            let Drawn { place, of, .. } = plan[sample];
            start_of(sample).towards(((place as f64 + within) / of as f64) as f32)
        })
        .collect();
    let targets: Vec<usize> = (0..case.targets.len()).collect();
    let mut draws = vec![vec![Vec::new(); samples]; targets.len()];
    embedded.gradients(&points, &targets, |it| {
        let way = start_of(it.point).way();
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
        let (scores, _) = moments(&plan, &draws[target], embedded.tokens);
        let base = base_of(target);
        let mut evidence = Map::new();
        let delta = scores.iter().sum::<f64>() - (values[0][target] - base);
        evidence.insert("completeness_delta".into(), json!(delta));
        evidence.insert("samples".into(), json!(samples));
        let mut finding = token_finding(case, values[0][target], Some(base), &scores, evidence);
        standard_errors(case, &plan, &draws[target], &mut finding);
        finding
    };
    Ok(targets.iter().map(|&target| finding(target)).collect())
}

/// Where the streams of `α` begin; those of random baselines lie below.
const SHARES: u64 = 1 << 32;

/// One sample: the `place`-th of the `of` that its kind of baseline has.
#[derive(Clone, Copy)]
struct Drawn {
    kind: usize,
    place: usize,
    of: usize,
}

/// The kinds in turn, each at least once.
fn plan(samples: usize, kinds: usize) -> Vec<Drawn> {
    let samples = samples.max(kinds);
    let drawn = |sample: usize| {
        let kind = sample % kinds;
        Drawn { kind, place: sample / kinds, of: (samples - kind).div_ceil(kinds) }
    };
    (0..samples).map(drawn).collect()
}

/// The mean of the kinds' means and its standard error, position by position.
fn moments(plan: &[Drawn], draws: &[Vec<f64>], width: usize) -> (Vec<f64>, Vec<f64>) {
    let kinds = plan.iter().map(|it| it.kind + 1).max().unwrap_or(1);
    let mut means = vec![vec![0.0; width]; kinds];
    for (it, draw) in plan.iter().zip(draws) {
        means[it.kind].iter_mut().zip(draw).for_each(|(mean, value)| *mean += value / it.of as f64);
    }
    let mut errors = vec![0.0; width];
    for (it, draw) in plan.iter().zip(draws) {
        let scale = (it.of * (it.of - 1) * kinds * kinds) as f64;
        for ((error, value), mean) in errors.iter_mut().zip(draw).zip(&means[it.kind]) {
            *error += (value - mean).powi(2) / scale;
        }
    }
    errors.iter_mut().for_each(|it| *it = it.sqrt());
    let mean = |at: usize| means.iter().map(|of| of[at]).sum::<f64>() / kinds as f64;
    ((0..width).map(mean).collect(), errors)
}

/// Standard errors of the features' sums, and of the special tokens behind them.
fn standard_errors(case: &Case<'_>, plan: &[Drawn], draws: &[Vec<f64>], finding: &mut Finding) {
    let features = case.subject.features;
    let special = case.subject.encoded.tokens.iter().enumerate().filter(|(_, it)| it.special);
    let groups: Vec<Vec<usize>> =
        features.iter().map(|it| it.tokens.clone()).chain(special.map(|(at, _)| vec![at])).collect();
    let sums: Vec<Vec<f64>> = draws
        .iter()
        .map(|draw| groups.iter().map(|group| group.iter().map(|&at| draw[at]).sum()).collect())
        .collect();
    let (_, errors) = moments(plan, &sums, groups.len());
    for (attribution, error) in finding.attributions.iter_mut().zip(errors) {
        attribution.standard_error = error.is_finite().then_some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_baseline_counts_alike() {
        for samples in [2, 4, 5, 64] {
            let plan = plan(samples, 3);
            let draws: Vec<_> = plan.iter().map(|it| vec![[1.0, 2.0, 6.0][it.kind]]).collect();
            assert_eq!(plan.len(), samples.max(3));
            assert!((moments(&plan, &draws, 1).0[0] - 3.0).abs() < 1e-12, "{samples}");
        }
    }

    #[test]
    fn the_strata_of_a_kind_cover_the_whole_path() {
        for it in plan(64, 3) {
            let count = plan(64, 3).iter().filter(|other| other.kind == it.kind).count();
            assert!(it.place < it.of && it.of == count);
        }
    }

    #[test]
    fn one_sample_of_a_kind_tells_no_standard_error() {
        let error = |samples| {
            let plan = plan(samples, 2);
            let draws: Vec<_> = (0..plan.len()).map(|it| vec![it as f64]).collect();
            moments(&plan, &draws, 1).1[0]
        };
        assert!(error(3).is_nan() && error(4) > 0.0);
    }
}
