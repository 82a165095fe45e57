//! This file is where the books of relevance are kept: what biases, stabilisers and expansions absorbed, row by row
//! and layer by layer.
//!
//! Every entry follows from a rule's own formula (a bias times its cotangent, for one), never from the difference
//! between what went in and what came out: that the books close is a finding.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::compile::builder::Builder;
use crate::compile::cut::EMBEDS;
use crate::compile::facts::{Length, Shape};
use crate::compile::graph::{Node, Tensor, Value};
use crate::compile::ops::Misfit;

/// What was absorbed between hidden states.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<(usize, Shape), Value>,
}

impl Ledger {
    /// Books `factor` times the sum of `x` over everything but the batch.
    pub fn book(&mut self, b: &mut Builder, segment: usize, x: &Value, factor: f64) -> Result<(), Misfit> {
        let rows = rows(b, x)?;
        let rows = if factor == 1.0 { rows } else { b.scale(&rows, factor) };
        self.put(b, segment, rows);
        Ok(())
    }

    /// Books `factor` times the sum of `x·dx` over everything but the batch. Where `dx` is zero nothing is booked,
    /// whatever `x` is.
    pub fn book_product(
        &mut self,
        b: &mut Builder,
        segment: usize,
        x: &Value,
        dx: &Value,
        factor: f64,
    ) -> Result<(), Misfit> {
        let constant = b.fact(x).constant.as_ref().and_then(Tensor::to_f64);
        let finite = constant.as_ref().is_some_and(|it| it.iter().all(|it| it.is_finite()));
        if constant.is_some_and(|it| it.iter().all(|&it| it == 0.0)) {
            return Ok(());
        }
        let (shape, wide) = (b.shape(x), b.shape(dx));
        let batch = b.shape(EMBEDS)[0];
        if finite && shape.len() == 1 && wide.len() > 2 && wide.last() == shape.last() && wide[0] == batch {
            // Positions first: a product of matrix and vector is slow for what it reads.
            let summed = b.reduce_sum(dx, &(1..wide.len() - 1).collect::<Vec<_>>(), false);
            let partial = b.matvec(&summed, x);
            let partial = if factor == 1.0 { partial } else { b.scale(&partial, factor) };
            self.put(b, segment, partial);
            return Ok(());
        }
        let x = if finite {
            x.clone()
        } else {
            let zero = b.scalar(0.0);
            let idle = b.compare("Equal", dx, &zero);
            b.select(&idle, &zero, x)
        };
        let product = b.mul(&x, dx);
        self.book(b, segment, &product, factor)
    }

    fn put(&mut self, b: &mut Builder, segment: usize, x: Value) {
        let key = (segment, b.shape(&x));
        let total = match self.entries.remove(&key) {
            Some(so_far) => b.add(&so_far, &x),
            None => x,
        };
        self.entries.insert(key, total);
    }

    /// [batch, segments]: what each segment absorbed.
    pub fn close(self, b: &mut Builder, segments: usize) -> Result<Value, Misfit> {
        let mut entries: Vec<((usize, Shape), Value)> = self.entries.into_iter().collect();
        entries.sort_by(|a, b| a.1.cmp(&b.1));
        let embeds: Value = EMBEDS.into();
        let mut columns: Vec<Option<Value>> = vec![None; segments];
        for ((segment, _), value) in entries {
            let rows = rows(b, &value)?;
            let column = &mut columns[segment];
            *column = Some(match column.take() {
                Some(so_far) => b.add(&so_far, &rows),
                None => rows,
            });
        }
        let column = |it: Option<Value>| {
            let rows = it.unwrap_or_else(|| b.zeros_of(&[(&embeds, 0)]));
            b.unsqueeze(&rows, &[1])
        };
        let columns: Vec<Value> = columns.into_iter().map(column).collect();
        Ok(b.concat(&columns.iter().collect::<Vec<_>>(), 1))
    }
}

/// The sum over everything but the batch: [batch].
pub fn rows(b: &mut Builder, x: &Value) -> Result<Value, Misfit> {
    let batch = b.shape(EMBEDS)[0];
    if batch == Length::ONE && b.rank(x) == 0 {
        return Ok(b.unsqueeze(x, &[0]));
    }
    by_row(b, x, 0)
}

/// The sum over everything but the batch and the last `kept` axes.
pub fn by_row(b: &mut Builder, x: &Value, kept: usize) -> Result<Value, Misfit> {
    let embeds: Value = EMBEDS.into();
    let (batch, shape) = (b.shape(&embeds)[0], b.shape(x));
    let (outer, inner) = shape.split_at(shape.len().saturating_sub(kept));
    let all_but = |axis: usize, count: usize| (0..count).filter(|&it| it != axis).collect::<Vec<_>>();
    if let Some(axis) = outer.iter().position(|&it| it == batch) {
        return Ok(b.reduce_sum(x, &all_but(axis, outer.len()), false));
    }
    // Rows that were folded into an axis come apart again.
    let refuse = || Misfit::from("what it absorbs cannot be told row by row");
    let multiple = |it: &Length| batch.0.iter().zip(it.0).all(|(&n, all)| n != 0 && all % n == 0 && all != 1);
    let varies = |it: &Length| it.constant().is_none() || batch.constant().is_some();
    let axis = outer.iter().position(|it| multiple(it) && varies(it)).ok_or_else(refuse)?;
    let before = folded(b, x, outer[axis], batch).unwrap_or_default();
    let mut told: Shape = before.iter().map(|it| it.0).collect();
    told.push(batch);
    let rest = told.iter().fold(outer[axis], |all, &it| all.zip(it, |all, told| all / told.max(1)));
    let mut lists: Vec<Value> = (0..axis).map(|it| b.length_of(x, it)).collect();
    lists.extend(before.iter().map(|it| it.1.clone()));
    lists.extend([b.length_of(&embeds, 0), b.ints(&[-1])]);
    lists.extend((axis + 1..shape.len()).map(|it| b.length_of(x, it)));
    let target = b.joined(&lists);
    let apart = [&shape[..axis], &told, &[rest], &shape[axis + 1..]].concat();
    let count = apart.len() - inner.len();
    let unfolded = b.reshape(x, &target, apart);
    Ok(b.reduce_sum(&unfolded, &all_but(axis + before.len(), count), false))
}

/// The axes that come before the batch where it became a part of an axis of `x`, of the length `wanted`, and how long each
/// is when the graph runs: rows of [batch, sequence] stand otherwise than those of [sequence, batch].
fn folded(b: &mut Builder, x: &Value, wanted: Length, batch: Length) -> Option<Vec<(Length, Value)>> {
    let (mut open, mut seen) = (vec![x.clone()], HashSet::new());
    let found = loop {
        let value = open.pop()?;
        let Some(maker) = b.graph().nodes.iter().find(|it| it.outputs.contains(&value)) else { continue };
        if let Some(found) = folds(b, maker, &value, wanted, batch) {
            break found;
        }
        let alike = maker.inputs.iter().filter(|it| place(b, it, wanted).is_some());
        open.extend(alike.filter(|it| seen.insert((*it).clone())).cloned());
    };
    Some(match found {
        Folds::Axes(source, axes) => {
            axes.map(|it| (b.shape(&source)[it], b.length_of(&source, it))).collect()
        }
        Folds::Parts(count) => vec![(Length::fixed(count), b.ints(&[count as i64]))],
    })
}

/// How the batch came to be the last part of an axis.
enum Folds {
    /// Behind these axes of a value, which was reshaped.
    Axes(Value, Range<usize>),
    /// So many values were put one behind the other.
    Parts(usize),
}

/// Does this node, which makes `value`, fold the batch into its axis of the length `wanted`?
fn folds(b: &Builder, maker: &Node, value: &Value, wanted: Length, batch: Length) -> Option<Folds> {
    let shape = |it: &Value| Some(&b.known(it)?.shape[..]);
    let count = |it: &[Length]| it.iter().fold(Length::ONE, |all, &it| all.zip(it, |all, it| all * it));
    let axis = place(b, value, wanted)?;
    if maker.is("Reshape") || maker.is("Flatten") {
        let source = maker.inputs.first()?;
        let (end, outside) = (place(b, source, batch)?, count(&shape(value)?[..axis]));
        let lengths = shape(source)?;
        let start = (0..=end).find(|&it| count(&lengths[..it]) == outside)?;
        return Some(Folds::Axes(source.clone(), start..end));
    }
    let along = maker.is("Concat") && b.fact(value).axis(maker.int("axis")?) == Some(axis);
    let parts =
        along && maker.inputs.iter().all(|it| shape(it).is_some_and(|it| it.get(axis) == Some(&batch)));
    parts.then_some(Folds::Parts(maker.inputs.len()))
}

/// The first axis of this length.
fn place(b: &Builder, value: &Value, length: Length) -> Option<usize> {
    b.known(value)?.shape.iter().position(|&it| it == length)
}
