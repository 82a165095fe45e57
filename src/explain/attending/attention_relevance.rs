//! Attention relevance: attention weighed by its gradient, added up through the layers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Mixing, Reading, Weights};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed,
        gradient::{cotangent, token_finding},
        nothing_more,
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&ATTENTION_RELEVANCE;

static ATTENTION_RELEVANCE: Typed<AttentionRelevance> = Typed {
    about: About {
        slug: "attention-relevance",
        family: Family::Attention,
        summary: "How much of the position that the classifier reads comes from a token through attention that raises \
                  the score; never negative. Several that it reads (`read_parts`) count each by its part in the gradient. The read position's own score holds the 1 that it starts with.",
        reference: "Chefer, Gur and Wolf (2021), Generic Attention-model Explainability, ICCV, arXiv:2103.15679",
        output: Output::Logit,
        needs: &[Need::AttentionGradient, Need::ReadPosition],
        stops_early: false,
        example: "{}",
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of attention relevance: there are none.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionRelevance {}

/// One gradient for each target, at the input itself, and one for all where it tells which positions are read.
fn price(_: &AttentionRelevance, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    Ok(Price { forward: 0, gradient: subject.targets as u64 + Reading::gradients(subject)? })
}

/// `R ← R + mean_h(∇A ⊙ A)⁺·R` from layer to layer; `score(token) = R[read position, token]`.
fn run(_: &AttentionRelevance, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let (labels, output) = (&case.subject.model.labels, case.subject.output);
    let seed = |&target: &usize| Ok(cotangent(labels, output, &case.logits, target)?.into());
    let seeds = case.targets.iter().map(seed).collect::<Result<Vec<Arc<[f32]>>, ExplainError>>()?;
    let reading = Reading::of(case)?;
    let finding = |(target, weights): (usize, Weights)| {
        let layers = (0..weights.layers.len()).map(|layer| weights.relevance(layer));
        let scores = reading.of_rows(&Mixing::Relevance.mix(layers, weights.tokens));
        let value = case.scalars(&weights.logits)?[target];
        Ok(token_finding(case, value, None, &scores, reading.evidence()))
    };
    Weights::with_slopes(case, seeds)?.into_iter().enumerate().map(finding).collect()
}
