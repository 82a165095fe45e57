//! Exact Shapley values: from every subset of the features.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse},
    shapley::{findings, spent},
};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Operation, Price, Removal, Subject,
        Typed,
        estimators::{self, EstimateError},
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&EXACT_SHAP;

static EXACT_SHAP: Typed<ExactShap> = Typed {
    about: About {
        slug: "exact-shap",
        family: Family::Surrogate,
        summary: "The mean of what a feature adds to the score over all orders in which features appear.",
        reference: "Shapley (1953), A value for n-person games; Lundberg and Lee (2017), A Unified Approach to \
                    Interpreting Model Predictions, arXiv:1705.07874",
        output: Output::Logit,
        needs: &[Need::Forward],
        stops_early: false,
        example: r#"{"operation": "mask"}"#,
    },
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of exact Shapley values.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactShap {
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
    /// tell what they leave. Absent: two, and up to 32 where the features are few.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 64)]
    pub draws: Option<usize>,
}

impl Default for ExactShap {
    fn default() -> Self {
        Self { operation: Operation::default(), replacements: None, k: 10, floor: 0.0, draws: None }
    }
}

impl ExactShap {
    fn draws(&self, features: usize) -> usize {
        self.draws.unwrap_or_else(|| Removal::draws_with_error(features, 1024))
    }

    /// Draws where one feature is present or one is absent.
    fn edge(&self, features: usize) -> usize {
        Removal::edge_draws(features, 1 << features.min(20), self.draws(features))
    }

    fn removal(&self, features: usize) -> Removal<'_> {
        let Self { operation, k, floor, .. } = *self;
        let draws = self.draws(features);
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }
}

/// Every subset once.
fn price(parameters: &ExactShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = subject.features.len();
    let most = |limit: usize| {
        let (method, players, instead) = ("exact-shap", features, "kernel-shap");
        refuse(EstimateError::TooManyPlayers { method, players, limit, instead }, subject)
    };
    if features > estimators::MAX_EXACT_PLAYERS {
        return Err(most(estimators::MAX_EXACT_PLAYERS));
    }
    let effort = parameters.removal(features).effort(subject, subject.features)?;
    let effort = if parameters.operation.fills() {
        effort.with_edges(features, parameters.edge(features))
    } else {
        effort
    };
    let Effort { variants, once } = effort;
    let passes = |features: usize| ((variants as u64) << features) + once as u64;
    // The input's own pass comes on top.
    let fits = |&features: &usize| passes(features) < subject.most_passes;
    match (1..=features).rev().find(fits) {
        Some(limit) if limit < features => Err(most(limit)),
        _ => Ok(Price { forward: passes(features), gradient: 0 }),
    }
}

fn run(parameters: &ExactShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.removal(case.subject.features.len()).masker(case, case.subject.features)?;
    let features = masker.len();
    let mut game = Masked::new(case, masker, What::Scalars, false).with_spread(parameters.edge(features));
    let run = estimators::exact_shap(&mut game).map_err(|error| refuse(error, &case.subject))?;
    findings(case, run, &game, false, &spent(&game, parameters.draws(features), &[]), &|| None)
}
