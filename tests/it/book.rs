//! This file is where every rule meets itself by the book: relevance form, float64, on the explicit matrix of every
//! operator of the tables, at its own row's examples.

use explaind::compile::composite::{Bend, Composite, Linear, Role};
use explaind::compile::graph::text::Example;
use explaind::compile::graph::{Graph, Node, Tensor};
use explaind::compile::ops::{self, Kind, Operator};

use crate::conservation::{Behind, Placed, RANGE, placed};

/// How the book hands relevance back through one operator: `R_i` for each operand's element, given the explicit matrix
/// `w[j][i]` of the operator at its operand, what it adds, and each result's cotangent `R_j/y_j`.
struct Book<'a> {
    it: &'a Placed,
    w: Vec<Vec<f64>>,
    dy: Vec<f64>,
}

impl Book<'_> {
    /// `R_i = Σ_j share(parts of j, i)·R_j` with the parts `x_i·w_ij`, and the added `y_j − Σᵢ x_i·w_ij`.
    fn linear(&self, share: &dyn Fn(&Unit<'_>, usize) -> f64) -> Vec<f64> {
        let mut relevance = vec![0.0; self.it.x.len()];
        for (j, w) in self.w.iter().enumerate() {
            let parts: Vec<f64> = self.it.x.iter().zip(w).map(|(x, w)| x * w).collect();
            let (y, added) = (self.it.y[j], self.it.y[j] - parts.iter().sum::<f64>());
            // What is left of a difference is rounding.
            let added = if added.abs() < 1e-4 { 0.0 } else { added };
            let unit = Unit { x: &self.it.x, w, parts: &parts, added, y };
            for (i, sum) in relevance.iter_mut().enumerate() {
                *sum += share(&unit, i) * y * self.dy[j];
            }
        }
        relevance
    }

    /// Relevance passes unchanged, element by element.
    fn unchanged(&self) -> Vec<f64> {
        assert_eq!(self.it.x.len(), self.it.y.len());
        self.it.y.iter().zip(&self.dy).map(|(y, dy)| y * dy).collect()
    }

    /// `x ↦ (x − mean x)·k + c` over chunks of `size` elements, `k` held.
    fn centred(&self, size: usize, c: &dyn Fn(usize) -> f64) -> Vec<f64> {
        let mut relevance = vec![0.0; self.it.x.len()];
        for start in (0..self.it.x.len()).step_by(size) {
            let x = &self.it.x[start..start + size];
            let mean = x.iter().sum::<f64>() / size as f64;
            for (j, &of) in x.iter().enumerate() {
                let r = (self.it.y[start + j] - c(start + j)) * self.dy[start + j];
                for (i, &part) in x.iter().enumerate() {
                    relevance[start + i] +=
                        part * (f64::from(u8::from(i == j)) - 1.0 / size as f64) / (of - mean) * r;
                }
            }
        }
        relevance
    }
}

/// One result of a linear layer.
struct Unit<'a> {
    x: &'a [f64],
    w: &'a [f64],
    parts: &'a [f64],
    added: f64,
    y: f64,
}

impl Unit<'_> {
    /// `part_i` over the sum of all parts and of what is added, each as `count` has it.
    fn share(&self, i: usize, added: f64, count: impl Fn(f64) -> f64) -> f64 {
        let all = self.parts.iter().map(|&it| count(it)).sum::<f64>() + added;
        // A sum of one sign's contributions that is rounding is none.
        if all.abs() < 1e-6 { 0.0 } else { count(self.parts[i]) / all }
    }
}

/// Bach et al. 2015, equations 56, 58 and 60; Montavon et al. 2019 for γ; Montavon et al. 2017 for w² and z^B.
fn by_the_book(rule: Option<Linear>, unit: &Unit<'_>, i: usize) -> f64 {
    let (plus, minus) = (|it: f64| it.max(0.0), |it: f64| it.min(0.0));
    match rule {
        None | Some(Linear::Epsilon(_)) => {
            if unit.y == 0.0 {
                0.0
            } else {
                unit.parts[i] / unit.y
            }
        }
        Some(Linear::Gamma(gamma)) => {
            let counted = |it: f64| if it * unit.y > 0.0 { (1.0 + gamma) * it } else { it };
            unit.share(i, counted(unit.added), counted)
        }
        Some(Linear::AlphaBeta { alpha, beta, bias }) => {
            let added = if bias { unit.added } else { 0.0 };
            alpha * unit.share(i, plus(added), plus) - beta * unit.share(i, minus(added), minus)
        }
        Some(Linear::Squares) => unit.w[i].powi(2) / unit.w.iter().map(|it| it * it).sum::<f64>(),
        Some(Linear::Box) => {
            let (low, high) = RANGE;
            let part = |i: usize| unit.x[i] * unit.w[i] - low * plus(unit.w[i]) - high * minus(unit.w[i]);
            part(i) / (0..unit.x.len()).map(part).sum::<f64>()
        }
    }
}

/// What the book says of the last node of an example whose only active input is `x`; `None` where it has no closed
/// form there.
fn wanted(
    example: &Graph,
    it: &Placed,
    row: &Operator,
    bend: Bend,
    w: &[Vec<f64>],
    dy: &[f64],
) -> Option<Vec<f64>> {
    let node = example.nodes.last()?;
    let book = Book { it, w: w.to_vec(), dy: dy.to_vec() };
    let (reads, constants) = (node.inputs.first().is_some_and(|it| &**it == "x"), &it.cut.graph.initializers);
    let constant = |place: usize| node.input(place).and_then(|it| constants.get(it)).and_then(Tensor::to_f64);
    let chunk = |rank: usize| it.cut.facts.get("x").unwrap().shape[rank..].iter().map(|it| it.0[0]).product();
    Some(match (row.kind, bend) {
        // Each of n operands gets an n-th of its own part.
        (Kind::Product | Kind::Scale, Bend::Share) => {
            let share = 1.0 / node.inputs.len() as f64;
            book.linear(&|unit, i| share * by_the_book(None, unit, i))
        }
        (Kind::Product, Bend::Linear(rule)) => book.linear(&|unit, i| by_the_book(Some(rule), unit, i)),
        // Proposition 3.1 of AttnLRP: x_i times the derivative, in the expansion's first order.
        (Kind::Softmax, Bend::Gradient) => book.linear(&|unit, i| by_the_book(None, unit, i)),
        (
            Kind::Product | Kind::Scale | Kind::Sum | Kind::Routing | Kind::Maximum | Kind::Rectifier,
            Bend::Gradient,
        ) => book.linear(&|unit, i| by_the_book(None, unit, i)),
        (Kind::Quotient, Bend::Hold) if reads => book.linear(&|unit, i| by_the_book(None, unit, i)),
        (Kind::Quotient | Kind::Elementwise, Bend::Secant) => book.unchanged(),
        (Kind::Gate(_), Bend::Secant) => {
            // With a bias, `x + c` is what is gated, and shares in proportion.
            let bias = constant(1).unwrap_or_else(|| vec![0.0]);
            let bias = |i: usize| bias[i % bias.len()];
            let x = it.x.iter().enumerate();
            x.zip(book.unchanged()).map(|((i, x), r)| x / (x + bias(i)) * r).collect()
        }
        (Kind::Normalization(_), Bend::Hold) => match row.name {
            "BatchNormalization" => book.linear(&|unit, i| by_the_book(None, unit, i)),
            // A scaling, once its statistic is held.
            "RMSNormalization" | "LpNormalization" => book.unchanged(),
            "LayerNormalization" => {
                let rank = it.cut.facts.get("x").unwrap().rank() as i64;
                let axis = node.int("axis").unwrap_or(-1).rem_euclid(rank) as usize;
                let c = constant(2).unwrap_or_else(|| vec![0.0]);
                book.centred(chunk(axis), &|at| c[at % c.len()])
            }
            "InstanceNormalization" | "GroupNormalization" => {
                let c = constant(2)?;
                let spatial: usize = chunk(2);
                let groups = node.int("num_groups").unwrap_or(c.len() as i64) as usize;
                book.centred(spatial * c.len() / groups, &|at| c[at / spatial % c.len()])
            }
            _ => return None,
        },
        _ => return None,
    })
}

/// Every role that a composite may decide, accumulation apart.
const ROLES: [Role; 13] = [
    Role::Entry,
    Role::Layer,
    Role::Interaction,
    Role::Scaling,
    Role::Quotient,
    Role::Addition,
    Role::Sum,
    Role::Rectifier,
    Role::Activation,
    Role::Softmax,
    Role::Normalization,
    Role::Maximum,
    Role::Routing,
];

fn bend_name(bend: Bend) -> String {
    format!("{bend:?}")
}

/// What the last node of an example is when its active operands are `x`, or all.
fn role(row: &Operator, graph: &Graph, all: bool, behind: Behind) -> Option<Role> {
    let inputs = &graph.nodes.last()?.inputs;
    let twice = inputs.iter().filter(|it| &***it == "x").count() > 1;
    Some(match row.kind {
        Kind::Product | Kind::Scale if all || twice => Role::Interaction,
        // Its weights are not an operand: no layer, but a sum.
        Kind::Product if inputs.len() < 2 => Role::Sum,
        Kind::Product if behind == Behind::Nothing => Role::Entry,
        Kind::Product => Role::Layer,
        Kind::Sum if (all || twice) && inputs.len() > 1 => Role::Addition,
        _ if all => return None,
        Kind::Scale => Role::Scaling,
        Kind::Quotient if inputs.first().is_some_and(|it| &**it == "x") => Role::Quotient,
        Kind::Quotient | Kind::Elementwise | Kind::Gate(_) => Role::Activation,
        Kind::Sum => Role::Sum,
        Kind::Rectifier => Role::Rectifier,
        Kind::Softmax => Role::Softmax,
        Kind::Normalization(_) => Role::Normalization,
        Kind::Maximum => Role::Maximum,
        Kind::Routing => Role::Routing,
        Kind::Accumulation | Kind::Metadata => return None,
    })
}

#[test]
fn every_rule_is_that_of_the_book_on_the_operators_explicit_matrix() {
    let (mut failures, mut compared) = (Vec::new(), Vec::new());
    for row in ops::all().filter(|it| it.flows()) {
        let choices = [(false, Behind::Nothing), (false, Behind::Layer), (true, Behind::Nothing)];
        for (example, (all, behind)) in row.examples.iter().flat_map(|it| choices.map(|choice| (it, choice)))
        {
            let graph = Example::parse(example).unwrap().graph;
            let reads = |it: &Node| it.inputs.iter().any(|it| &**it == "x");
            // The rule of one node is compared, of operands that may be active.
            let alone = graph.nodes.iter().all(|it| !reads(it) || it.op == row.name);
            let last = graph.nodes.last().unwrap();
            if !alone || last.op != row.name || all && (graph.inputs.len() < 2 || ops::adds(last).is_some()) {
                continue;
            }
            let Some(role) = role(row, &graph, all, behind) else { continue };
            let it = placed(example, &|name| all || name == "x", behind);
            // No winner loses within the step.
            let step = if row.kind == Kind::Maximum { 1.0 / 1024.0 } else { 1.0 / 64.0 };
            let (w, dy) = (it.matrix(step), it.cotangent());
            for composite in Composite::ALL {
                let slug = composite.slug();
                let bend = composite.bend(role).unwrap();
                let Some(wanted) = wanted(&graph, &it, row, bend, &w, &dy) else { continue };
                let found = it.derived(composite).map_err(|it| it.to_string());
                let found = match found.and_then(|graph| it.relevance(&graph, &dy)) {
                    Ok(run) => run.tokens,
                    Err(reason) => {
                        failures.push(format!("{slug} {example} {behind:?}: {reason}"));
                        continue;
                    }
                };
                compared.push((role, bend_name(bend)));
                let size = wanted.iter().fold(1e-3_f64, |size, it| size.max(it.abs()));
                let gaps = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs() / size);
                let gap =
                    gaps.fold(0.0, |gap: f64, it| if it.is_nan() { f64::INFINITY } else { gap.max(it) });
                if gap > 1e-3 || found.len() != wanted.len() {
                    failures.push(format!(
                        "{slug} {example} {behind:?}: {gap:.1e}\n  {found:.3?}\n  {wanted:.3?}"
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    // Whatever a composite decides, some operator showed it.
    for composite in Composite::ALL {
        for role in ROLES {
            let Some(bend) = composite.bend(role).filter(|it| *it != Bend::Constant) else { continue };
            let shown = compared.contains(&(role, bend_name(bend)));
            assert!(shown, "{}: no twin for a {} by {}", composite.slug(), role.name(), bend_name(bend));
        }
    }
}
