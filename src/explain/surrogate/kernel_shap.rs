//! Kernel SHAP: Shapley values by regression over few subsets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse},
    shapley::{all_within, findings},
};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Masker, Method, Misfit, Operation, Price, Subject, Typed,
        estimators, nothing_more,
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
    needs: nothing_more,
    price,
    run,
};

/// Parameters of Kernel SHAP.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KernelShap {
    /// Subsets evaluated at most, at least twice the features; 1,024 by default, or twice the features where
    /// that is more. When all subsets are no more than this, the values are exact.
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
    /// When the deadline passes, answer with the estimate reached by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

/// What Kernel SHAP's regression takes interactions for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Regression {
    /// A smooth part of the model, fitted beside the values: several times less error at equal samples.
    #[default]
    Interactions,
    /// Noise, as in the paper.
    Linear,
}

impl KernelShap {
    fn masker(&self, subject: &Subject<'_>) -> Result<Masker, ExplainError> {
        Masker::new(subject, subject.features, self.operation, self.replacements.as_deref())
    }

    fn samples(&self, features: usize) -> usize {
        self.samples.unwrap_or_else(|| 1024.max(2 * features))
    }
}

/// Both ends, and as many pairs as the samples allow or as there are.
fn price(parameters: &KernelShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let samples = parameters.samples(features);
    let least = 2 * features;
    if samples < least {
        let detail = format!("is {samples}; at least {least} are needed, twice the number of features");
        return Err(Misfit::over("/parameters/samples", detail, "samples", least as u64).into());
    }
    let variants = parameters.masker(subject)?.variants() as u64;
    let rows = all_within(features, samples).unwrap_or(2 * (samples as u64 / 2) + 2);
    Ok(Price { forward: rows * variants, gradient: 0 })
}

fn run(parameters: &KernelShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.masker(&case.subject)?;
    let options = estimators::KernelShap {
        samples: parameters.samples(masker.len()),
        tolerance: parameters.tolerance,
        regression: match parameters.regression {
            Regression::Interactions => estimators::Regression::Interactions,
            Regression::Linear => estimators::Regression::Linear,
        },
        seed: case.subject.seed,
    };
    let mut game = Masked::new(case, masker, What::Scalars, parameters.partial);
    let run = estimators::kernel_shap(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    findings(case, run, parameters.partial, &|| None)
}
