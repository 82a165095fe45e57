//! This file is where every operator meets the law of relevance under every composite: what reaches its operands and
//! what it absorbs is what was at its results.
//!
//! The operators are those of the tables, on their own rows' examples and on drawn shapes.

use std::collections::HashSet;

use explaind::compile::anatomy::Anatomy;
use explaind::compile::composite::{Bend, Composite, Role};
use explaind::compile::cut::{Cut, EMBEDS, LOGITS};
use explaind::compile::derive::COTANGENT;
use explaind::compile::graph::text::Example;
use explaind::compile::graph::{Axis, Element, Graph, Node, Port, Tensor, Type, Value};
use explaind::compile::ops::{self, Kind, Operator};
use explaind::compile::relevance::{ABSORBED, RELEVANCE, derive};
use explaind::compile::write;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::evaluate::{Program, evaluate};
use crate::operators::{OPSETS, inputs, learn};
use crate::shapes;

/// Bounds of the embeddings' components for z^B; examples draw from between them.
pub(crate) const RANGE: (f64, f64) = (-2.0, 2.0);

/// Of the relevance at the results, how much may be lost to rounding.
const LOST: f64 = 1e-5;

/// What reads the embeddings first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    /// The example itself.
    Nothing,
    /// A scaling by one, so that the embeddings do not enter the example themselves.
    Layer,
}

/// An example between embeddings and logits: the active inputs' elements are the tokens, of one component each, and
/// all elements of its floating results are the logits of its one row.
pub(crate) struct Placed {
    pub cut: Cut,
    pub x: Vec<f64>,
    pub y: Vec<f64>,
    element: Element,
}

/// What a composite makes of one.
pub(crate) struct Run {
    pub tokens: Vec<f64>,
    absorbed: f64,
}

impl Placed {
    /// `active` are the inputs that depend on the embeddings; the others are constants.
    fn new(text: &str, opset: i64, active: &dyn Fn(&str) -> bool, behind: Behind) -> Result<Self, String> {
        let mut example = Example::parse(text).map_err(|error| error.to_string())?;
        let batch = inputs(&example, &mut ChaCha8Rng::seed_from_u64(5));
        let facts = learn(&opened(&example.graph, opset), &batch)?;
        let made =
            example.graph.outputs.iter().filter_map(|it| Some((&it.value, facts.get(&it.value)?.element)));
        let results: Vec<(Value, Element)> =
            made.filter(|it| it.1.is_floating()).map(|it| (it.0.clone(), it.1)).collect();
        let graph = &mut example.graph;
        let mut first = vec![Node::new("Reshape", &["embeds".into(), "all".into()], &["flat".into()])];
        let mut constants =
            vec![("all", Tensor::from_i64(&[1], &[-1])), ("first", Tensor::from_i64(&[1], &[0]))];
        constants.push(("one", Tensor::from_f32(&[], &[1.0])));
        constants.push(("row", Tensor::from_i64(&[2], &[1, -1])));
        let mut constants: Vec<(Value, Tensor)> =
            constants.into_iter().map(|(name, it)| (name.into(), it)).collect();
        match behind {
            Behind::Nothing => first[0].inputs[0] = EMBEDS.into(),
            Behind::Layer => {
                let scaled = Node::new("Mul", &[EMBEDS.into(), "one".into()], &["embeds".into()]);
                first.insert(0, scaled);
            }
        }
        let mut x = Vec::new();
        for (name, tensor) in batch {
            if !active(&name) {
                constants.push((name, tensor));
                continue;
            }
            let dims: Vec<i64> = tensor.dims().iter().map(|&it| it as i64).collect();
            let values = tensor.to_f64().ok_or("an input is no number")?;
            let [start, end, part, shape] =
                ["start", "end", "part", "shape"].map(|it| Value::from(format!("{name} {it}").as_str()));
            constants.push((start.clone(), Tensor::from_i64(&[1], &[x.len() as i64])));
            x.extend(values);
            constants.push((end.clone(), Tensor::from_i64(&[1], &[x.len() as i64])));
            constants.push((shape.clone(), Tensor::from_i64(&[dims.len()], &dims)));
            let cut = ["flat".into(), start, end, "first".into()];
            first.push(Node::new("Slice", &cut, std::slice::from_ref(&part)));
            first.push(Node::new("Reshape", &[part, shape], &[name]));
        }
        graph.nodes.splice(0..0, first);
        let element = results.first().ok_or("no result is a floating-point number")?.1;
        let mut rows = Vec::new();
        for (value, _) in &results {
            let flat: Value = format!("{value} flat").as_str().into();
            graph.nodes.push(Node::new(
                "Reshape",
                &[value.clone(), "row".into()],
                std::slice::from_ref(&flat),
            ));
            rows.push(flat);
        }
        graph.nodes.push(Node::new("Concat", &rows, &[LOGITS.into()]).with("axis", 1));
        graph.initializers.extend(constants);
        let dims = [1, x.len(), 1].map(Axis::Fixed).to_vec();
        graph.inputs = vec![Port::tensor(EMBEDS, Element::F32, dims)];
        graph.outputs = vec![Port { value: LOGITS.into(), ty: Type::Tensor(element, None) }];
        let graph = opened(graph, opset);
        let batch = vec![(EMBEDS.into(), embeds(&x))];
        let facts = learn(&graph, &batch)?;
        let y = evaluate(&graph, &[batch])?.remove(0).remove(0);
        let y = y.and_then(|it| it.to_f64()).ok_or("no logits")?;
        Ok(Self { cut: Cut { graph, facts }, element, x, y })
    }

    /// A cotangent that gives every element of the results some relevance, and none a negative one.
    pub fn cotangent(&self) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let draw = |y: &f64| rng.random_range(0.2..1.0_f32) as f64 * if *y < 0.0 { -1.0 } else { 1.0 };
        self.y.iter().map(draw).collect()
    }

    pub fn derived(&self, composite: Composite) -> Result<Graph, Failure> {
        let made = derive(&self.cut, &Anatomy::default(), composite, RANGE);
        made.map(|it| it.graph).map_err(|refusal| match &refusal.gaps[..] {
            [gap] if gap.reason.starts_with(composite.slug()) => Failure::Undecided,
            gaps => Failure::Refused(format!("{refusal} {gaps:?}")),
        })
    }

    pub fn relevance(&self, graph: &Graph, cotangent: &[f64]) -> Result<Run, String> {
        let seed = Tensor::from_f64(self.element, &[1, cotangent.len()], cotangent);
        let batch = vec![(EMBEDS.into(), embeds(&self.x)), (COTANGENT.into(), seed)];
        let run = evaluate(graph, &[batch]).map_err(|it| format!("{it}\n{graph}"))?;
        let of = |name: &str| -> Vec<f64> {
            let place = graph.outputs.iter().position(|it| &*it.value == name).unwrap();
            run[0][place].as_ref().unwrap().to_f64().unwrap()
        };
        Ok(Run { tokens: of(RELEVANCE), absorbed: of(ABSORBED).iter().sum() })
    }

    /// How much relevance is lost or made, in parts of what was at the results.
    fn leak(&self, graph: &Graph) -> Result<f64, String> {
        let cotangent = self.cotangent();
        let run = self.relevance(graph, &cotangent)?;
        let given: f64 = self.y.iter().zip(&cotangent).map(|(y, dy)| y * dy).sum();
        let gap = run.tokens.iter().sum::<f64>() + run.absorbed - given;
        Ok(if gap.is_nan() { f64::INFINITY } else { gap.abs() / given.max(1e-3) })
    }

    /// `∂y_j/∂x_i` as `[j][i]`, by central differences of this step.
    pub fn matrix(&self, step: f64) -> Vec<Vec<f64>> {
        let mut program = Program::open(&self.cut.graph).unwrap();
        let mut at = |place: usize, step: f64| {
            let mut x = self.x.clone();
            x[place] += step;
            let run = program.run(&vec![(EMBEDS.into(), embeds(&x))]).unwrap();
            run[0].as_ref().unwrap().to_f64().unwrap()
        };
        let columns: Vec<Vec<f64>> = (0..self.x.len())
            .map(|i| at(i, step).iter().zip(at(i, -step)).map(|(a, b)| (a - b) / (2.0 * step)).collect())
            .collect();
        (0..self.y.len()).map(|j| columns.iter().map(|it| it[j]).collect()).collect()
    }
}

/// Why there is no relevance.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the composite has no rule for a role")]
    Undecided,
    #[error("{0}")]
    Refused(String),
}

fn opened(graph: &Graph, opset: i64) -> Graph {
    let mut graph = graph.clone();
    graph.opsets.insert(String::new(), opset);
    graph
}

fn embeds(x: &[f64]) -> Tensor {
    Tensor::from_f64(Element::F32, &[1, x.len(), 1], x)
}

/// The example in the first version that runs it.
pub(crate) fn placed(text: &str, active: &dyn Fn(&str) -> bool, behind: Behind) -> Placed {
    let tries = OPSETS.iter().map(|&opset| Placed::new(text, opset, active, behind));
    let mut reasons = Vec::new();
    for it in tries {
        match it {
            Ok(it) => return it,
            Err(reason) => reasons.push(reason),
        }
    }
    panic!("{text}: {}", reasons.join("\n"))
}

/// Is all that reaches the operator absorbed, so that nothing reaches the embeddings?
fn is_constant(row: &Operator, composite: Composite) -> bool {
    match row.kind {
        Kind::Normalization(_) => row.name.starts_with("Reduce"),
        Kind::Softmax => composite.bend(Role::Softmax) == Some(Bend::Constant),
        _ => false,
    }
}

/// The composites in whose graphs of this relevance is lost, or that refuse it.
fn losses(it: &Placed, row: &Operator, may_refuse: bool) -> Vec<String> {
    let mut graphs = HashSet::new();
    let mut found = Vec::new();
    for composite in Composite::ALL {
        let slug = composite.slug();
        match it.derived(composite) {
            // Composites often bend nothing, or alike.
            Ok(graph) if !graphs.insert(write(&graph)) => {}
            Ok(graph) => match it.leak(&graph) {
                Ok(leak) if leak <= LOST => {}
                Ok(leak) => found.push(format!("{slug} loses {leak:.1e}")),
                Err(reason) => found.push(format!("{slug}: {reason}")),
            },
            Err(Failure::Undecided) if row.kind == Kind::Accumulation => {}
            Err(Failure::Refused(_)) if may_refuse || is_constant(row, composite) => {}
            Err(failure) => found.push(format!("{slug}: {failure}")),
        }
    }
    found
}

#[test]
fn every_operator_hands_on_what_it_does_not_absorb_under_every_composite() {
    let mut failures = Vec::new();
    for row in ops::all() {
        for example in row.examples {
            // One operand at a time, and all at once: other rules apply, and some forms are refused.
            let inputs = Example::parse(example).unwrap().graph.inputs;
            let choices = inputs.iter().map(|it| Some(&it.value)).chain((inputs.len() > 1).then_some(None));
            for (choice, behind) in choices.flat_map(|it| [(it, Behind::Nothing), (it, Behind::Layer)]) {
                let it = placed(example, &|name| choice.is_none_or(|it| &**it == name), behind);
                let may_refuse = choice.is_none_or(|it| &**it != "x");
                let found = losses(&it, row, may_refuse);
                failures.extend(found.iter().map(|it| format!("{example} ({choice:?}, {behind:?}): {it}")));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn shapes_that_no_row_shows_keep_relevance_too() {
    let mut failures = Vec::new();
    for text in shapes::every() {
        let example = Example::parse(&text).unwrap();
        let operator = ops::find(example.graph.nodes.last().unwrap()).unwrap();
        let it = Placed::new(&text, shapes::OPSET, &|name| name == "x", Behind::Layer);
        let it = it.unwrap_or_else(|reason| panic!("{text}: {reason}"));
        let found = losses(&it, operator, false);
        failures.extend(found.iter().map(|it| format!("{text}: {it}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
