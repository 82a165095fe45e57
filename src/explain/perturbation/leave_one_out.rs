//! Leave one out: the score that is lost when a feature is taken out.

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Misfit, Operation, Price, Removal,
        Subject, Typed, attributions, distribution::Drift,
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
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of leave-one-out.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeaveOneOut {
    /// How a feature is taken out.
    #[schema(default = "mask")]
    pub operation: Operation,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
    /// For `neighbors` and `mlm`: how many words may stand for a word. A feature of one word gets all of them, a
    /// feature of several as many joint fillings.
    #[schema(minimum = 1, maximum = 100, default = 10)]
    pub k: usize,
    /// For `mlm`: fillers below this probability are left out, the most probable stays.
    #[schema(minimum = 0.0, maximum = 1.0, default = 0.0)]
    pub floor: f64,
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

impl Default for LeaveOneOut {
    fn default() -> Self {
        Self { operation: Operation::default(), replacements: None, k: 10, floor: 0.0, window: None }
    }
}

impl LeaveOneOut {
    fn features(&self, subject: &Subject<'_>) -> Result<Vec<Feature>, ExplainError> {
        match self.window {
            None => Ok(subject.features.to_vec()),
            Some(it) => windows(subject.encoded, it.window, it.stride)
                .map_err(|error| Misfit::parameter("window", error.to_string()).into()),
        }
    }

    fn removal(&self) -> Removal<'_> {
        let Self { operation, k, floor, .. } = *self;
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws: k }
    }
}

/// One row for each feature and one with all of them gone, as often as there are replacements; with `mlm` one row
/// of the companion for each feature, and fewer replacements where the vocabulary or the floor leaves fewer.
fn price(parameters: &LeaveOneOut, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = parameters.features(subject)?;
    let Effort { variants, once } = parameters.removal().effort(subject, &features)?;
    Ok(Price { forward: ((features.len() + 1) * variants + once) as u64, gradient: 0 })
}

/// `score(f) = v(x) − v(x without f)`.
fn run(parameters: &LeaveOneOut, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let features = parameters.features(&case.subject)?;
    let masker = parameters.removal().masker(case, &features)?;
    let mut groups: Vec<_> = (0..features.len()).map(|gone| masker.without(gone)).collect();
    let empty = masker.rows(|_| true, 0);
    let share = 1.0 / empty.len() as f64;
    groups.push(empty.into_iter().map(|row| (row, share)).collect());

    let logits = case.forward(groups.iter().flatten().map(|(row, _)| row.clone()).collect())?;
    let full = case.scalars(&case.logits)?;
    let labels = &case.subject.model.labels;
    let mut drift = Drift::default();
    let mut means = vec![vec![0.0; full.len()]; groups.len()];
    let mut answers = logits.iter();
    for (group, (rows, mean)) in groups.iter().zip(&mut means).enumerate() {
        for ((_, weight), logits) in rows.iter().zip(&mut answers) {
            mean.iter_mut().zip(case.scalars(logits)?).for_each(|(mean, it)| *mean += weight * it);
            if group < features.len() {
                drift.add(labels, logits, *weight)?;
            }
        }
    }
    let shift = drift.against(labels, &case.logits)?;
    let fillers = masker.fillers(case.subject.model).map(|it| json!({ "fillers": it }));

    let finding = |target: usize| {
        let mean = |group: usize| means[group][target];
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
            details: fillers.clone(),
        }
    };
    Ok((0..case.targets.len()).map(finding).collect())
}

fn indices(scores: &[f64], which: impl Fn(f64) -> bool) -> Vec<usize> {
    (0..scores.len()).filter(|&at| which(scores[at])).collect()
}
