//! This file is where what was learned by running a graph is kept: types, lengths, constant values.
//!
//! A graph is probed with two batches of different sizes; a length is a pair, and pairs that agree stand
//! for the same quantity. No shape inference is needed.

use std::collections::HashMap;

use super::graph::{Element, Tensor, Value};

/// How often a graph is probed.
pub const PROBES: usize = 2;

/// The length of one axis at each probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Length(pub [usize; PROBES]);

/// The lengths of all axes.
pub type Shape = Vec<Length>;

impl Length {
    /// The length one, and that of a broadcast axis.
    pub const ONE: Self = Self([1; PROBES]);

    /// A length that does not vary.
    pub fn fixed(length: usize) -> Self {
        Self([length; PROBES])
    }

    /// The length, if it was the same at every probe.
    pub fn constant(self) -> Option<usize> {
        self.0.iter().all(|&it| it == self.0[0]).then_some(self.0[0])
    }

    /// What broadcasting makes of two lengths.
    pub fn broadcast(self, other: Self) -> Self {
        Self(std::array::from_fn(|probe| match (self.0[probe], other.0[probe]) {
            (1, length) => length,
            (length, _) => length,
        }))
    }

    /// Lengths computed probe by probe.
    pub fn zip(self, other: Self, f: impl Fn(usize, usize) -> usize) -> Self {
        Self(std::array::from_fn(|probe| f(self.0[probe], other.0[probe])))
    }
}

/// The shape that several operands are broadcast to.
pub fn broadcast(shapes: &[&[Length]]) -> Shape {
    let rank = shapes.iter().map(|it| it.len()).max().unwrap_or(0);
    let mut result = vec![Length::ONE; rank];
    for shape in shapes {
        for (length, &other) in result.iter_mut().rev().zip(shape.iter().rev()) {
            *length = length.broadcast(other);
        }
    }
    result
}

/// What is known of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Its element type.
    pub element: Element,
    /// Its lengths.
    pub shape: Shape,
    /// Its contents, where they depend on nothing but the lengths of axes and are the same at both probes.
    pub constant: Option<Tensor>,
}

impl Fact {
    /// A value of which only type and shape are known.
    pub fn new(element: Element, shape: Shape) -> Self {
        Self { element, shape, constant: None }
    }

    /// What is known of a constant.
    pub fn of(tensor: &Tensor) -> Self {
        let shape = tensor.dims().iter().map(|&it| Length::fixed(it)).collect();
        Self { element: tensor.element(), shape, constant: Some(tensor.clone()) }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The axis that an attribute names, counted from the front; `None` when it is out of range.
    pub fn axis(&self, axis: i64) -> Option<usize> {
        resolve(axis, self.rank())
    }

    /// The constant contents of an integer value.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.constant.as_ref()?.to_i64()
    }
}

/// `axis` counted from the front; `None` when it is out of range.
pub fn resolve(axis: i64, rank: usize) -> Option<usize> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front).ok().filter(|&it| it < rank)
}

/// What is known of each value.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    known: HashMap<Value, Fact>,
}

impl Facts {
    /// What is known of `value`.
    pub fn get(&self, value: &str) -> Option<&Fact> {
        self.known.get(value)
    }

    /// The values that something is known of.
    pub fn names(&self) -> impl Iterator<Item = &Value> {
        self.known.keys()
    }

    /// Learns something of `value`.
    pub fn insert(&mut self, value: Value, fact: Fact) {
        self.known.insert(value, fact);
    }
}

/// A constant Reshape target: numbers, 0 where a length is that of `from` at the same place, one −1 at most.
pub fn reshape_target(from: &[Length], to: &[Length]) -> Option<Vec<i64>> {
    let mut unknown = 0;
    let entry = |(axis, length): (usize, &Length)| match length.constant() {
        Some(0) => None,
        Some(length) => Some(length as i64),
        None if from.get(axis) == Some(length) => Some(0),
        None => {
            unknown += 1;
            Some(-1)
        }
    };
    let target: Option<Vec<i64>> = to.iter().enumerate().map(entry).collect();
    target.filter(|_| unknown <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_aligns_at_the_last_axis() {
        let (batch, tokens, hidden) = (Length([2, 3]), Length([7, 11]), Length::fixed(4));
        let wide = broadcast(&[&[batch, tokens, hidden], &[Length::ONE, hidden], &[]]);
        assert_eq!(wide, [batch, tokens, hidden]);
    }

    #[test]
    fn an_axis_of_length_zero_wins_over_one() {
        assert_eq!(Length::ONE.broadcast(Length::fixed(0)), Length::fixed(0));
    }

    #[test]
    fn axes_count_from_either_end() {
        assert_eq!(
            [resolve(-1, 3), resolve(0, 3), resolve(3, 3), resolve(-4, 3)],
            [Some(2), Some(0), None, None]
        );
    }

    #[test]
    fn reshape_targets_copy_batch_and_infer_one_length() {
        let (batch, tokens) = (Length([2, 3]), Length([7, 11]));
        let (heads, width, hidden) = (Length::fixed(4), Length::fixed(8), Length::fixed(32));
        let split = [batch, tokens, heads, width];
        assert_eq!(reshape_target(&[batch, tokens, hidden], &split), Some(vec![0, 0, 4, 8]));
        let folded = [Length([14, 33]), hidden];
        assert_eq!(reshape_target(&[batch, tokens, hidden], &folded), Some(vec![-1, 32]));
        assert_eq!(reshape_target(&folded, &[batch, tokens, hidden]), None);
    }
}
