//! Layer-wise relevance propagation: the logit handed back to the tokens, layer by layer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Component, Parts, pass};
use crate::{
    compile::composite,
    explain::{About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, nothing_more},
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&LRP;

static LRP: Typed<Lrp> = Typed {
    about: About {
        slug: "lrp",
        family: Family::Decomposition,
        summary: "The token's share of the logit when it is handed back layer by layer, each operator passing on \
                  what it got by the composite's rule. LRP is patented in some countries and the README of lxt, \
                  a peer, calls it free for personal and scientific use only: check before you sell it.",
        reference: "Bach et al. (2015), doi:10.1371/journal.pone.0130140; Montavon et al. (2019), \
                    doi:10.1007/978-3-030-28954-6_10; Ali et al. (2022), arXiv:2202.07304; \
                    Achtibat et al. (2024), arXiv:2402.05602",
        output: Output::Logit,
        needs: &[Need::Relevance],
        stops_early: false,
        example: r#"{"composite": "attn-lrp", "components": ["heads", "neurons", "layers"]}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of LRP.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lrp {
    /// Which rules operators follow. A composite that is asked for the first time is derived and measured first.
    #[schema(default = "attn-lrp")]
    pub composite: Composite,
    /// Parts of the model whose relevance is told as well, from the same pass.
    pub components: Vec<Component>,
    /// Neurons that are told of each feed-forward layer, the most relevant ones.
    #[schema(minimum = 1, maximum = 1000, default = 10)]
    pub k: usize,
}

/// Rules of LRP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Composite {
    /// Rule 0 for linear layers (Bach 2015); operators that LRP's early papers do not know as attn-lrp, named in the
    /// evidence.
    #[serde(rename = "lrp-0")]
    Lrp0,
    /// Rule ε for linear layers, ε = 1e-6 with the sign of the result; the rest as lrp-0.
    Epsilon,
    /// Rule γ for linear layers, γ = 0.25, for operands and results of either sign; the rest as lrp-0.
    Gamma,
    /// Rule αβ for linear layers, α = 2, β = 1; the rest as lrp-0.
    AlphaBeta,
    /// Rule αβ for linear layers, α = 1, β = 0; the rest as lrp-0.
    ZPlus,
    /// Attention probabilities and normalization statistics count as constants (Ali 2022).
    CpLrp,
    /// Attention-aware (Achtibat 2024): softmax by its Taylor expansion, products shared, activations passed through.
    #[default]
    AttnLrp,
}

impl From<Composite> for composite::Composite {
    fn from(it: Composite) -> Self {
        match it {
            Composite::Lrp0 => Self::Lrp0,
            Composite::Epsilon => Self::Epsilon,
            Composite::Gamma => Self::Gamma,
            Composite::AlphaBeta => Self::AlphaBeta,
            Composite::ZPlus => Self::ZPlus,
            Composite::CpLrp => Self::CpLrp,
            Composite::AttnLrp => Self::AttnLrp,
        }
    }
}

impl Default for Lrp {
    fn default() -> Self {
        Self { composite: Composite::AttnLrp, components: Vec::new(), k: 10 }
    }
}

fn price(_: &Lrp, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    pass::price(subject)
}

fn run(parameters: &Lrp, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let parts = Parts { components: &parameters.components, k: parameters.k };
    pass::run(parameters.composite.into(), &parts, case)
}
