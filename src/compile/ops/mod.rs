//! This file is where operators are answered for: what each is, and how its gradient goes.
//!
//! An operator's row stands in its family's file, beside its rule. To add one, write a row there; a family's
//! table is named in [`FAMILIES`]. Every example of every row is tested against finite
//! differences, and under every relevance composite: relevance is kept, and goes where the book says.
//!
//! A rule is a pure function: a node and the cotangents of its results in, the cotangents of its operands out.
//! It may forget broadcasting, since the walk sums cotangents back to the shape of their operands, and it asks
//! [`Builder::wants`] which operands need one (an unwanted answer costs nodes, but is dropped).
//! Notation: for `y = f(x)`, `dy` is the cotangent of `y`, and `dx` its pullback.

mod activation;
mod arithmetic;
mod channel;
mod contrib;
mod einsum;
mod elementary;
mod fourier;
mod index;
mod norm;
mod normalize;
mod offset;
mod product;
mod reduce;
mod scatter;
mod shape;
mod softmax;
mod window;

use super::builder::Builder;
use super::graph::{Node, Value};

pub use offset::{adds, offset};
pub use softmax::guarded as softmax_guard;

/// The tables.
static FAMILIES: &[&[Operator]] = &[
    activation::OPERATORS,
    arithmetic::OPERATORS,
    channel::OPERATORS,
    contrib::OPERATORS,
    einsum::OPERATORS,
    elementary::OPERATORS,
    fourier::OPERATORS,
    index::OPERATORS,
    norm::OPERATORS,
    normalize::OPERATORS,
    product::OPERATORS,
    reduce::OPERATORS,
    scatter::OPERATORS,
    shape::OPERATORS,
    softmax::OPERATORS,
    window::OPERATORS,
];

/// Everything that must be said of an operator.
pub struct Operator {
    /// Its name in ONNX.
    pub name: &'static str,
    /// Its domain; empty for ONNX itself.
    pub domain: &'static str,
    /// What it is to a relevance composite.
    pub kind: Kind,
    /// How its gradient goes.
    pub gradient: Gradient,
    /// Graphs in text form that show its uses; see [`super::graph::text`].
    pub examples: &'static [&'static str],
}

/// What an operator is, as far as relevance propagation cares. Composites are tables over this.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Sums of products, linear in each operand, and a constant operand is a weight: MatMul, Gemm, Conv. With two
    /// active operands it is a bilinear product; the walk tells the two apart before it asks.
    Product,
    /// A product element by element: Mul. With a constant factor each element is scaled alone.
    Scale,
    /// The first operand by the second: Div.
    Quotient,
    /// A product of elements of one operand: ReduceProd.
    Accumulation,
    /// A sum of its operands, or of parts of its operand: Add, Sub, ReduceSum, ReduceMean.
    Sum,
    /// A function applied to each element alone.
    Elementwise,
    /// The same, positively homogeneous: the slope times the operand is the result. Relu, LeakyRelu, Abs.
    Rectifier,
    /// The same, an operand times a gate of itself: Gelu, Swish. Carries the rule that holds the gate, so that the
    /// cotangent times the operand is kept.
    Gate(Rule),
    /// Softmax and its logarithm.
    Softmax,
    /// Centring or scaling by statistics of the operand itself. Carries the rule that holds the statistics: with the
    /// scale constant it is linear.
    Normalization(Rule),
    /// One of several elements is taken by size: Max, ReduceMax, MaxPool, TopK.
    Maximum,
    /// Elements are moved, repeated or dropped, never changed: Reshape, Gather, Where, Concat.
    Routing,
    /// Nothing flows: shapes, comparisons, rounding.
    Metadata,
}

impl PartialEq for Kind {
    /// Whatever the rules that kinds carry.
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl Kind {
    /// Is it a function of each element alone?
    pub fn is_pointwise(self) -> bool {
        matches!(self, Self::Elementwise | Self::Rectifier | Self::Gate(_))
    }
}

/// How an operator's gradient goes.
pub enum Gradient {
    /// By a rule for operators of one result.
    Rule(Rule),
    /// By a rule for operators of several results.
    Rules(Rules),
    /// Nothing flows, and that is known.
    Stops,
}

/// Node and cotangent of the first result in; a cotangent for each operand, in order, out. Operands at the end
/// may be left off.
pub type Rule = fn(&mut Builder, &Node, &Value) -> Result<Cotangents, Misfit>;

/// Like [`Rule`], with the cotangents of all results; `None` for a result that nothing depends on.
pub type Rules = fn(&mut Builder, &Node, &[Option<Value>]) -> Result<Cotangents, Misfit>;

/// A cotangent for each operand; `None` where nothing flows.
pub type Cotangents = Vec<Option<Value>>;

/// A form of an operator that its rule does not cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit(pub String);

impl From<&str> for Misfit {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

/// The row of an operator, if there is one.
pub fn find(node: &Node) -> Option<&'static Operator> {
    all().find(|it| it.name == node.op && it.domain == node.domain)
}

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Operator> {
    FAMILIES.iter().copied().flatten()
}

impl Operator {
    /// Does a gradient flow through it?
    pub fn flows(&self) -> bool {
        !matches!(self.gradient, Gradient::Stops)
    }
}

/// The one cotangent of an operator with one differentiable operand.
fn only(dx: Value) -> Result<Cotangents, Misfit> {
    Ok(vec![Some(dx)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::graph::Graph;

    #[test]
    fn every_row_is_found_and_its_examples_use_it() {
        for row in all() {
            assert!(!row.examples.is_empty() || !row.flows(), "{} has no example", row.name);
            for example in row.examples {
                let graph = Graph::parse(example).unwrap_or_else(|error| panic!("{example}: {error}"));
                let uses = |node: &Node| node.op == row.name && node.domain == row.domain;
                let used = graph.nodes.iter().find(|it| uses(it));
                let found = find(used.unwrap_or_else(|| panic!("{example} shows no {}", row.name)));
                assert!(found.is_some_and(|it| std::ptr::eq(it, row)), "{} has two rows", row.name);
            }
        }
    }
}
