//! This file is where the builder's vocabulary is: one method for each operator that rules like to use.

use super::Builder;
use crate::compile::facts::{Fact, Length, Shape, broadcast, reshape_target};
use crate::compile::graph::{Attribute, Element, Tensor, Value};

impl Builder {
    /// `a + b`, broadcast.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Add", a, b)
    }

    /// `a − b`, broadcast.
    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Sub", a, b)
    }

    /// `a·b`, broadcast.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Mul", a, b)
    }

    /// `a/b`, broadcast.
    pub fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Div", a, b)
    }

    /// `x·factor`.
    pub fn scale(&mut self, x: &Value, factor: f64) -> Value {
        let factor = self.scalar(factor);
        self.mul(x, &factor)
    }

    /// A pointwise operator of two operands, broadcast; the result has the type of `a`.
    pub fn binary(&mut self, op: &str, a: &Value, b: &Value) -> Value {
        let fact = Fact::new(self.fact(a).element, self.broadcast_shape(&[a, b]));
        self.emit(op, &[a, b], &[], fact)
    }

    /// A pointwise comparison of two operands, broadcast: truth values.
    pub fn compare(&mut self, op: &str, a: &Value, b: &Value) -> Value {
        let fact = Fact::new(Element::Bool, self.broadcast_shape(&[a, b]));
        self.emit(op, &[a, b], &[], fact)
    }

    /// A pointwise operator of one operand.
    pub fn unary(&mut self, op: &str, x: &Value) -> Value {
        self.unary_with(op, x, &[])
    }

    /// A pointwise operator of one operand with attributes.
    pub fn unary_with(&mut self, op: &str, x: &Value, attributes: super::Attributes<'_>) -> Value {
        let fact = Fact::new(self.fact(x).element, self.shape(x));
        self.emit(op, &[x], attributes, fact)
    }

    /// `−x`.
    pub fn neg(&mut self, x: &Value) -> Value {
        self.unary("Neg", x)
    }

    /// `a` where `condition` holds, else `b`, broadcast.
    pub fn select(&mut self, condition: &Value, a: &Value, b: &Value) -> Value {
        let fact = Fact::new(self.fact(a).element, self.broadcast_shape(&[condition, a, b]));
        self.emit("Where", &[condition, a, b], &[], fact)
    }

    /// `x` as another element type.
    pub fn cast(&mut self, x: &Value, element: Element) -> Value {
        if self.fact(x).element == element {
            return x.clone();
        }
        let fact = Fact::new(element, self.shape(x));
        self.emit("Cast", &[x], &[("to", i64::from(element.code()).into())], fact)
    }

    /// Matrix product over the last two axes, the others broadcast. Both operands have at least two axes.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        let (left, right) = (self.shape(a), self.shape(b));
        let mut shape = broadcast(&[&left[..left.len() - 2], &right[..right.len() - 2]]);
        shape.extend([left[left.len() - 2], right[right.len() - 1]]);
        let fact = Fact::new(self.fact(a).element, shape);
        self.emit("MatMul", &[a, b], &[], fact)
    }

    /// `x` with its axes in the order `perm`.
    pub fn transpose(&mut self, x: &Value, perm: &[usize]) -> Value {
        let (x, perm) = self.before_turning(x, perm);
        let (x, perm) = (&x, &perm[..]);
        if perm.iter().enumerate().all(|(to, &from)| to == from) {
            return x.clone();
        }
        let shape = self.shape(x);
        let fact = Fact::new(self.fact(x).element, perm.iter().map(|&it| shape[it]).collect());
        let perm: Vec<i64> = perm.iter().map(|&it| it as i64).collect();
        self.emit("Transpose", &[x], &[("perm", perm.into())], fact)
    }

    /// `x` with its last two axes exchanged.
    pub fn transpose_last(&mut self, x: &Value) -> Value {
        let rank = self.rank(x);
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(x, &perm)
    }

    /// Sum over `axes` (counted from the front).
    pub fn reduce_sum(&mut self, x: &Value, axes: &[usize], keep: bool) -> Value {
        self.reduce("ReduceSum", x, axes, keep)
    }

    /// Mean over `axes` (counted from the front).
    pub fn reduce_mean(&mut self, x: &Value, axes: &[usize], keep: bool) -> Value {
        self.reduce("ReduceMean", x, axes, keep)
    }

    /// A reduction over `axes` (counted from the front); over none, `x` itself.
    pub fn reduce(&mut self, op: &str, x: &Value, axes: &[usize], keep: bool) -> Value {
        if axes.is_empty() {
            return x.clone();
        }
        let mut shape = self.shape(x);
        axes.iter().for_each(|&it| shape[it] = Length::ONE);
        if !keep {
            let kept = shape.into_iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
            shape = kept.map(|it| it.1).collect();
        }
        let fact = Fact::new(self.fact(x).element, shape);
        let axes: Vec<i64> = axes.iter().map(|&it| it as i64).collect();
        let keepdims = ("keepdims", i64::from(keep).into());
        if op == "ReduceSum" || self.opset() >= 18 {
            let axes = self.ints(&axes);
            return self.emit(op, &[x, &axes], &[keepdims], fact);
        }
        self.emit(op, &[x], &[("axes", axes.into()), keepdims], fact)
    }

    /// `x` in the shape of `like`, which has as many elements.
    pub fn reshape_like(&mut self, x: &Value, like: &Value) -> Value {
        if self.shape(x) == self.shape(like) {
            return x.clone();
        }
        let (from, to) = (self.shape(x), self.shape(like));
        match reshape_target(&from, &to) {
            Some(target) => {
                let target = self.ints(&target);
                self.reshape(x, &target, to)
            }
            None => {
                let target = self.shape_of(like);
                self.reshape_exactly(x, &target, to)
            }
        }
    }

    /// `x` reshaped to a list of lengths, where 0 is the length zero.
    pub fn reshape_exactly(&mut self, x: &Value, lengths: &Value, shape: Shape) -> Value {
        let fact = Fact::new(self.fact(x).element, shape);
        self.emit("Reshape", &[x, lengths], &[("allowzero", 1.into())], fact)
    }

    /// `x` reshaped to a target computed elsewhere, which leads to `shape`.
    pub fn reshape(&mut self, x: &Value, target: &Value, shape: Shape) -> Value {
        let fact = Fact::new(self.fact(x).element, shape);
        self.emit("Reshape", &[x, target], &[], fact)
    }

    /// `x` reshaped to `shape`, whose lengths are fixed, lengths of `x` at the same place, or one unknown.
    /// `None` when the target cannot be written as constants.
    pub fn reshape_to(&mut self, x: &Value, shape: Shape) -> Option<Value> {
        if self.shape(x) == shape {
            return Some(x.clone());
        }
        let target = reshape_target(&self.shape(x), &shape)?;
        let target = self.ints(&target);
        Some(self.reshape(x, &target, shape))
    }

    /// `x` broadcast to the shape of `like`.
    pub fn expand_like(&mut self, x: &Value, like: &Value) -> Value {
        if self.shape(x) == self.shape(like) {
            return x.clone();
        }
        let target = self.shape_of(like);
        let fact = Fact::new(self.fact(x).element, self.shape(like));
        self.emit("Expand", &[x, &target], &[], fact)
    }

    /// The lengths of `x`, computed when the graph runs or constant.
    pub fn shape_of(&mut self, x: &Value) -> Value {
        let shape = self.shape(x);
        let constant: Option<Vec<i64>> =
            shape.iter().map(|it| it.constant().map(|length| length as i64)).collect();
        if let Some(lengths) = constant {
            return self.ints(&lengths);
        }
        let fact = Fact::new(Element::I64, vec![Length::fixed(shape.len())]);
        self.emit("Shape", &[x], &[], fact)
    }

    /// The length of one axis as a list of one, computed when the graph runs or constant.
    pub fn length_of(&mut self, x: &Value, axis: usize) -> Value {
        if let Some(length) = self.shape(x)[axis].constant() {
            return self.ints(&[length as i64]);
        }
        let fact = Fact::new(Element::I64, vec![Length::ONE]);
        let (start, end) = (axis as i64, axis as i64 + 1);
        self.emit("Shape", &[x], &[("start", start.into()), ("end", end.into())], fact)
    }

    /// `x` with an axis of length one put in before each of `axes` (places in the result).
    pub fn unsqueeze(&mut self, x: &Value, axes: &[usize]) -> Value {
        let mut shape = self.shape(x);
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        sorted.iter().for_each(|&it| shape.insert(it, Length::ONE));
        let fact = Fact::new(self.fact(x).element, shape);
        let axes: Vec<i64> = sorted.iter().map(|&it| it as i64).collect();
        let axes = self.ints(&axes);
        self.emit("Unsqueeze", &[x, &axes], &[], fact)
    }

    /// `x` without `axes`, which have length one.
    pub fn squeeze(&mut self, x: &Value, axes: &[usize]) -> Value {
        let kept = self.shape(x).into_iter().enumerate().filter(|(axis, _)| !axes.contains(axis));
        let fact = Fact::new(self.fact(x).element, kept.map(|it| it.1).collect());
        let axes: Vec<i64> = axes.iter().map(|&it| it as i64).collect();
        let axes = self.ints(&axes);
        self.emit("Squeeze", &[x, &axes], &[], fact)
    }

    /// Operands put one behind the other along `axis`.
    pub fn concat(&mut self, parts: &[&Value], axis: usize) -> Value {
        let mut shape = self.shape(parts[0]);
        for part in &parts[1..] {
            shape[axis] = shape[axis].zip(self.shape(part)[axis], |a, b| a + b);
        }
        let fact = Fact::new(self.fact(parts[0]).element, shape);
        self.emit("Concat", parts, &[("axis", (axis as i64).into())], fact)
    }

    /// Zeros in the shape and type of `like`.
    pub fn zeros_like(&mut self, like: &Value) -> Value {
        self.filled_like(like, 0.0)
    }

    /// A floating constant in the shape and type of `like`.
    pub fn filled_like(&mut self, like: &Value, value: f64) -> Value {
        let target = self.shape_of(like);
        let fact = Fact::new(self.fact(like).element, self.shape(like));
        let fill = Tensor::from_f64(fact.element, &[1], &[value]);
        self.emit("ConstantOfShape", &[&target], &[("value", Attribute::Tensor(fill))], fact)
    }

    /// Sums `x` over the axes along which a value of `shape` was broadcast.
    pub fn sum_to(&mut self, x: &Value, shape: &[Length]) -> Value {
        let wide = self.shape(x);
        let extra = wide.len().saturating_sub(shape.len());
        let leading: Vec<usize> = (0..extra).collect();
        let x = self.reduce_sum(x, &leading, false);
        let stretched = |&axis: &usize| shape[axis] == Length::ONE && wide[extra + axis] != Length::ONE;
        let axes: Vec<usize> = (0..shape.len()).filter(stretched).collect();
        self.reduce_sum(&x, &axes, true)
    }

    fn broadcast_shape(&self, values: &[&Value]) -> Shape {
        let shapes: Vec<Shape> = values.iter().map(|it| self.shape(it)).collect();
        broadcast(&shapes.iter().map(|it| &it[..]).collect::<Vec<_>>())
    }
}
