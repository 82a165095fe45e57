//! Where the body of `POST /explain/{method}` is written down, field by field.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::model::Output;

/// What to explain, and how.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// One text, one text pair, or an array of them.
    pub inputs: Inputs,
    /// Name of the model. Absent: the only model, or the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub model: Option<String>,
    /// Whose score is explained.
    #[serde(default)]
    #[schema(default = json!("predicted"))]
    pub target: TargetSpec,
    /// Which scalar is explained. Absent: the method's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub output: Option<Output>,
    /// What one attribution stands for.
    #[serde(default)]
    #[schema(default = json!("word"))]
    pub granularity: GranularitySpec,
    /// The method's own parameters; see `GET /methods/{method}`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub parameters: Map<String, Value>,
    /// The same seed gives the same samples, on every machine.
    #[serde(default)]
    #[schema(default = 0)]
    pub seed: u64,
    /// Milliseconds from the request's arrival, queueing included. Absent: the server's default; capped by
    /// the server's maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub timeout_ms: Option<u64>,
    /// Cut a text that is longer than the model reads, and say so. Otherwise it is refused.
    #[serde(default)]
    #[schema(default = false)]
    pub truncate: bool,
}

/// One input or several. Two strings in an array are two texts, never a pair.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Inputs {
    /// Several inputs; the answer has one result for each, in their order.
    Many(Vec<Input>),
    /// One input.
    One(Input),
}

/// One input.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// A text.
    Text(String),
    /// A text or a text pair, with the caller's own name for it.
    Fields(InputFields),
}

/// A text or a text pair.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputFields {
    /// The text, or the first of a pair.
    pub text: String,
    /// The second text of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub text_pair: Option<String>,
    /// Comes back with the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
}

/// Whose score is explained: `"predicted"`, `"all"`, a label, an index, or an array of labels and indices. A label
/// that an array names more than once is explained once, where it came first.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TargetSpec {
    /// Several labels.
    Many(Vec<OneTarget>),
    /// One label, or a word for some of them.
    One(OneTarget),
}

/// A label by name or by index.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum OneTarget {
    /// A label's index.
    Index(usize),
    /// `"predicted"`, `"all"`, or a label's name. A label that is called like one of these two words is asked
    /// for by its index; `"all"` stands alone, not in an array.
    Name(String),
}

/// Targets in one array, at the most.
pub const MAX_TARGETS: usize = 1024;

impl Default for TargetSpec {
    fn default() -> Self {
        Self::One(OneTarget::Name("predicted".to_owned()))
    }
}

/// What one attribution stands for.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum GranularitySpec {
    /// The text's own units.
    Unit(Unit),
    /// The caller's spans.
    Spans(SpanList),
}

/// A unit of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// One model token.
    Token,
    /// One word by Unicode segmentation; its subword scores are summed.
    Word,
    /// One sentence.
    Sentence,
}

/// The caller's spans.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpanList {
    /// `[start, end)` in Unicode code points, or `[start, end, segment]` for a text pair. Spans do not
    /// overlap; text outside of all spans is never perturbed.
    #[schema(min_items = 1)]
    pub spans: Vec<Vec<usize>>,
}

impl Default for GranularitySpec {
    fn default() -> Self {
        Self::Unit(Unit::Word)
    }
}

impl Inputs {
    /// The inputs as a list.
    pub fn list(&self) -> &[Input] {
        match self {
            Self::Many(inputs) => inputs,
            Self::One(input) => std::slice::from_ref(input),
        }
    }

    /// JSON pointer of the text of input `index`.
    pub fn pointer(&self, index: usize) -> String {
        let base = match self {
            Self::Many(_) => format!("/inputs/{index}"),
            Self::One(_) => "/inputs".to_owned(),
        };
        match self.list().get(index) {
            Some(Input::Fields(_)) => format!("{base}/text"),
            _ => base,
        }
    }
}

impl Input {
    /// The text, and the second text of a pair.
    pub fn texts(&self) -> (&str, Option<&str>) {
        match self {
            Self::Text(text) => (text, None),
            Self::Fields(it) => (&it.text, it.text_pair.as_deref()),
        }
    }

    /// The caller's name for the input.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Text(_) => None,
            Self::Fields(it) => it.id.as_deref(),
        }
    }
}
