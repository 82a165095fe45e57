//! Attention rollout: attention multiplied through the layers, half of each position passing by.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Mixing, Reading, Weights};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, gradient::token_finding,
        nothing_more,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&ATTENTION_ROLLOUT;

static ATTENTION_ROLLOUT: Typed<AttentionRollout> = Typed {
    about: About {
        slug: "attention-rollout",
        family: Family::Attention,
        summary: "How much of the position that the classifier reads comes from a token, when attention is multiplied \
                  through the layers; of several (`read_parts`), each by its part in the gradient. The same for all \
                  targets.",
        reference: "Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers, arXiv:2005.00928",
        output: Output::Logit,
        needs: &[Need::Attention, Need::ReadPosition],
        stops_early: false,
        example: "{}",
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of attention rollout: there are none.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionRollout {}

fn price(_: &AttentionRollout, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    Ok(Price { forward: 1, gradient: Reading::gradients(subject)? })
}

/// `R ← normalised(½·mean_h A + ½·I)·R` from layer to layer; `score(token) = R[read position, token]`.
fn run(_: &AttentionRollout, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let weights = Weights::averaged(case)?;
    let reading = Reading::of(case)?;
    let layers = (0..weights.layers.len()).map(|layer| weights.mean(layer));
    let scores = reading.of_rows(&Mixing::Rollout.mix(layers, weights.tokens));
    let finding = |value: f64| token_finding(case, value, None, &scores, reading.evidence());
    Ok(case.scalars(&weights.logits)?.into_iter().map(finding).collect())
}
