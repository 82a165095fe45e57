//! Permutation SHAP: Shapley values along random orders of the features.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse},
    shapley::{all_within, findings, spent},
};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Misfit, Operation, Price, Removal,
        Subject, Typed, estimators,
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
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of permutation SHAP.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PermutationShap {
    /// Subsets evaluated at most, at least one walk there and back, which is twice the features less one; 1,024
    /// by default, or five such walks where that is more: fewer tell no standard error. When all subsets are no more than this, the values are
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

impl Default for PermutationShap {
    fn default() -> Self {
        Self {
            samples: None,
            tolerance: None,
            operation: Operation::default(),
            replacements: None,
            k: 10,
            floor: 0.0,
            draws: None,
            partial: false,
        }
    }
}

impl PermutationShap {
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
        self.samples.unwrap_or_else(|| 1024.max(estimators::FEW_WALKS * 2 * features))
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
    let effort = parameters.removal(features).effort(subject, subject.features)?;
    let effort = if parameters.operation.fills() {
        effort.with_edges(features, parameters.edge(features))
    } else {
        effort
    };
    let Effort { variants, once } = effort;
    let rows = all_within(features, samples).unwrap_or_else(|| (samples / walk * walk) as u64 + 2);
    Ok(Price { forward: rows * variants as u64 + once as u64, gradient: 0 })
}

fn run(parameters: &PermutationShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.removal(case.subject.features.len()).masker(case, case.subject.features)?;
    let options = estimators::PermutationShap {
        samples: parameters.samples(masker.len()),
        tolerance: parameters.tolerance,
        seed: case.subject.seed,
    };
    let features = masker.len();
    let mut game =
        Masked::new(case, masker, What::Scalars, parameters.partial).with_spread(parameters.edge(features));
    let run =
        estimators::permutation_shap(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let mut own = vec![("samples", options.samples)];
    if all_within(features, options.samples).is_none() {
        own.push(("walks", (run.evaluations - 2) / (features - 1)));
    }
    let spent = spent(&game, parameters.draws(features), &own);
    findings(case, run, &game, parameters.partial, &spent, &|| None)
}
