//! What is loaded: one classifier, ready to be asked.

pub mod attention;
pub mod calibration;
pub mod derived;
mod fill_mask;
pub mod graphs;
pub mod intervention;
pub mod labels;
pub mod manifest;
mod need;
mod open;
mod own;
pub mod relevance;
mod shelf;
pub mod text;
mod trial;
mod words;

use std::{path::Path, sync::Arc};

pub use attention::{AttentionGraph, Reads};
pub use derived::{EmbeddedGraph, GradientGraph};
pub use fill_mask::FillMask;
pub use intervention::{InterventionGraph, Restart};
pub use labels::{ALL, Activation, Labels, Output, PREDICTED, ScoreError, TargetError};
pub use manifest::{Manifest, ManifestError, SpecialTokens};
pub use need::{Need, Unavailable};
pub use open::{OpenError, OpenSettings, Opening};
pub use own::OwnGraph;
pub use relevance::{RelevanceGraph, RelevanceGraphs, RelevanceRow};
pub use shelf::{Entry, FindError, Shelf};
pub use words::Words;

use crate::{
    compile::composite::Composite,
    runtime::{Device, Program, Role},
};

/// One classifier: its labels, its tokenizer, its graphs.
pub struct Model {
    /// The name under which it is served.
    pub name: String,
    /// SHA-256 of its graph and weights, in hexadecimal.
    pub digest: String,
    /// Names of the logits and what they become.
    pub labels: Labels,
    /// Ids of the tokens with a meaning of their own.
    pub special: SpecialTokens,
    /// Reads texts.
    pub tokenizer: text::Tokenizer,
    /// Most tokens of an input, special tokens included.
    pub max_length: Option<usize>,
    /// The element type of its logits, as `GET /models` names it.
    pub precision: &'static str,
    /// How far logits of derived graphs may be off, in parts of a row's largest.
    pub tolerance: f64,
    /// Where it runs.
    pub device: Device,
    /// Logits from tokens: the file as it is.
    pub forward: Arc<Program>,
    /// The gradient family's graphs, or why there are none.
    pub gradient: Result<GradientGraph, Unavailable>,
    /// The graphs that edit embeddings and hidden states, or why there are none.
    pub intervention: Result<InterventionGraph, Unavailable>,
    /// The attention family's graphs, or why there are none.
    pub attention: Result<AttentionGraph, Unavailable>,
    /// The word embedding's table, or why it was not found.
    pub words: Result<Arc<Words>, Unavailable>,
    /// The companion masked language model, or why there is none.
    pub fill_mask: Result<FillMask, Unavailable>,
    /// The relevance graphs, or why there are none.
    pub relevance: Result<RelevanceGraphs, Unavailable>,
    /// Derived graphs that the folder brings itself, but for relevance graphs.
    own: Vec<OwnGraph>,
    /// What a caller should know beside the numbers.
    pub warnings: Vec<String>,
}

impl Model {
    /// Whether the graph reads an attention mask, so that a token can be hidden from it.
    pub fn reads_mask(&self) -> bool {
        self.forward.layout.inputs.iter().any(|it| it.role == Role::Mask)
    }

    /// Whether the graph tells the two texts of a pair apart.
    pub fn reads_types(&self) -> bool {
        self.forward.layout.inputs.iter().any(|it| it.role == Role::Types)
    }

    /// A token's text, for special tokens that stand for no part of the input.
    pub fn token_name(&self, id: u32) -> String {
        self.tokenizer.token_text(id).unwrap_or_default()
    }

    /// Whether the model has the graph that a method needs.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason that was found when the model was opened.
    pub fn allows(&self, need: Need) -> Result<(), Unavailable> {
        match need {
            Need::Forward => Ok(()),
            Need::Decision => match self.labels.activation() {
                Activation::Softmax | Activation::Sigmoid => Ok(()),
                Activation::Identity => Err(need::no_decision()),
            },
            Need::Gradient => self.gradient().map(|_| ()),
            Need::Relevance => self.relevance.as_ref().map(|_| ()).map_err(Clone::clone),
            Need::Attention => self.attention().map(|_| ()),
            Need::AttentionGradient => self.attention()?.has_gradient().map(|_| ()),
            Need::ReadPosition => self.attention()?.reads().map(|_| ()),
            Need::Embeddings => self.intervention().map(|_| ()),
            Need::HiddenStates => match self.intervention()?.widths.is_empty() {
                true => Err(intervention::no_layers()),
                false => Ok(()),
            },
            Need::Words => self.words().map(|_| ()),
            Need::FillMask => self.fill_mask().map(|_| ()),
        }
    }

    /// The gradient family's graphs.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason that was found when the model was opened.
    pub fn gradient(&self) -> Result<&GradientGraph, Unavailable> {
        self.gradient.as_ref().map_err(Clone::clone)
    }

    /// The attention family's graphs.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason that was found when the model was opened.
    pub fn attention(&self) -> Result<&AttentionGraph, Unavailable> {
        self.attention.as_ref().map_err(Clone::clone)
    }

    /// The graphs that edit embeddings and hidden states.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason that was found when the model was opened.
    pub fn intervention(&self) -> Result<&InterventionGraph, Unavailable> {
        self.intervention.as_ref().map_err(Clone::clone)
    }

    /// The word embedding's table.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason that was found when the model was opened.
    pub fn words(&self) -> Result<&Arc<Words>, Unavailable> {
        self.words.as_ref().map_err(Clone::clone)
    }

    /// The companion masked language model.
    ///
    /// # Errors
    /// [`Unavailable`]: none was named, or it did not open.
    pub fn fill_mask(&self) -> Result<&FillMask, Unavailable> {
        self.fill_mask.as_ref().map_err(Clone::clone)
    }

    /// Gives the model its companion. Where that does not open, the model remembers why.
    ///
    /// # Errors
    /// As [`FillMask::open`].
    pub fn accompany(&mut self, folder: &Path, settings: &OpenSettings) -> Result<(), OpenError> {
        match FillMask::open(folder, &self.tokenizer, settings) {
            Ok(companion) => {
                self.fill_mask = Ok(companion);
                Ok(())
            }
            Err(error) => {
                self.fill_mask =
                    Err(fill_mask::missing(format!("the model's companion did not open: {error}")));
                Err(error)
            }
        }
    }

    /// Derived graphs that the folder brings itself: those in use, and why others are not. A relevance graph is measured
    /// when it is first asked for.
    pub fn own_graphs(&self) -> Vec<OwnGraph> {
        let relevance = self.relevance.as_ref().map_or(Vec::new(), RelevanceGraphs::own);
        [self.own.clone(), relevance].concat()
    }

    /// The relevance graph of a composite; the first call for each takes as long as opening a model.
    ///
    /// # Errors
    /// [`Unavailable`] with every node that stands in the way.
    pub fn relevance(&self, composite: Composite) -> Result<Arc<RelevanceGraph>, Unavailable> {
        self.relevance.as_ref().map_err(Clone::clone)?.get(composite)
    }
}
