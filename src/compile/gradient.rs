//! This file is where the backward walk meets the table of gradient rules.

use super::builder::Builder;
use super::graph::{Node, Value};
use super::ops::{self, Cotangents, Gradient, Misfit};

/// The reason given for an operator that is in no table.
pub const NO_RULE: &str = "there is no rule for this operator";

/// The gradient at a node: its operator's own rule.
pub fn local(b: &mut Builder, node: &Node, dys: &[Option<Value>]) -> Result<Cotangents, Misfit> {
    let Some(operator) = ops::find(node) else {
        return Err(NO_RULE.into());
    };
    match operator.gradient {
        Gradient::Rules(rule) => rule(b, node, dys),
        Gradient::Rule(rule) => match dys {
            [Some(dy), rest @ ..] if rest.iter().all(Option::is_none) => rule(b, node, dy),
            _ => Err("a further result is on the path".into()),
        },
        Gradient::Stops => Ok(Vec::new()),
    }
}
