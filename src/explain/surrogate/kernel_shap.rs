//! Kernel SHAP: Shapley values by regression over few subsets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    masked::{Masked, Regression, What, refuse},
    shapley::{findings, paired_rows, paired_samples, spent},
};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Operation, Price, Removal, Subject,
        Typed, estimators,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&KERNEL_SHAP;

static KERNEL_SHAP: Typed<KernelShap> = Typed {
    about: About {
        slug: "kernel-shap",
        family: Family::Surrogate,
        summary: "The Shapley value of a feature, estimated by regression over pairs of a subset and its \
                  complement.",
        reference: "Lundberg and Lee (2017), A Unified Approach to Interpreting Model Predictions, \
                    arXiv:1705.07874; Musco and Witter (2025), Provably Accurate Shapley Value Estimation via \
                    Leverage Score Sampling, arXiv:2410.01917",
        output: Output::Logit,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"samples": 64}"#,
    },
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of Kernel SHAP.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KernelShap {
    /// Subsets evaluated at most, at least twice the features; by default 1,024, or six times the features up to
    /// 10,000 where that is more. When all subsets are no more than this, the values are exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 2, maximum = 200_000)]
    pub samples: Option<usize>,
    /// Stop as soon as the largest standard error is at or below this, in units of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, exclusive_minimum = 0.0)]
    pub tolerance: Option<f64>,
    /// What the regression takes interactions between features for.
    #[schema(default = "interactions")]
    pub regression: Regression,
    /// How a feature is taken out.
    #[schema(default = "mask")]
    pub operation: Operation,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
    /// For `neighbors` and `mlm`: how many words may stand for a word.
    #[schema(minimum = 1, maximum = 100, default = 10)]
    pub k: usize,
    /// For `mlm`: fillers below this probability are left out, the most probable stays.
    #[schema(minimum = 0.0, maximum = 1.0, default = 0.0)]
    pub floor: f64,
    /// For `neighbors` and `mlm`: fillings drawn for each subset, whose scores are averaged; the standard errors
    /// tell what they leave. Absent: two, and up to 32 where all subsets are fewer than the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 64)]
    pub draws: Option<usize>,
    /// When the deadline passes, answer with the estimate reached by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

impl Default for KernelShap {
    fn default() -> Self {
        Self {
            samples: None,
            tolerance: None,
            regression: Regression::default(),
            operation: Operation::default(),
            replacements: None,
            k: 10,
            floor: 0.0,
            draws: None,
            partial: false,
        }
    }
}

impl KernelShap {
    fn draws(&self, features: usize) -> usize {
        self.draws.unwrap_or_else(|| Removal::draws_with_error(features, self.samples(features)))
    }

    /// Draws where one feature is present or one is absent.
    fn edge(&self, features: usize) -> usize {
        Removal::edge_draws(features, self.samples(features), self.draws(features))
    }

    fn removal(&self, features: usize) -> Removal<'_> {
        let Self { operation, k, floor, .. } = *self;
        let draws = self.draws(features);
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }

    fn samples(&self, features: usize) -> usize {
        self.samples.unwrap_or_else(|| paired_samples(features))
    }
}

/// Both ends, and as many pairs as the samples allow or as there are.
fn price(parameters: &KernelShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let rows = paired_rows(features, parameters.samples(features))?;
    let effort = parameters.removal(features).effort(subject, subject.features)?;
    let effort = if parameters.operation.fills() {
        effort.with_edges(features, parameters.edge(features))
    } else {
        effort
    };
    let Effort { variants, once } = effort;
    Ok(Price { forward: rows * variants as u64 + once as u64, gradient: 0 })
}

fn run(parameters: &KernelShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.removal(case.subject.features.len()).masker(case, case.subject.features)?;
    let options = estimators::KernelShap {
        samples: parameters.samples(masker.len()),
        tolerance: parameters.tolerance,
        regression: parameters.regression.into(),
        seed: case.subject.seed,
    };
    let features = masker.len();
    let mut game =
        Masked::new(case, masker, What::Scalars, parameters.partial).with_spread(parameters.edge(features));
    let run = estimators::kernel_shap(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let spent = spent(&game, parameters.draws(features), &[("samples", options.samples)]);
    findings(case, run, &game, parameters.partial, &spent, &|| None)
}
