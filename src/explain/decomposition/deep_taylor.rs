//! Deep Taylor decomposition: each layer's relevance expanded at a root point, and handed to the layer before.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Component, Parts, pass};
use crate::{
    compile::composite::Composite,
    explain::{About, Case, ExplainError, Family, Finding, Method, Price, Subject, Typed, nothing_more},
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&DEEP_TAYLOR;

static DEEP_TAYLOR: Typed<DeepTaylor> = Typed {
    about: About {
        slug: "deep-taylor",
        family: Family::Decomposition,
        summary: "The token's share of the logit by Taylor expansions of every layer. The rules were made for \
                  rectifier networks; operators of transformers borrow attn-lrp's, and the evidence names each \
                  (`substitutions`). It is a form of LRP, whose legal note holds here, too.",
        reference: "Montavon et al. (2017), Explaining nonlinear classification decisions with deep Taylor \
                    decomposition, doi:10.1016/j.patcog.2016.11.008",
        output: Output::Logit,
        needs: &[Need::Relevance],
        stops_early: false,
        example: r#"{"entry": "w-squared"}"#,
    },
    needs: nothing_more,
    price,
    run,
};

/// Parameters of deep Taylor decomposition.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeepTaylor {
    /// The rule of the weights that read the embeddings themselves; without effect where a position embedding or a
    /// normalization comes first, which the evidence says.
    #[schema(default = "w-squared")]
    pub entry: Entry,
    /// Parts of the model whose relevance is told as well, from the same pass.
    pub components: Vec<Component>,
    /// Neurons that are told of each feed-forward layer, the most relevant ones.
    #[schema(minimum = 1, maximum = 1000, default = 10)]
    pub k: usize,
}

/// How relevance enters the embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// By the squares of the weights: any embedding is possible.
    #[default]
    WSquared,
    /// By the distance from a corner of the box that holds all components of the vocabulary's embeddings.
    ZB,
}

impl Default for DeepTaylor {
    fn default() -> Self {
        Self { entry: Entry::WSquared, components: Vec::new(), k: 10 }
    }
}

fn price(_: &DeepTaylor, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    pass::price(subject)
}

fn run(parameters: &DeepTaylor, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let composite = match parameters.entry {
        Entry::WSquared => Composite::DeepTaylor,
        Entry::ZB => Composite::DeepTaylorBox,
    };
    let parts = Parts { components: &parameters.components, k: parameters.k };
    pass::run(composite, &parts, case)
}
