//! This file is where it is told what operators add, whatever their operand: biases and stored means.

use super::channel::beside_channels;
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

/// The operand of a product that is added to it.
pub fn adds(node: &Node) -> Option<&Value> {
    let adds = matches!(node.op.as_str(), "MatMul" | "Gemm" | "Conv" | "ConvTranspose");
    node.input(2).filter(|_| adds && node.domain.is_empty())
}

/// The `c` of `y = L(x) + c`, broadcast against `y`, where `L` is linear once weights and statistics are held.
/// `None` where an operator adds nothing.
pub fn offset(b: &mut Builder, node: &Node) -> Option<Value> {
    let rank = b.rank(&node.outputs[0]);
    match node.op.as_str() {
        _ if !node.domain.is_empty() => None,
        "MatMul" | "LayerNormalization" => node.input(2).cloned(),
        "Gemm" => {
            let bias = node.input(2)?.clone();
            let beta = node.float("beta").unwrap_or(1.0);
            Some(if beta == 1.0 { bias } else { b.scale(&bias, beta) })
        }
        "Conv" | "ConvTranspose" | "InstanceNormalization" | "GroupNormalization" => {
            let bias = node.input(2)?.clone();
            Some(beside_channels(b, &bias, rank))
        }
        "BatchNormalization" => {
            // γ·(x − m)/√(v + ε) + β
            let [_, scale, bias, mean, variance] = &node.inputs[..] else { return None };
            let epsilon = b.scalar(node.float("epsilon").unwrap_or(1e-5));
            let sum = b.add(variance, &epsilon);
            let deviation = b.unary("Sqrt", &sum);
            let factor = b.div(scale, &deviation);
            let shift = b.mul(mean, &factor);
            let rest = b.sub(bias, &shift);
            Some(beside_channels(b, &rest, rank))
        }
        "ReduceL1" | "ReduceL2" | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" => {
            Some(node.outputs[0].clone())
        }
        _ => None,
    }
}
