//! This file is where a derived graph is refused: codes that programs read, reasons that people read.

use std::collections::BTreeMap;
use std::fmt;

use super::graph::{Graph, Node};
use super::reverse::Gap;

/// Why a graph cannot be derived. Methods that only run the model forwards stay available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Refusal {
    /// What kind of obstacle it is.
    pub code: Code,
    /// The obstacle in a sentence.
    pub reason: String,
    /// Every node that stands in the way, for obstacles that are nodes.
    pub gaps: Vec<Gap>,
}

/// The kinds of obstacles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The token ids are not among the inputs, or an input is not understood.
    Input,
    /// The logits cannot be told from the other outputs.
    Output,
    /// The operators' version is older than any that is read.
    Opset,
    /// No table, or several, are looked up by the token ids.
    Embedding,
    /// Weights or activations are quantised.
    Quantised,
    /// Operators compute in half precision and cannot be raised.
    Float16,
    /// A fused operator has a form that cannot be taken apart.
    Fused,
    /// A recurrent operator is on the path.
    Recurrent,
    /// A branch or a loop that depends on the input is on the path.
    ControlFlow,
    /// An operator on the path has no rule.
    Operator,
    /// An operator on the path has a form that its rule does not cover.
    Rule,
    /// The outputs do not depend on the embeddings through floating-point operators.
    Path,
    /// The layers of attention were not found, or are not those of one stream.
    Attention,
    /// A composite holds constant what every path goes through.
    Composite,
    /// The graph does not run.
    Run,
    /// The derived graph was measured and is wrong.
    Measured,
}

impl Code {
    /// The code as programs read it.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Opset => "opset",
            Self::Embedding => "embedding",
            Self::Quantised => "quantised",
            Self::Float16 => "float16",
            Self::Fused => "fused",
            Self::Recurrent => "recurrent",
            Self::ControlFlow => "control-flow",
            Self::Operator => "operator",
            Self::Rule => "rule",
            Self::Path => "path",
            Self::Attention => "attention",
            Self::Composite => "composite",
            Self::Run => "run",
            Self::Measured => "measured",
        }
    }

    /// What the model's owner can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Input => "export the model with input_ids, attention_mask and token_type_ids as inputs",
            Self::Output | Self::Path => "export the model so that its only output is the logits",
            Self::Opset => "export the model with opset 17 or later",
            Self::Embedding => "export the model so that input_ids are looked up in one embedding table",
            Self::Quantised | Self::Float16 => "put a float32 export of the model into the folder",
            Self::Fused => "export the model without ONNX Runtime's transformer optimiser",
            Self::Recurrent | Self::ControlFlow | Self::Operator | Self::Rule => {
                "export the model with another exporter or opset, or put a gradient.onnx into the folder"
            }
            Self::Attention => {
                "take a method of another family; no export helps where the model itself is so"
            }
            Self::Composite => "take another composite, such as attn-lrp",
            Self::Run | Self::Measured => "export the model anew, with dynamic batch and sequence axes",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slug())
    }
}

impl Refusal {
    /// A refusal that no single node is to blame for.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), gaps: Vec::new() }
    }

    /// A refusal for nodes; the gravest kind among them is its code.
    pub fn for_gaps(gaps: Vec<Gap>) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        gaps.iter().for_each(|it| *counts.entry(&it.operator).or_default() += 1);
        let counted: Vec<String> = counts.iter().map(|(name, count)| format!("{name} x{count}")).collect();
        let code = gaps.iter().map(kind).min_by_key(|it| GRAVITY.iter().position(|code| code == it));
        let code = code.unwrap_or(Code::Rule);
        let reason = match gaps.first() {
            Some(gap) if code == Code::Rule => {
                format!("{}; first {}: {}", counted.join(", "), gap.node, gap.reason)
            }
            _ => counted.join(", "),
        };
        Self { code, reason, gaps }
    }
}

const GRAVITY: [Code; 6] =
    [Code::Quantised, Code::Recurrent, Code::ControlFlow, Code::Fused, Code::Operator, Code::Rule];

const RECURRENT: [&str; 3] = ["LSTM", "GRU", "RNN"];
const CONTROL_FLOW: [&str; 3] = ["If", "Loop", "Scan"];

/// What is wrong with this operator, as far as its name tells.
fn kind(gap: &Gap) -> Code {
    let name = gap.operator.as_str();
    match name {
        _ if RECURRENT.contains(&name) => Code::Recurrent,
        _ if CONTROL_FLOW.contains(&name) => Code::ControlFlow,
        _ if is_quantised(name) => Code::Quantised,
        _ if gap.reason != super::gradient::NO_RULE => Code::Rule,
        _ if name.starts_with("com.microsoft::") => Code::Fused,
        _ => Code::Operator,
    }
}

/// Refuses graphs that compute with quantised numbers, naming every node that does.
pub fn refuse_quantised(graph: &Graph) -> Result<(), Refusal> {
    let quantised = graph.nodes.iter().filter(|it| is_quantised(&it.operator()));
    let gap = |it: &Node| Gap {
        node: it.label().into(),
        operator: it.operator(),
        reason: "it computes with quantised numbers".into(),
    };
    let gaps: Vec<Gap> = quantised.map(gap).collect();
    if gaps.is_empty() { Ok(()) } else { Err(Refusal::for_gaps(gaps)) }
}

/// Does the operator, given with its domain, compute with quantised numbers?
pub fn is_quantised(operator: &str) -> bool {
    let name = operator.rsplit("::").next().unwrap_or(operator);
    let marks = [
        "QLinear",
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantize",
        "Integer",
        "NBits",
        "QAttention",
        "QGemm",
    ];
    marks.iter().any(|it| name.contains(it)) || name.starts_with("QOrdered") || name == "MatMulBnb4"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(operator: &str, reason: &str) -> Gap {
        Gap { node: "n".into(), operator: operator.into(), reason: reason.into() }
    }

    #[test]
    fn all_operators_are_counted_and_the_gravest_gives_the_code() {
        let missing = super::super::gradient::NO_RULE;
        let refusal = Refusal::for_gaps(vec![gap("Foo", missing), gap("LSTM", missing), gap("Foo", missing)]);
        assert_eq!(refusal.to_string(), "recurrent: Foo x2, LSTM x1");
    }

    #[test]
    fn quantised_operators_are_known_by_their_names() {
        let names = ["DequantizeLinear", "com.microsoft::MatMulNBits", "MatMulInteger", "QLinearMatMul"];
        assert!(names.into_iter().all(is_quantised));
        assert!(!is_quantised("MatMul"));
    }
}
