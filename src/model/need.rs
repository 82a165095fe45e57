//! Where what a method asks of a model's graph is named, and why it may be refused.

use serde::Serialize;
use utoipa::ToSchema;

use crate::compile::refusal::Code;

/// What a method needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Logits from tokens; every model has it.
    Forward,
    /// A decision that may be kept or changed; a regression makes none.
    Decision,
    /// Gradients with respect to the word embeddings.
    Gradient,
    /// Logits from word embeddings.
    Embeddings,
    /// Logits from a hidden state.
    HiddenStates,
    /// Attention probabilities.
    Attention,
    /// Attention probabilities and their gradients.
    AttentionGradient,
    /// Which positions the classifier reads behind its layers of attention.
    ReadPosition,
    /// The word embedding's table.
    Words,
    /// A companion masked language model.
    FillMask,
    /// Relevance by a composite of LRP.
    Relevance,
}

impl Need {
    /// Whether the compiler must find or derive it, so that a model may lack it.
    pub fn is_derived(self) -> bool {
        match self {
            Self::Forward | Self::Decision | Self::FillMask => false,
            Self::Gradient
            | Self::Attention
            | Self::AttentionGradient
            | Self::ReadPosition
            | Self::Embeddings
            | Self::HiddenStates
            | Self::Words
            | Self::Relevance => true,
        }
    }
}

/// What a model does not have, found out when the model was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// The method that was asked for, once one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// What kind of obstacle it is: `operator`, `quantised`, `embedding`, `fill_mask`, ...
    pub code: String,
    /// The obstacle in a sentence.
    pub reason: String,
    /// Operators and nodes that stand in the way, all of them.
    pub operators: Vec<String>,
    /// What would help.
    pub advice: String,
}

impl Unavailable {
    /// The same obstacle, met by a method.
    pub fn for_method(mut self, slug: &str) -> Self {
        self.method = Some(slug.to_owned());
        self
    }

    /// A derived graph whose score of the text at `pointer` is `off` by more than rounding.
    pub fn not_for_this_text(pointer: &str, off: f64) -> Self {
        Self {
            method: None,
            code: Code::Measured.slug().to_owned(),
            reason: format!(
                "the graph derived from the model does not hold for the text at {pointer}: its score is off by {off:.1e}"
            ),
            operators: Vec::new(),
            advice: "perturbation and surrogate methods work as they are".to_owned(),
        }
    }
}

/// What a regression says to a method that asks when its decision holds.
pub(super) fn no_decision() -> Unavailable {
    Unavailable {
        method: None,
        code: "regression".into(),
        reason: "the model is a regression: it makes no decision that could be kept or changed".into(),
        operators: Vec::new(),
        advice: "decision-tree, lime and kernel-shap explain the number itself".into(),
    }
}
