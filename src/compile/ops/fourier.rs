//! This file is where the discrete Fourier transform is.

use super::Gradient::Rule;
use super::Kind::Product;
use super::{Cotangents, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Attribute, Node, Value};

pub(super) static OPERATORS: &[Operator] = &[Operator {
    name: "DFT",
    domain: "",
    kind: Product,
    gradient: Rule(dft),
    examples: &[
        "y = DFT(x[2, 5, 2])",
        "y = DFT(x[2, 3, 4, 1]) {axis: 2}",
        "y = DFT(x[2, 6, 1]) {onesided: 1}",
        "y = DFT(x[2, 5, 2]) {inverse: 1}",
    ],
}];

/// `Y = F·X`, with `F` symmetric and complex: `dX = F̄·dY`, which is `n` times the inverse transform (and for the
/// inverse, `1/n` of the transform). A real operand takes the real part.
fn dft(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let rank = b.rank(x);
    if node.input(1).is_some() {
        return Err("it pads or cuts its operand".into());
    }
    let given = match node.input(2) {
        Some(axis) => b.ints_of(axis).and_then(|it| it.first().copied()).ok_or("the axis is not constant")?,
        None => node.int("axis").unwrap_or(if b.opset() < 20 { 1 } else { -2 }),
    };
    let axis = b.fact(x).axis(given).filter(|&it| it + 1 < rank).ok_or("the axis is out of range")?;
    let inverse = node.int("inverse").unwrap_or(0) != 0;
    let mut dy = dy.clone();
    if node.int("onesided").unwrap_or(0) != 0 {
        if inverse {
            return Err("it is one-sided and inverse".into());
        }
        dy = b.pad_to(&dy, x, &[(axis, false)]);
    }
    let element = b.fact(&dy).element;
    let fact = Fact::new(element, b.shape(&dy));
    let back: (&str, Attribute) = ("inverse", i64::from(!inverse).into());
    let turned = if b.opset() < 20 {
        b.emit("DFT", &[&dy], &[back, ("axis", (axis as i64).into())], fact)
    } else {
        let (absent, axis) = (Value::absent(), b.int(axis as i64));
        b.emit("DFT", &[&dy, &absent, &axis], &[back], fact)
    };
    let n = b.count_along(x, &[axis]);
    let dx = if inverse { b.div(&turned, &n) } else { b.mul(&turned, &n) };
    if b.shape(x)[rank - 1].constant() == Some(2) {
        return only(dx);
    }
    let mut shape = b.shape(&dx);
    shape[rank - 1] = Length::ONE;
    let (start, end, last) = (b.ints(&[0]), b.ints(&[1]), b.ints(&[rank as i64 - 1]));
    only(b.emit("Slice", &[&dx, &start, &end, &last], &[], Fact::new(element, shape)))
}
