//! Permutation SHAP: Shapley values along random orders of the features.

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
pub static METHOD: &dyn Method = &&PERMUTATION_SHAP;

static PERMUTATION_SHAP: Typed<PermutationShap> = Typed {
    about: About {
        slug: "permutation-shap",
        family: Family::Surrogate,
        summary: "The Shapley value of a feature, estimated without bias as the mean of what it adds along \
                  random orders, each walked there and back.",
        reference: "Mitchell, Cooper, Frank and Holmes (2022), Sampling Permutations for Shapley Value \
                    Estimation, arXiv:2104.12199",
        output: Output::Logit,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"samples": 64}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of permutation SHAP.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PermutationShap {
    /// Subsets evaluated at most, at least one walk there and back, which is twice the features less one; 1,024
    /// by default, or two such walks where that is more. When all subsets are no more than this, the values are
    /// exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 2, maximum = 200_000)]
    pub samples: Option<usize>,
    /// Stop as soon as the largest standard error is at or below this, in units of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, exclusive_minimum = 0.0)]
    pub tolerance: Option<f64>,
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

impl PermutationShap {
    fn masker(&self, subject: &Subject<'_>) -> Result<Masker, ExplainError> {
        Masker::new(subject, subject.features, self.operation, self.replacements.as_deref())
    }

    fn samples(&self, features: usize) -> usize {
        self.samples.unwrap_or_else(|| 1024.max(4 * features))
    }
}

/// Both ends, and whole walks there and back.
fn price(parameters: &PermutationShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let samples = parameters.samples(features);
    let walk = 2 * (features - 1);
    if samples < walk {
        let detail = format!("is {samples}; one walk there and back takes {walk}");
        return Err(Misfit::over("/parameters/samples", detail, "samples", walk as u64).into());
    }
    let variants = parameters.masker(subject)?.variants() as u64;
    let rows = all_within(features, samples).unwrap_or_else(|| (samples / walk * walk) as u64 + 2);
    Ok(Price { forward: rows * variants, gradient: 0 })
}

fn run(parameters: &PermutationShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.masker(&case.subject)?;
    let options = estimators::PermutationShap {
        samples: parameters.samples(masker.len()),
        tolerance: parameters.tolerance,
        seed: case.subject.seed,
    };
    let mut game = Masked::new(case, masker, What::Scalars, parameters.partial);
    let run =
        estimators::permutation_shap(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    findings(case, run, parameters.partial, &|| None)
}
