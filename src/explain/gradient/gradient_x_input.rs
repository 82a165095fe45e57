//! Gradient × input: the score's first-order share of each token's embedding.

use serde::{Deserialize, Serialize};
use serde_json::Map;
use utoipa::ToSchema;

use super::{Embedded, Point, price_of, token_finding};
use crate::{
    explain::{About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, nothing_more},
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&GRADIENT_X_INPUT;

static GRADIENT_X_INPUT: Typed<GradientXInput> = Typed {
    about: About {
        slug: "gradient-x-input",
        family: Family::Gradient,
        summary: "The gradient of the score times the token's embedding, summed over its components.",
        reference: "Shrikumar et al. (2016), Not Just a Black Box, arXiv:1605.01713",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: false,
        example: "{}",
    },
    needs: nothing_more,
    price,
    run,
};

/// Gradient × input has no parameters.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GradientXInput {}

fn price(_: &GradientXInput, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    Ok(price_of(1, subject.targets, subject.output))
}

/// `score(token) = Σ_h e_h · ∂v/∂e_h`.
fn run(_: &GradientXInput, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let targets: Vec<usize> = (0..case.targets.len()).collect();
    let mut found = vec![None; targets.len()];
    embedded.gradients(&[Point::Values(embedded.x.clone())], &targets, |it| {
        let products = it.slope.iter().zip(&*embedded.x).map(|(g, e)| f64::from(*g) * f64::from(*e));
        found[it.target] = Some((it.value, embedded.by_token(products)));
    })?;
    let finding = |(value, scores): (f64, Vec<f64>)| token_finding(case, value, None, &scores, Map::new());
    Ok(found.into_iter().flatten().map(finding).collect())
}
