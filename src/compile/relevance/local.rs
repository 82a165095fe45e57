//! This file is where the backward walk meets a composite: what happens to relevance at one node.
//!
//! The relevance of a value is the value times its cotangent, element by element. So where a rule is linear in the
//! operand, a bent gradient is all there is to it, and one walk serves gradients and relevance.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::ledger::Ledger;
use super::linear::{self, Absorbed};
use crate::compile::builder::Builder;
use crate::compile::composite::{Bend, Composite, Role};
use crate::compile::gradient::{self, NO_RULE};
use crate::compile::graph::{Node, Value};
use crate::compile::ops::{self, Cotangents, Kind, Misfit, Operator};

/// Divisors of relevance are kept from zero by this, on their own side of it.
const STABILISER: f64 = 1e-6;

/// A composite at work on one graph.
pub struct Rules {
    /// Which one.
    pub composite: Composite,
    /// Bounds of the embeddings' components.
    pub range: (f64, f64),
    /// Values that are the embeddings, moved about at the most.
    pub entries: HashSet<Value>,
    /// Between which hidden states a node lies, by its first result.
    pub segments: HashMap<Value, usize>,
    /// What was absorbed so far.
    pub ledger: RefCell<Ledger>,
    /// Rules that were borrowed so far, by role and operator.
    pub borrowed: RefCell<BTreeSet<(Role, String)>>,
    /// Did a layer read the embeddings themselves?
    pub entered: RefCell<bool>,
}

impl Rules {
    /// Node and cotangents of its results in, cotangents of its operands out; the walk's `local`.
    ///
    /// # Errors
    /// An operator without a rule, a role that the composite does not decide, a form that a rule does not cover.
    pub fn local(&self, b: &mut Builder, node: &Node, dys: &[Option<Value>]) -> Result<Cotangents, Misfit> {
        let operator = ops::find(node).ok_or(NO_RULE)?;
        if operator.kind == Kind::Product && ops::adds(node).is_some_and(|it| b.wants(it)) {
            return Err("what it adds depends on the embeddings".into());
        }
        let role = self.role(b, node, operator);
        let undecided = || Misfit(format!("{} has no rule for a {}", self.composite.slug(), role.name()));
        let bend = self.composite.bend(role).ok_or_else(undecided)?;
        if !self.composite.covers(role) {
            self.borrowed.borrow_mut().insert((role, node.operator()));
        }
        if role == Role::Entry {
            self.entered.replace(true);
        }
        match bend {
            Bend::Gradient => self.gradient(b, node, dys, role),
            Bend::Share => self.share(b, node, dys),
            Bend::Secant => self.secant(b, node, single(dys)?, operator),
            Bend::Hold => self.hold(b, node, single(dys)?, operator),
            Bend::Constant => Ok(Vec::new()),
            Bend::Linear(rule) => {
                let crossed = linear::cross(b, node, single(dys)?, rule, self.range)?;
                for it in &crossed.absorbed {
                    match it {
                        Absorbed::Sum(value, factor) => self.book(b, node, value, *factor)?,
                        Absorbed::Product(x, dx) => self.book_product(b, node, x, dx)?,
                    }
                }
                Ok(crossed.cotangents)
            }
        }
    }

    fn role(&self, b: &Builder, node: &Node, operator: &Operator) -> Role {
        let active: Vec<&Value> = node.inputs.iter().filter(|it| b.wants(it)).collect();
        match operator.kind {
            Kind::Product | Kind::Scale if active.len() > 1 => Role::Interaction,
            // Its weights are not an operand, and not the model's: a Fourier transform.
            Kind::Product if floating(b, node).len() < 2 => Role::Sum,
            Kind::Product if active.iter().any(|it| self.entries.contains(*it)) => Role::Entry,
            Kind::Product => Role::Layer,
            Kind::Scale => Role::Scaling,
            Kind::Quotient if active.first() == node.inputs.first().as_ref() => Role::Quotient,
            // A constant by an operand is a function of the operand.
            Kind::Quotient | Kind::Elementwise | Kind::Gate(_) => Role::Activation,
            Kind::Accumulation => Role::Accumulation,
            Kind::Sum if active.len() > 1 => Role::Addition,
            Kind::Sum => Role::Sum,
            Kind::Rectifier => Role::Rectifier,
            Kind::Softmax => Role::Softmax,
            Kind::Normalization(_) => Role::Normalization,
            Kind::Maximum => Role::Maximum,
            Kind::Routing | Kind::Metadata => Role::Routing,
        }
    }

    /// The operator's own rule; what constants beside the active operands get is absorbed.
    fn gradient(
        &self,
        b: &mut Builder,
        node: &Node,
        dys: &[Option<Value>],
        role: Role,
    ) -> Result<Cotangents, Misfit> {
        match role {
            Role::Entry | Role::Layer => {
                let cotangents = gradient::local(b, node, dys)?;
                self.offset(b, node, single(dys)?)?;
                Ok(cotangents)
            }
            Role::Softmax => {
                // The first-order term of the expansion is handed on, the rest of it absorbed.
                let cotangents = gradient::local(b, node, dys)?;
                let y = ops::softmax_guard(b.graph(), &node.outputs[0]);
                if node.op == "Softmax" {
                    // The rule makes the same product.
                    let product = b.mul(&y, single(dys)?);
                    self.book(b, node, &product, 1.0)?;
                } else {
                    self.book_product(b, node, &y, single(dys)?)?;
                }
                if let Some(dx) = cotangents.first().cloned().flatten() {
                    let mut ledger = self.ledger.borrow_mut();
                    ledger.book_product(b, self.segment(node), &node.inputs[0], &dx, -1.0)?;
                }
                Ok(cotangents)
            }
            Role::Scaling | Role::Rectifier => {
                if one_active(b, node)? > 0 && role == Role::Rectifier {
                    return Err("its slope depends on the embeddings".into());
                }
                gradient::local(b, node, dys)
            }
            Role::Addition | Role::Sum | Role::Maximum | Role::Routing => {
                let cotangents = b.asking(floating(b, node), |b| gradient::local(b, node, dys))?;
                self.constants(b, node, &cotangents)?;
                Ok(cotangents)
            }
            Role::Interaction
            | Role::Quotient
            | Role::Accumulation
            | Role::Activation
            | Role::Normalization => Err("its gradient is no rule of relevance".into()),
        }
    }

    /// Each of `n` active operands gets an `n`-th of its gradient.
    fn share(&self, b: &mut Builder, node: &Node, dys: &[Option<Value>]) -> Result<Cotangents, Misfit> {
        let dy = single(dys)?;
        let count = node.inputs.iter().filter(|it| b.wants(it)).count();
        let part = b.scale(dy, 1.0 / count.max(1) as f64);
        let cotangents = gradient::local(b, node, &[Some(part)])?;
        self.offset(b, node, dy)?;
        Ok(cotangents)
    }

    /// `dx = dy·y/x`, by the gate where there is one.
    fn secant(
        &self,
        b: &mut Builder,
        node: &Node,
        dy: &Value,
        operator: &Operator,
    ) -> Result<Cotangents, Misfit> {
        if let Kind::Gate(held) = operator.kind {
            let cotangents = held(b, node, dy)?;
            self.constants(b, node, &cotangents)?;
            return Ok(cotangents);
        }
        let place = one_active(b, node)?;
        let (x, y) = (&node.inputs[place], &node.outputs[0]);
        let (zero, plus, minus) = (b.scalar(0.0), b.scalar(STABILISER), b.scalar(-STABILISER));
        let below = b.compare("Less", x, &zero);
        let stabiliser = b.select(&below, &minus, &plus);
        let stable = b.add(x, &stabiliser);
        let r = b.mul(dy, y);
        let dx = b.div(&r, &stable);
        // R − x·R/(x + s) = s·R/(x + s)
        let lost = b.mul(&dx, &stabiliser);
        self.book(b, node, &lost, 1.0)?;
        let mut cotangents: Cotangents = vec![None; node.inputs.len()];
        cotangents[place] = Some(dx);
        Ok(cotangents)
    }

    /// The gradient with statistics, or the divisor, constant.
    fn hold(
        &self,
        b: &mut Builder,
        node: &Node,
        dy: &Value,
        operator: &Operator,
    ) -> Result<Cotangents, Misfit> {
        if let Kind::Normalization(held) = operator.kind {
            one_active(b, node)?;
            let cotangents = held(b, node, dy)?;
            self.offset(b, node, dy)?;
            return Ok(cotangents);
        }
        let wanted = HashSet::from([node.inputs[0].clone()]);
        let mut cotangents = b.asking(wanted, |b| gradient::local(b, node, &[Some(dy.clone())]))?;
        cotangents.truncate(1);
        Ok(cotangents)
    }

    /// Books what the operator adds, whatever its operand.
    fn offset(&self, b: &mut Builder, node: &Node, dy: &Value) -> Result<(), Misfit> {
        match ops::offset(b, node) {
            Some(offset) => self.book_product(b, node, &offset, dy),
            None => Ok(()),
        }
    }

    /// Books what operands get that are not active.
    fn constants(&self, b: &mut Builder, node: &Node, cotangents: &Cotangents) -> Result<(), Misfit> {
        for (operand, dx) in node.inputs.iter().zip(cotangents) {
            if let Some(dx) = dx.as_ref().filter(|_| !b.wants(operand)) {
                self.book_product(b, node, operand, dx)?;
            }
        }
        Ok(())
    }

    fn segment(&self, node: &Node) -> usize {
        node.outputs.first().and_then(|it| self.segments.get(it)).copied().unwrap_or(0)
    }

    fn book(&self, b: &mut Builder, node: &Node, value: &Value, factor: f64) -> Result<(), Misfit> {
        self.ledger.borrow_mut().book(b, self.segment(node), value, factor)
    }

    fn book_product(&self, b: &mut Builder, node: &Node, x: &Value, dx: &Value) -> Result<(), Misfit> {
        self.ledger.borrow_mut().book_product(b, self.segment(node), x, dx, 1.0)
    }
}

/// The cotangent of an operator of one result.
fn single(dys: &[Option<Value>]) -> Result<&Value, Misfit> {
    match dys {
        [Some(dy), rest @ ..] if rest.iter().all(Option::is_none) => Ok(dy),
        _ => Err("a further result is on the path".into()),
    }
}

/// The place of the only active operand.
fn one_active(b: &Builder, node: &Node) -> Result<usize, Misfit> {
    let mut active = (0..node.inputs.len()).filter(|&it| b.wants(&node.inputs[it]));
    match (active.next(), active.next()) {
        (Some(place), None) => Ok(place),
        _ => Err("more than one operand depends on the embeddings".into()),
    }
}

/// The operands that are floating-point numbers, active or not.
fn floating(b: &Builder, node: &Node) -> HashSet<Value> {
    let is_floating = |it: &&Value| b.known(it).is_some_and(|it| it.element.is_floating());
    node.inputs.iter().filter(is_floating).cloned().collect()
}
