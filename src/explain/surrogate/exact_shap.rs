//! Exact Shapley values: from every subset of the features.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    masked::{Masked, What, refuse},
    shapley::findings,
};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Masker, Method, Operation, Price, Subject, Typed,
        estimators::{self, EstimateError},
        nothing_more,
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
    needs: nothing_more,
    price,
    run,
};

/// Parameters of exact Shapley values.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactShap {
    /// How a feature is taken out.
    #[schema(default = "mask")]
    pub operation: Operation,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
}

impl ExactShap {
    fn masker(&self, subject: &Subject<'_>) -> Result<Masker, ExplainError> {
        Masker::new(subject, subject.features, self.operation, self.replacements.as_deref())
    }
}

/// Every subset once.
fn price(parameters: &ExactShap, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let (players, limit) = (subject.features.len(), estimators::MAX_EXACT_PLAYERS);
    if players > limit {
        let (method, instead) = ("exact-shap", "kernel-shap");
        return Err(refuse(EstimateError::TooManyPlayers { method, players, limit, instead }, subject));
    }
    let variants = parameters.masker(subject)?.variants() as u64;
    Ok(Price { forward: variants << players, gradient: 0 })
}

fn run(parameters: &ExactShap, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let masker = parameters.masker(&case.subject)?;
    let mut game = Masked::new(case, masker, What::Scalars, false);
    let run = estimators::exact_shap(&mut game).map_err(|error| refuse(error, &case.subject))?;
    findings(case, run, false, &|| None)
}
