//! Where the answer of `POST /explain/{method}` is written down, field by field.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::model::Output;

/// The answer: one result for each input, in order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExplainAnswer {
    /// The request's id, as in the header `x-request-id`.
    pub id: String,
    /// Which model answered.
    pub model: ModelRef,
    /// Which method.
    pub method: String,
    /// The method's parameters with every default filled in.
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// The seed of every random choice.
    pub seed: u64,
    /// The random generator that the seed feeds.
    pub generator: &'static str,
    /// One for each input, in order.
    pub results: Vec<InputResult>,
    /// What the answer cost.
    pub usage: Usage,
    /// What the caller should know beside the numbers.
    pub warnings: Vec<String>,
    /// Stages of the work, for `Server-Timing`.
    #[serde(skip)]
    pub timing: Timing,
}

/// A model by name and content.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelRef {
    /// The name under which it is served.
    pub name: String,
    /// SHA-256 of its graph and weights.
    pub digest: String,
}

/// What was found for one input.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InputResult {
    /// The caller's name for the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the model said.
    pub prediction: Prediction,
    /// One for each target.
    pub explanations: Vec<Explanation>,
    /// Whether the text was cut to the model's maximum length.
    pub truncated: bool,
    /// What was cut off, where something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub truncation: Option<Value>,
}

/// What the model said about one input.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Prediction {
    /// The label with the highest logit.
    pub label: String,
    /// Every label's score and logit, in the order of the logits.
    pub scores: Vec<LabelScore>,
    /// The temperature by which logits were divided before the activation.
    pub temperature: f64,
}

/// One label's score.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LabelScore {
    /// The label.
    pub label: String,
    /// Its probability after temperature and activation; the logit itself for a regression.
    pub score: f64,
    /// The model's own number.
    pub logit: f64,
}

/// Why one score is what it is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Explanation {
    /// Whose score is explained.
    pub target: Target,
    /// Which scalar of it; the unit of every attribution.
    pub output: Output,
    /// The scalar, of the very prediction that is served.
    pub value: f64,
    /// The scalar with everything absent, where the method defines it.
    pub base_value: Option<f64>,
    /// One for each feature, in the order of the text; raw and signed, never normalised.
    pub attributions: Vec<Attribution>,
    /// Figures that tell how far the attributions can be trusted. `parity` is always there: the
    /// difference between `value` and the score that the method's own graph computed.
    #[schema(value_type = Object)]
    pub evidence: Map<String, Value>,
    /// What the method found beside the attributions: a tree, a rule, a path, components.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub details: Option<Value>,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Target {
    /// Its name.
    pub label: String,
    /// Its index among the logits.
    pub index: usize,
}

/// How much one piece of the text contributes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Attribution {
    /// The slice of the original text; a special token's name.
    pub text: String,
    /// First code point of the slice.
    pub start: usize,
    /// One past the last code point of the slice.
    pub end: usize,
    /// Raw and signed, in the unit of `output`.
    pub score: f64,
    /// Standard error of the score, from methods that sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
    /// 0 for the text, 1 for the second text of a pair.
    pub segment: u8,
    /// Whether it is a token that the tokenizer added.
    pub special: bool,
}

/// What an answer cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// Rows that were run forward.
    pub forward_passes: u64,
    /// Rows that were run forward and backward.
    pub gradient_passes: u64,
    /// Rows that equal an earlier row of the request and were not run again.
    pub reused_passes: u64,
    /// Passes that the request was admitted for; methods that stop early spend fewer.
    pub priced_passes: u64,
    /// Tokens that were computed, padding included.
    pub tokens: u64,
    /// Milliseconds that the request's rows waited for a worker.
    pub queue_ms: f64,
    /// Milliseconds that workers spent on the request's rows.
    pub compute_ms: f64,
}

/// How long the stages of an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    /// Reading the text: tokens and features.
    pub tokenize: Duration,
    /// Waiting for a worker.
    pub queue: Duration,
    /// From the first row to the last answer, without the waiting.
    pub forward: Duration,
    /// Everything else.
    pub reduce: Duration,
}
