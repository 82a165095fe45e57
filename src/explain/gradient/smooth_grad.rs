//! SmoothGrad: the gradient averaged over noisy copies of the input.

use std::sync::Arc;

use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::{Embedded, Point, price_of, token_finding};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Misfit, Price, Subject, Typed, nothing_more,
        random,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&SMOOTH_GRAD;

static SMOOTH_GRAD: Typed<SmoothGrad> = Typed {
    about: About {
        slug: "smooth-grad",
        family: Family::Gradient,
        summary: "The length of the gradient averaged over noisy copies of the input's embeddings.",
        reference: "Smilkov et al. (2017), SmoothGrad, arXiv:1706.03825",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: false,
        example: r#"{"samples": 16}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of SmoothGrad.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SmoothGrad {
    /// Standard deviation of the noise, relative to that of the input's own embedding components.
    #[schema(minimum = 0.0, maximum = 10.0, default = 0.1)]
    pub noise: f64,
    /// Noisy copies.
    #[schema(minimum = 1, maximum = 4096, default = 32)]
    pub samples: usize,
    /// Multiply the mean gradient by the embedding and sum, instead of taking its length.
    #[schema(default = false)]
    pub times_input: bool,
}

impl Default for SmoothGrad {
    fn default() -> Self {
        Self { noise: 0.1, samples: 32, times_input: false }
    }
}

/// One gradient for each sample, and the score of the input itself.
fn price(parameters: &SmoothGrad, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    if !parameters.noise.is_finite() || parameters.noise < 0.0 {
        return Err(Misfit::parameter("noise", "must be a finite number of at least 0").into());
    }
    let samples = price_of(parameters.samples as u64, subject.targets, subject.output);
    Ok(Price { forward: samples.forward + 1, gradient: samples.gradient })
}

/// `score(token) = ‖1/n Σ ∂v/∂e (e + ε)‖`, `ε ~ N(0, (noise·sd(e))²)`; special tokens get no noise.
fn run(parameters: &SmoothGrad, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let scale = (parameters.noise * random::deviation(&embedded.x)) as f32;
    let special: Arc<[bool]> = (0..embedded.tokens).map(|token| embedded.is_special(token)).collect();
    let noisy = |sample: usize| {
        let (x, special, hidden) = (embedded.x.clone(), special.clone(), embedded.hidden);
        let seed = case.subject.seed;
        Point::Fill(Arc::new(move |into: &mut [f32]| {
            let mut generator = random::stream(seed, sample as u64);
            for (at, (into, x)) in into.iter_mut().zip(&*x).enumerate() {
                let noise: f32 = StandardNormal.sample(&mut generator);
                *into = if special[at / hidden] { *x } else { x + scale * noise };
            }
        }))
    };
    let points: Vec<Point> = (0..parameters.samples).map(noisy).collect();
    let targets: Vec<usize> = (0..case.targets.len()).collect();
    let values = embedded.values(vec![Point::Values(embedded.x.clone())])?;
    let mut means = vec![vec![0.0f64; embedded.x.len()]; targets.len()];
    let mut spread = vec![0.0f64; targets.len()];
    embedded.gradients(&points, &targets, |it| {
        spread[it.target] += (it.value - values[0][it.target]).powi(2) / parameters.samples as f64;
        for (mean, slope) in means[it.target].iter_mut().zip(it.slope) {
            *mean += f64::from(*slope) / parameters.samples as f64;
        }
    })?;
    let finding = |target: usize| {
        let mean = &means[target];
        let scores: Vec<f64> = match parameters.times_input {
            true => embedded.by_token(mean.iter().zip(&*embedded.x).map(|(g, x)| g * f64::from(*x))),
            false => mean
                .chunks(embedded.hidden)
                .map(|row| row.iter().map(|g| g * g).sum::<f64>().sqrt())
                .collect(),
        };
        let mut evidence = Map::new();
        evidence.insert("noise_sd".into(), json!(scale));
        evidence.insert("value_sd_under_noise".into(), json!(spread[target].sqrt()));
        evidence.insert("samples".into(), json!(parameters.samples));
        token_finding(case, values[0][target], None, &scores, evidence)
    };
    Ok(targets.iter().map(|&target| finding(target)).collect())
}
