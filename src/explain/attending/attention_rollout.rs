//! Attention rollout: attention multiplied through the layers, half of each position passing by.

use serde::{Deserialize, Serialize};
use serde_json::Map;
use utoipa::ToSchema;

use super::{Mixing, Weights, reader};
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
                  through the layers. The same for all targets.",
        reference: "Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers, arXiv:2005.00928",
        output: Output::Logit,
        needs: &[Need::Attention],
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

fn price(_: &AttentionRollout, _: &Subject<'_>) -> Result<Price, ExplainError> {
    Ok(Price { forward: 1, gradient: 0 })
}

/// `R ← normalised(½·mean_h A + ½·I)·R` from layer to layer; `score(token) = R[read position, token]`.
fn run(_: &AttentionRollout, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let weights = Weights::averaged(case)?;
    let (position, read) = reader(case.subject.model, weights.tokens)?;
    let layers = (0..weights.layers.len()).map(|layer| weights.mean(layer));
    let scores = read(&Mixing::Rollout.mix(layers, weights.tokens));
    let finding = |value: f64| {
        let evidence = Map::from_iter([("read_position".to_owned(), position.clone())]);
        token_finding(case, value, None, &scores, evidence)
    };
    Ok(case.scalars(&weights.logits)?.into_iter().map(finding).collect())
}
