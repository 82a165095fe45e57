//! Leave one out: the score that is lost when a feature is taken out.

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Masker, Method, Misfit, Operation, Price, Subject, Typed,
        attributions, distribution::Shift, nothing_more,
    },
    model::{
        Need, Output,
        text::{Feature, windows},
    },
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&LEAVE_ONE_OUT;

static LEAVE_ONE_OUT: Typed<LeaveOneOut> = Typed {
    about: About {
        slug: "leave-one-out",
        family: Family::Perturbation,
        summary: "The score that is lost when a feature is taken out of the text.",
        reference: "Li, Monroe and Jurafsky (2016), Understanding Neural Networks through Representation \
                    Erasure, arXiv:1612.08220",
        output: Output::Logit,
        needs: &[Need::Forward],
        stops_early: false,
        example: r#"{"operation": "mask"}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of leave-one-out.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeaveOneOut {
    /// How a feature is taken out.
    #[schema(default = "mask")]
    pub operation: Operation,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
    /// Take out windows of consecutive words instead of the request's granularity; windows may overlap, and
    /// each gets a score of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub window: Option<Window>,
}

/// Windows of consecutive words.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Words in a window.
    #[schema(minimum = 1)]
    pub window: usize,
    /// Words from the start of one window to the start of the next.
    #[serde(default = "one")]
    #[schema(minimum = 1, default = 1)]
    pub stride: usize,
}

fn one() -> usize {
    1
}

impl LeaveOneOut {
    fn features(&self, subject: &Subject<'_>) -> Result<Vec<Feature>, ExplainError> {
        match self.window {
            None => Ok(subject.features.to_vec()),
            Some(it) => windows(subject.encoded, it.window, it.stride)
                .map_err(|error| Misfit::parameter("window", error.to_string()).into()),
        }
    }

    fn masker(&self, subject: &Subject<'_>, features: &[Feature]) -> Result<Masker, ExplainError> {
        Masker::new(subject, features, self.operation, self.replacements.as_deref())
    }
}

/// One row for each feature and one with all of them gone, as often as there are replacements.
fn price(parameters: &LeaveOneOut, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = parameters.features(subject)?;
    let masker = parameters.masker(subject, &features)?;
    Ok(Price { forward: ((masker.len() + 1) * masker.variants()) as u64, gradient: 0 })
}

/// `score(f) = v(x) − v(x without f)`.
fn run(parameters: &LeaveOneOut, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let features = parameters.features(&case.subject)?;
    let masker = parameters.masker(&case.subject, &features)?;
    let mut rows: Vec<_> = (0..features.len()).flat_map(|gone| masker.rows(|it| it == gone)).collect();
    rows.extend(masker.rows(|_| true));

    let logits = case.forward(rows)?;
    let full = case.scalars(&case.logits)?;
    let scalars = logits.iter().map(|it| case.scalars(it)).collect::<Result<Vec<_>, _>>()?;
    let variants = masker.variants();
    let shift =
        Shift::measure(&case.subject.model.labels, &case.logits, &logits[..features.len() * variants])?;

    let finding = |target: usize| {
        let mean = |group: usize| {
            let of = &scalars[group * variants..(group + 1) * variants];
            of.iter().map(|it| it[target]).sum::<f64>() / variants as f64
        };
        let value = full[target];
        let scores: Vec<f64> = (0..features.len()).map(|gone| value - mean(gone)).collect();
        let base = mean(features.len());
        let mut evidence = Map::new();
        evidence.insert("interaction_residual".into(), json!(scores.iter().sum::<f64>() - (value - base)));
        evidence.insert("raises_score".into(), json!(indices(&scores, |score| score < 0.0)));
        evidence.insert("perturbed_rows".into(), json!(shift));
        Finding {
            value,
            base_value: Some(base),
            attributions: attributions(case.subject.encoded, &features, &scores),
            evidence,
            details: None,
        }
    };
    Ok((0..case.targets.len()).map(finding).collect())
}

fn indices(scores: &[f64], which: impl Fn(f64) -> bool) -> Vec<usize> {
    (0..scores.len()).filter(|&at| which(scores[at])).collect()
}
