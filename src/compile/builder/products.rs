//! This file is where the builder makes matrix products cheap: transposes and factors go into the product.

use super::Builder;
use crate::compile::facts::{Fact, broadcast};
use crate::compile::graph::{Attribute, Element, Node, Value};

/// ONNX Runtime's domain.
const MICROSOFT: &str = "com.microsoft";

impl Builder {
    /// `α·A′·B′` over the last two axes, a prime transposing where the flag says so, the others broadcast. Both
    /// operands have at least two axes. Factors that operands were multiplied by here go into `α`.
    pub fn product(&mut self, a: (&Value, bool), w: (&Value, bool), alpha: f64) -> Value {
        let ((a, k), trans_a) = (self.unscaled(a.0), a.1);
        let ((w, l), trans_w) = (self.unscaled(w.0), w.1);
        let (left, right) = (self.shape(&a), self.shape(&w));
        let (p, q) = (left.len(), right.len());
        let mut shape = broadcast(&[&left[..p - 2], &right[..q - 2]]);
        shape.push(left[if trans_a { p - 1 } else { p - 2 }]);
        shape.push(right[if trans_w { q - 2 } else { q - 1 }]);
        self.fused((&a, trans_a), (&w, trans_w), alpha * k * l, shape)
    }

    /// `A·v` over the last axis of `a`, which is as long as the vector `v`.
    pub fn matvec(&mut self, a: &Value, v: &Value) -> Value {
        let mut shape = self.shape(a);
        shape.pop();
        let fact = Fact::new(self.fact(a).element, shape);
        self.emit("MatMul", &[a, v], &[], fact)
    }

    fn fused(
        &mut self,
        (a, trans_a): (&Value, bool),
        (w, trans_w): (&Value, bool),
        alpha: f64,
        shape: crate::compile::facts::Shape,
    ) -> Value {
        let element = self.fact(a).element;
        if element != Element::F32 {
            // The fused operator exists in single precision only.
            let a = if trans_a { self.transpose_last(a) } else { a.clone() };
            let w = if trans_w { self.transpose_last(w) } else { w.clone() };
            let product = self.emit("MatMul", &[&a, &w], &[], Fact::new(element, shape));
            return if alpha == 1.0 { product } else { self.scale(&product, alpha) };
        }
        let fact = Fact::new(element, shape);
        if !trans_a && !trans_w && alpha == 1.0 {
            return self.emit("MatMul", &[a, w], &[], fact);
        }
        let flags: [(&str, Attribute); 3] = [
            ("alpha", (alpha as f32).into()),
            ("transA", i64::from(trans_a).into()),
            ("transB", i64::from(trans_w).into()),
        ];
        self.import(MICROSOFT);
        self.emit_in(MICROSOFT, "FusedMatMul", &[a, w], &flags, vec![fact]).swap_remove(0)
    }

    /// `x·factor`; when `x` is a product that was made here, a product with that factor in the place of it. Nothing
    /// else may need `x` itself, or it is computed twice.
    pub fn scale_product(&mut self, x: &Value, factor: f64) -> Value {
        let Some(node) = self.made(x).cloned() else { return self.scale(x, factor) };
        let shape = self.shape(x);
        let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
        let fused = node.op == "FusedMatMul" && node.domain == MICROSOFT;
        if !fused && !node.is("MatMul") || shape.len() < 2 {
            return self.scale(x, factor);
        }
        let alpha = node.float("alpha").filter(|_| fused).unwrap_or(1.0);
        let (a, w) = ((&node.inputs[0], flag("transA")), (&node.inputs[1], flag("transB")));
        self.fused(a, w, alpha * factor, shape)
    }

    /// A product that was made here from the same operands as the product `x` with another factor in it, and what
    /// leads back from it to `x`; else `x` and one.
    pub fn product_like(&self, x: &Value) -> (Value, f64) {
        let factor = |node: &Node| node.float("alpha").unwrap_or(1.0);
        let flags = |node: &Node| ["transA", "transB"].map(|it| node.int(it).unwrap_or(0));
        let is_product = |node: &&Node| node.is("MatMul") || node.op == "FusedMatMul";
        let other = self.made(x).filter(is_product).and_then(|own| {
            let alike =
                |it: &&Node| it.inputs == own.inputs && flags(it) == flags(own) && it.outputs != own.outputs;
            let other = self.graph.nodes[self.start..].iter().filter(is_product).find(alike)?;
            Some((other.outputs[0].clone(), factor(own) / factor(other)))
        });
        other.unwrap_or_else(|| (x.clone(), 1.0))
    }

    /// `x` without a factor that it was multiplied by here, and that factor.
    fn unscaled(&self, x: &Value) -> (Value, f64) {
        let number = |it: &Value| self.fact(it).constant.as_ref().filter(|it| it.dims().is_empty())?.scalar();
        let peeled = self.made(x).filter(|it| it.is("Mul")).and_then(|it| {
            let factor = number(&it.inputs[1])?;
            Some((it.inputs[0].clone(), factor))
        });
        peeled.unwrap_or_else(|| (x.clone(), 1.0))
    }

    /// What a value made here by a Transpose was before, and the axis order that leads from there to `perm` of it.
    pub(super) fn before_turning(&self, x: &Value, perm: &[usize]) -> (Value, Vec<usize>) {
        let before = self.made(x).filter(|it| it.is("Transpose")).and_then(|it| {
            let inner = it.ints("perm")?;
            Some((it.inputs[0].clone(), perm.iter().map(|&axis| inner[axis] as usize).collect()))
        });
        before.unwrap_or_else(|| (x.clone(), perm.to_vec()))
    }

    /// Was the last axis of a value of the forward graph another one before a Transpose? Turning its cotangent back
    /// would move single elements.
    pub fn strided(&self, x: &Value) -> bool {
        let maker = self.graph.nodes.iter().find(|it| it.outputs.first() == Some(x));
        let perm = maker.filter(|it| it.is("Transpose")).and_then(|it| it.ints("perm"));
        perm.is_some_and(|it| it.len() > 2 && it.last() != Some(&(it.len() as i64 - 1)))
    }

    /// A pointwise operator of two operands that the forward graph may compute already; that result is used then.
    pub fn forward(&mut self, op: &str, a: &Value, b: &Value) -> Value {
        let number = |it: &Value| self.fact(it).constant.as_ref()?.scalar();
        let wanted = number(b);
        let same =
            |it: &Value| it == b || wanted.is_some() && self.known(it).is_some() && number(it) == wanted;
        let nodes = self.graph.nodes.iter().flat_map(|it| std::iter::once(it).chain(&it.members));
        let found = nodes.filter(|it| it.is(op)).find(|it| match &it.inputs[..] {
            [left, right] => left == a && same(right) || right == a && same(left),
            _ => false,
        });
        let found = found.map(|it| it.outputs[0].clone()).filter(|it| self.known(it).is_some());
        found.unwrap_or_else(|| self.binary(op, a, b))
    }

    /// The node appended here that makes `x`.
    fn made(&self, x: &Value) -> Option<&Node> {
        self.graph.nodes[self.start..].iter().rev().find(|it| it.outputs.first() == Some(x))
    }
}
