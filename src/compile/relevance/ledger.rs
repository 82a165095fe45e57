//! This file is where the books of relevance are kept: what biases, stabilisers and expansions absorbed, row by row
//! and layer by layer.
//!
//! Every entry follows from a rule's own formula (a bias times its cotangent, for one), never from the difference
//! between what went in and what came out: that the books close is a finding.

use std::collections::HashMap;

use crate::compile::builder::Builder;
use crate::compile::cut::EMBEDS;
use crate::compile::facts::{Length, Shape};
use crate::compile::graph::{Tensor, Value};
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
    let embeds: Value = EMBEDS.into();
    let (batch, shape) = (b.shape(&embeds)[0], b.shape(x));
    if batch == Length::ONE && shape.is_empty() {
        return Ok(b.unsqueeze(x, &[0]));
    }
    if let Some(axis) = shape.iter().position(|&it| it == batch) {
        let others: Vec<usize> = (0..shape.len()).filter(|&it| it != axis).collect();
        return Ok(b.reduce_sum(x, &others, false));
    }
    // Rows that were folded into the first axis come apart again.
    let first = shape.first().copied().unwrap_or(Length::ONE);
    if batch.0.iter().zip(first.0).any(|(&rows, all)| rows == 0 || all % rows != 0 || all == 1) {
        return Err("what it absorbs cannot be told row by row".into());
    }
    let length = b.length_of(&embeds, 0);
    let rest = b.ints(&[-1]);
    let target = b.joined(&[length, rest]);
    let count = shape.iter().fold(Length::ONE, |product, &it| product.zip(it, |p, q| p * q));
    let unfolded = b.reshape(x, &target, vec![batch, count.zip(batch, |all, rows| all / rows)]);
    Ok(b.reduce_sum(&unfolded, &[1], false))
}
