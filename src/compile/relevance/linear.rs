//! This file is where the rules for products with weights are: how relevance crosses a linear layer.
//!
//! A layer is `y = L_w(x) + c`, linear in `x` and in `w`. Since `|xᵢw_ij|` is what the same layer makes of `|x|` and
//! `|w|`, sums of the positive and of the negative contributions need one more product, `q = L_|w|(|x|)`, and going
//! back one more transposed product: `(u)⁺ = ½(u + |u|)`, whatever the operator.

use std::collections::HashSet;

use crate::compile::builder::Builder;
use crate::compile::composite::Linear;
use crate::compile::graph::{Attribute, Node, Tensor, Value};
use crate::compile::ops::{self, Misfit};
use crate::compile::{gradient, ops::Cotangents};

/// Divisors are not let below this.
const TINY: f64 = 1e-9;

/// A sum of positive contributions that is a smaller part than this of all contributions' sizes is rounding: there
/// are none, and what they would get is absorbed.
const NONE: f64 = 1e-4;

/// What a rule answers.
pub struct Crossed {
    /// The operand's cotangent, at its place.
    pub cotangents: Cotangents,
    /// What was absorbed.
    pub absorbed: Vec<Absorbed>,
}

/// What is absorbed is a sum over all elements.
pub enum Absorbed {
    /// Of a value, this many times.
    Sum(Value, f64),
    /// Of a value times another.
    Product(Value, Value),
}

/// A node as a linear layer.
struct Layer<'a> {
    node: &'a Node,
    /// Which operand is active.
    place: usize,
    /// What is added, broadcast against the result.
    offset: Option<Value>,
}

/// Carries the cotangent `dy` of a layer's result to its one active operand. `range` bounds the embeddings'
/// components.
pub fn cross(
    b: &mut Builder,
    node: &Node,
    dy: &Value,
    rule: Linear,
    range: (f64, f64),
) -> Result<Crossed, Misfit> {
    let place = node.inputs.iter().position(|it| b.wants(it)).ok_or("no operand is active")?;
    let offset = ops::offset(b, node);
    let layer = Layer { node, place, offset };
    let (dx, absorbed) = match rule {
        Linear::Epsilon(epsilon) => layer.epsilon(b, dy, epsilon)?,
        Linear::Gamma(gamma) => layer.gamma(b, dy, gamma)?,
        Linear::AlphaBeta { alpha, beta, bias } => layer.alpha_beta(b, dy, alpha, beta, bias)?,
        Linear::Squares => layer.squares(b, dy)?,
        Linear::Box => layer.boxed(b, dy, range)?,
    };
    let mut cotangents: Cotangents = vec![None; node.inputs.len()];
    cotangents[place] = Some(dx);
    Ok(Crossed { cotangents, absorbed })
}

type Answer = Result<(Value, Vec<Absorbed>), Misfit>;

impl Layer<'_> {
    fn x(&self) -> &Value {
        &self.node.inputs[self.place]
    }

    fn y(&self) -> &Value {
        &self.node.outputs[0]
    }

    /// `dy′ = dy·|y|/(|y| + ε)`, then the gradient: `R/(y + ε·sign y)` is `dy′`
    fn epsilon(&self, b: &mut Builder, dy: &Value, epsilon: f64) -> Answer {
        let (size, epsilon) = (b.unary("Abs", self.y()), b.scalar(epsilon));
        let stable = b.add(&size, &epsilon);
        let share = b.div(&size, &stable);
        let bent = b.mul(dy, &share);
        let dx = self.back(b, self.node, &bent)?;
        let lost = b.sub(dy, &bent);
        let mut absorbed = vec![Absorbed::Sum(b.mul(self.y(), &lost), 1.0)];
        absorbed.extend(self.offset.clone().map(|offset| Absorbed::Product(offset, bent)));
        Ok((dx, absorbed))
    }

    /// With `s = R/d`, `d = y + k·sign(y)·q`, `k = ½γ/(1 + ½γ)`: `dx = L_wᵀ(s) + k·sign(x)·L_|w|ᵀ(sign(y)·s)`. Since
    /// `d` has the sign of `y` and `|d| ≥ |y|`, what its stabiliser absorbs is below rounding.
    fn gamma(&self, b: &mut Builder, dy: &Value, gamma: f64) -> Answer {
        let k = 0.5 * gamma / (1.0 + 0.5 * gamma);
        let (twin, q) = self.twin(b, Operands::Sizes)?;
        let part = b.scale_product(&q, k);
        let least = match &self.offset {
            Some(offset) => mapped(b, offset, &|it| k * it.abs() + TINY, |b, it| {
                let (size, tiny) = (b.unary("Abs", it), b.scalar(TINY));
                let size = b.scale(&size, k);
                b.add(&size, &tiny)
            }),
            None => b.scalar(TINY),
        };
        let part = b.add(&part, &least);
        let (size, sign) = (b.unary("Abs", self.y()), b.unary("Sign", self.y()));
        let d = b.add(&size, &part);
        let r = b.mul(dy, &size);
        let s = b.div(&r, &d);
        let signed = b.mul(&s, &sign);
        let (plain, sized) = (self.back(b, self.node, &s)?, self.back(b, &twin, &signed)?);
        let dx = self.joined(b, (&plain, 1.0), (&sized, k));
        let mut absorbed = Vec::new();
        if let Some(offset) = &self.offset {
            let more = mapped(b, offset, &|it| k * it.abs(), |b, it| {
                let size = b.unary("Abs", it);
                b.scale(&size, k)
            });
            absorbed = vec![Absorbed::Product(offset.clone(), s), Absorbed::Product(more, signed)];
        }
        Ok((dx, absorbed))
    }

    /// With `y⁺ = ½(q + y)`, `y⁻ = ½(y − q)`, `u = ½R/y⁺`, `t = −½R/y⁻`:
    /// `dx = L_wᵀ(αu + βt) + sign(x)·L_|w|ᵀ(αu − βt)`
    fn alpha_beta(&self, b: &mut Builder, dy: &Value, alpha: f64, beta: f64, bias: bool) -> Answer {
        let (twin, q) = self.twin(b, Operands::Sizes)?;
        let counted = self.offset.as_ref().filter(|_| bias);
        let sum = match &self.offset {
            Some(offset) if !bias => b.sub(self.y(), offset),
            _ => self.y().clone(),
        };
        let sizes = match counted {
            Some(offset) => {
                let size = mapped(b, offset, &f64::abs, |b, it| b.unary("Abs", it));
                b.add(&q, &size)
            }
            None => q,
        };
        let (r, element) = (b.mul(self.y(), dy), b.fact(dy).element);
        let (tiny, floor) = (b.scalar(TINY), b.scale(&sizes, 2.0 * NONE));
        let mut absorbed = vec![Absorbed::Sum(r.clone(), alpha - beta)];
        // `R` by twice the contributions of one sign, nothing where these are rounding; `weight` of it counts. A mask is
        // multiplied: ONNX Runtime's Where takes several times as long.
        let mut share = |b: &mut Builder, twice: &Value, weight: f64, sign: f64| {
            let some = b.compare("Greater", twice, &floor);
            let some = b.cast(&some, element);
            let (kept, safe) = (b.mul(&r, &some), b.binary("Max", twice, &tiny));
            let share = b.div(&kept, &safe);
            absorbed.push(Absorbed::Sum(kept, -weight * sign));
            if let Some(offset) = counted {
                let own = mapped(b, offset, &|it| weight * (it + sign * it.abs()), |b, it| {
                    let (size, weight) = (b.unary("Abs", it), b.scalar(weight));
                    let size = b.scale(&size, sign);
                    let sum = b.add(it, &size);
                    b.mul(&sum, &weight)
                });
                absorbed.push(Absorbed::Product(own, share.clone()));
            }
            if weight == 1.0 { share } else { b.scale(&share, weight) }
        };
        let twice = b.add(&sizes, &sum);
        let u = share(b, &twice, alpha, 1.0);
        let (plain, sized) = if beta == 0.0 {
            (u.clone(), u)
        } else {
            let twice = b.sub(&sizes, &sum);
            let t = share(b, &twice, beta, -1.0);
            (b.add(&u, &t), b.sub(&u, &t))
        };
        let (plain, sized) = (self.back(b, self.node, &plain)?, self.back(b, &twin, &sized)?);
        Ok((self.joined(b, (&plain, 1.0), (&sized, 1.0)), absorbed))
    }

    /// `Rᵢ = L_{w²}ᵀ(R/L_{w²}(1))`
    fn squares(&self, b: &mut Builder, dy: &Value) -> Answer {
        let (twin, sum) = self.twin(b, Operands::Squares)?;
        let (r, tiny) = (b.mul(self.y(), dy), b.scalar(TINY));
        let sum = b.binary("Max", &sum, &tiny);
        let s = b.div(&r, &sum);
        let relevance = self.back(b, &twin, &s)?;
        Ok(self.as_cotangent(b, &relevance))
    }

    /// With `d = z − ½l(a + c) − ½h(a − c)`, `a = L_w(1)`, `c = L_|w|(1)`, `s = R/d`, `p = L_wᵀ(s)`, `n = L_|w|ᵀ(s)`:
    /// `Rᵢ = xᵢ·p − ½l(p + n) − ½h(p − n)`
    fn boxed(&self, b: &mut Builder, dy: &Value, (low, high): (f64, f64)) -> Answer {
        let (_, a) = self.twin(b, Operands::Ones)?;
        let (twin, c) = self.twin(b, Operands::OnesAndSizes)?;
        let z = match &self.offset {
            Some(offset) => b.sub(self.y(), offset),
            None => self.y().clone(),
        };
        let corner = |b: &mut Builder, plain: &Value, sized: &Value| {
            let (sum, difference) = (b.add(plain, sized), b.sub(plain, sized));
            let (lower, upper) = (b.scale(&sum, 0.5 * low), b.scale(&difference, 0.5 * high));
            b.add(&lower, &upper)
        };
        let least = corner(b, &a, &c);
        let d = b.sub(&z, &least);
        let tiny = b.scalar(TINY);
        let d = b.binary("Max", &d, &tiny);
        let r = b.mul(self.y(), dy);
        let s = b.div(&r, &d);
        let (p, n) = (self.back(b, self.node, &s)?, self.back(b, &twin, &s)?);
        let (moved, least) = (b.mul(self.x(), &p), corner(b, &p, &n));
        let relevance = b.sub(&moved, &least);
        Ok(self.as_cotangent(b, &relevance))
    }

    /// `R/x`: a cotangent that gives the relevance back when it is multiplied by the operand. Where the operand is
    /// zero it is lost, and booked.
    fn as_cotangent(&self, b: &mut Builder, relevance: &Value) -> (Value, Vec<Absorbed>) {
        let zero = b.scalar(0.0);
        let (some, one) = (b.compare("Equal", self.x(), &zero), b.scalar(1.0));
        let safe = b.select(&some, &one, self.x());
        let quotient = b.div(relevance, &safe);
        let dx = b.select(&some, &zero, &quotient);
        let lost = b.select(&some, relevance, &zero);
        (dx, vec![Absorbed::Sum(lost, 1.0)])
    }

    /// `k·plain + l·sign(x)·sized`
    fn joined(&self, b: &mut Builder, plain: (&Value, f64), sized: (&Value, f64)) -> Value {
        let sign = b.unary("Sign", self.x());
        let (plain, sized) = (b.scale_product(plain.0, plain.1), b.scale_product(sized.0, sized.1));
        let sized = b.mul(&sized, &sign);
        b.add(&plain, &sized)
    }

    /// The cotangent of the active operand of this node or of a twin of it.
    fn back(&self, b: &mut Builder, node: &Node, dy: &Value) -> Result<Value, Misfit> {
        let x = node.inputs[self.place].clone();
        let shape = b.shape(&x);
        let wanted = HashSet::from([x]);
        let cotangents = b.asking(wanted, |b| gradient::local(b, node, &[Some(dy.clone())]))?;
        let dx = cotangents.into_iter().nth(self.place).flatten().ok_or("its operand gets nothing")?;
        Ok(b.sum_to(&dx, &shape))
    }

    /// The same layer with other operands, without what it adds, and its result.
    fn twin(&self, b: &mut Builder, operands: Operands) -> Result<(Node, Value), Misfit> {
        let mut node = self.node.clone();
        node.members.clear();
        if self.offset.is_some() {
            node.inputs.truncate(2);
        }
        if node.inputs.len() < 2 {
            return Err("its weights are not an operand".into());
        }
        for place in 0..node.inputs.len() {
            let operand = node.inputs[place].clone();
            node.inputs[place] = if place == self.place {
                match operands {
                    Operands::Sizes => b.unary("Abs", &operand),
                    Operands::Squares | Operands::Ones | Operands::OnesAndSizes => {
                        b.filled_like(&operand, 1.0)
                    }
                }
            } else {
                match operands {
                    Operands::Sizes | Operands::OnesAndSizes => {
                        mapped(b, &operand, &f64::abs, |b, it| b.unary("Abs", it))
                    }
                    Operands::Squares => mapped(b, &operand, &|it| it * it, |b, it| b.mul(it, it)),
                    Operands::Ones => operand,
                }
            };
        }
        let attributes: Vec<(&str, Attribute)> =
            node.attributes.iter().map(|(name, it)| (name.as_str(), it.clone())).collect();
        let fact = crate::compile::facts::Fact::new(b.fact(self.y()).element, b.shape(self.y()));
        let inputs: Vec<&Value> = node.inputs.iter().collect();
        let result = b.emit_in(&node.domain, &node.op, &inputs, &attributes, vec![fact]).swap_remove(0);
        node.outputs = vec![result.clone()];
        Ok((node, result))
    }
}

/// What a twin computes with.
#[derive(Clone, Copy)]
enum Operands {
    /// `|x|` and `|w|`
    Sizes,
    /// 1 and `w²`
    Squares,
    /// 1 and `w`
    Ones,
    /// 1 and `|w|`
    OnesAndSizes,
}

/// A function of each element of a weight, computed now where it is constant, else by `emit` when the graph runs.
fn mapped(
    b: &mut Builder,
    w: &Value,
    function: &dyn Fn(f64) -> f64,
    emit: impl FnOnce(&mut Builder, &Value) -> Value,
) -> Value {
    if let Some(tensor) = b.graph().initializers.get(w)
        && let Some(values) = tensor.to_f64()
    {
        let values: Vec<f64> = values.into_iter().map(function).collect();
        let tensor = Tensor::from_f64(tensor.element(), tensor.dims(), &values);
        return b.constant(tensor);
    }
    emit(b, w)
}
