//! This file is where the builder works with lengths that are known only when the graph runs.

use super::Builder;
use crate::compile::facts::{Fact, Length, Shape};
use crate::compile::graph::{Attribute, Element, Tensor, Value};

impl Builder {
    /// An integer scalar.
    pub fn int(&mut self, value: i64) -> Value {
        self.constant(Tensor::from_i64(&[], &[value]))
    }

    /// Lists of integers one behind the other; constant if all of them are.
    pub fn joined(&mut self, lists: &[Value]) -> Value {
        let constants: Option<Vec<Vec<i64>>> = lists.iter().map(|it| self.ints_of(it)).collect();
        if let Some(constants) = constants {
            return self.ints(&constants.concat());
        }
        self.concat(&lists.iter().collect::<Vec<_>>(), 0)
    }

    /// Zeros of the current type, each axis as long as the named axis of the named value.
    pub fn zeros_of(&mut self, axes: &[(&Value, usize)]) -> Value {
        let shape: Shape = axes.iter().map(|(value, axis)| self.shape(value)[*axis]).collect();
        let lengths: Vec<Value> = axes.iter().map(|(value, axis)| self.length_of(value, *axis)).collect();
        let target = self.joined(&lengths);
        let fill = Tensor::from_f64(self.element, &[1], &[0.0]);
        let fact = Fact::new(self.element, shape);
        self.emit("ConstantOfShape", &[&target], &[("value", Attribute::Tensor(fill))], fact)
    }

    /// 0, 1, 2 … as many as `axis` of `x` is long.
    pub fn range(&mut self, x: &Value, axis: usize) -> Value {
        let length = self.length_of(x, axis);
        let (start, step, end) = (self.int(0), self.int(1), self.squeeze(&length, &[0]));
        let fact = Fact::new(Element::I64, vec![self.shape(x)[axis]]);
        self.emit("Range", &[&start, &end, &step], &[], fact)
    }

    /// The elements of `x` in one axis.
    pub fn flattened(&mut self, x: &Value) -> Value {
        let count = self.shape(x).iter().fold(Length::ONE, |product, &it| product.zip(it, |p, q| p * q));
        let target = self.ints(&[-1]);
        self.reshape(x, &target, vec![count])
    }

    /// How many elements `axes` of `x` hold together, as a scalar of the current floating type.
    pub fn count_along(&mut self, x: &Value, axes: &[usize]) -> Value {
        let shape = self.shape(x);
        let constant: Option<Vec<usize>> = axes.iter().map(|&it| shape[it].constant()).collect();
        if let Some(lengths) = constant {
            return self.scalar(lengths.iter().product::<usize>() as f64);
        }
        let lengths: Vec<Value> = axes.iter().map(|&it| self.length_of(x, it)).collect();
        let lengths = self.joined(&lengths);
        let count = self.reduce("ReduceProd", &lengths, &[0], false);
        self.cast(&count, self.element)
    }

    /// `x` with zeros put to it until it is as long as `like` along `axes`: in front where the flag says so,
    /// else behind.
    pub fn pad_to(&mut self, x: &Value, like: &Value, axes: &[(usize, bool)]) -> Value {
        let (short, long) = (self.shape(x), self.shape(like));
        let differing: Vec<(usize, bool)> =
            axes.iter().copied().filter(|&(axis, _)| short[axis] != long[axis]).collect();
        if differing.is_empty() {
            return x.clone();
        }
        let rank = short.len();
        let none = self.ints(&[0]);
        let mut pads = vec![none; 2 * rank];
        let mut shape = short;
        for (axis, front) in differing {
            let place = if front { axis } else { axis + rank };
            pads[place] = self.missing(x, like, axis);
            shape[axis] = long[axis];
        }
        let pads = self.joined(&pads);
        let fact = Fact::new(self.fact(x).element, shape);
        self.emit("Pad", &[x, &pads], &[], fact)
    }

    /// How much longer `like` is than `x` along `axis`, as a list of one.
    fn missing(&mut self, x: &Value, like: &Value, axis: usize) -> Value {
        let (short, long) = (self.shape(x)[axis], self.shape(like)[axis]);
        if let Some(missing) = long.zip(short, |long, short| long.wrapping_sub(short)).constant() {
            return self.ints(&[missing as i64]);
        }
        let (short, long) = (self.length_of(x, axis), self.length_of(like, axis));
        self.sub(&long, &short)
    }

    /// `x` cut along `axis` into parts as long as the operands.
    pub fn split_like(&mut self, x: &Value, operands: &[&Value], axis: usize) -> Vec<Value> {
        let lengths: Vec<Value> = operands.iter().map(|it| self.length_of(it, axis)).collect();
        let lengths = self.joined(&lengths);
        let facts = operands.iter().map(|it| {
            let mut shape = self.shape(x);
            shape[axis] = self.shape(it)[axis];
            Fact::new(self.fact(x).element, shape)
        });
        let facts = facts.collect();
        self.emit_in("", "Split", &[x, &lengths], &[("axis", (axis as i64).into())], facts)
    }
}
