//! Saliency: how steeply the score changes with a token's embedding.

use serde::{Deserialize, Serialize};
use serde_json::Map;
use utoipa::ToSchema;

use super::{Embedded, Point, price_of, token_finding};
use crate::{
    explain::{About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, nothing_more},
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&SALIENCY;

static SALIENCY: Typed<Saliency> = Typed {
    about: About {
        slug: "saliency",
        family: Family::Gradient,
        summary: "The gradient of the score with respect to a token's embedding, reduced to one number.",
        reference: "Simonyan, Vedaldi and Zisserman (2014), Deep Inside Convolutional Networks, arXiv:1312.6034; \
                    for text Li et al. (2016), arXiv:1506.01066",
        output: Output::Logit,
        needs: &[Need::Gradient],
        stops_early: false,
        example: r#"{"reduction": "l2"}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of saliency.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Saliency {
    /// How the gradient's components become one number a token.
    #[schema(default = "l2")]
    pub reduction: Reduction,
}

/// How the components of a token's gradient become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Euclidean length.
    #[default]
    L2,
    /// Sum of absolute values.
    L1,
    /// Signed sum.
    Sum,
    /// Largest absolute value.
    Max,
}

impl Reduction {
    fn of(self, components: &[f32]) -> f64 {
        let values = components.iter().map(|&it| f64::from(it));
        match self {
            Self::L2 => values.map(|it| it * it).sum::<f64>().sqrt(),
            Self::L1 => values.map(f64::abs).sum(),
            Self::Sum => values.sum(),
            Self::Max => values.map(f64::abs).fold(0.0, f64::max),
        }
    }
}

fn price(_: &Saliency, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    Ok(price_of(1, subject.targets, subject.output))
}

/// `score(token) = reduction(∂v/∂e)`.
fn run(parameters: &Saliency, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let embedded = Embedded::of(case)?;
    let targets: Vec<usize> = (0..case.targets.len()).collect();
    let mut found = vec![None; targets.len()];
    embedded.gradients(&[Point::Values(embedded.x.clone())], &targets, |it| {
        let rows = it.slope.chunks(embedded.hidden);
        found[it.target] = Some((it.value, rows.map(|row| parameters.reduction.of(row)).collect::<Vec<_>>()));
    })?;
    Ok(found
        .into_iter()
        .flatten()
        .map(|(value, scores)| token_finding(case, value, None, &scores, Map::new()))
        .collect())
}
