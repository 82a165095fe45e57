//! This file is where a graph is run twice, at different sizes, to learn its types, shapes and constants.

use std::collections::{HashMap, HashSet};

use super::facts::{Fact, Facts, Length, PROBES};
use super::graph::{Axis, Element, Graph, Node, Port, Tensor, Type, Value};
use super::refusal::{Code, Refusal};

/// Named tensors for one run.
pub type Batch = Vec<(Value, Tensor)>;

/// Runs a graph on batches, without optimising it, and answers with its outputs in order, for each batch;
/// `None` for an output that is not a tensor. The caller gives it; the compiler runs nothing itself.
pub type Evaluate<'a> = &'a dyn Fn(&Graph, &[Batch]) -> Result<Vec<Vec<Option<Tensor>>>, String>;

/// What the model's folder says that the graph does not.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// The padding token: no probe holds it.
    pub pad: Option<i64>,
    /// The token that ends a sequence: every probing row ends with it, since some models pool there.
    pub eos: Option<i64>,
    /// Most tokens of a row, if that is known.
    pub max_length: Option<usize>,
}

/// What two runs told.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Types, shapes and constants of every value.
    pub facts: Facts,
    /// The token ids, batch by batch.
    pub ids: [Tensor; PROBES],
    /// Contents of integer values, batch by batch.
    pub integers: HashMap<Value, [Tensor; PROBES]>,
}

/// Batch and sequence lengths: different primes, none of them one. What a graph does to short texts alone, or to
/// long ones, shows best in the first; the others are for graphs that do not run at these lengths.
const SIZES: [[(usize, usize); PROBES]; 3] = [[(2, 3), (3, 23)], [(2, 7), (3, 23)], [(2, 7), (3, 11)]];

/// How often the token that ends a sequence stands in a row, batch by batch: models that look for it shape values by what
/// they find, and a pair of texts holds it two or three times. The other is for graphs that do not run so.
const ENDINGS: [[usize; PROBES]; 2] = [[1, 3], [1; PROBES]];

/// More elements than any input of a probe has: an axis of fixed length that is longer is refused.
const MOST_ELEMENTS: usize = 1 << 20;

/// The input that holds token ids.
pub fn ids_input(graph: &Graph) -> Result<&Port, Refusal> {
    let integer = |it: &&Port| matches!(it.element(), Some(Element::I64 | Element::I32));
    let refuse = |reason: &str| Err(Refusal::new(Code::Input, reason));
    if let Some(port) = graph.input("input_ids") {
        return if integer(&port) { Ok(port) } else { refuse("input_ids are not integers") };
    }
    match graph.inputs.iter().filter(integer).collect::<Vec<_>>()[..] {
        [port] if role(&port.value) == Role::Unknown => Ok(port),
        _ => refuse("there is no input called input_ids"),
    }
}

/// Runs the graph at two sizes.
///
/// # Errors
/// It runs at none, or its inputs are not those of a text model.
pub fn probe(graph: &Graph, hints: &Hints, evaluate: Evaluate<'_>) -> Result<Probe, Refusal> {
    let ids_name = ids_input(graph)?.value.clone();
    let made = graph.nodes.iter().flat_map(|it| &it.outputs).filter(|it| !it.is_absent());
    let unknown = |value: &Value| Port { value: value.clone(), ty: Type::Other(Box::default()) };
    let mut all = graph.clone();
    all.outputs = made.map(unknown).collect();
    let bound = vocabulary_bound(graph, &ids_name);
    let run = |sizes: &[(usize, usize); PROBES], endings: &[usize; PROBES]| {
        let sized = sizes.iter().zip(endings);
        let batches = sized.map(|(&size, &ends)| batch(graph, &ids_name, size, (bound, ends), hints));
        let batches: Vec<Batch> = batches.collect::<Result<_, _>>()?;
        let runs = evaluate(&all, &batches).map_err(|error| Refusal::new(Code::Run, error))?;
        Ok((batches, runs))
    };
    let skipped = usize::from(hints.eos.is_none());
    let tries = ENDINGS[skipped..].iter().flat_map(|endings| SIZES.iter().map(move |it| (it, endings)));
    let first = run(&SIZES[0], &ENDINGS[skipped]);
    let other = |found: Result<_, _>, (sizes, endings)| {
        found.or_else(|refusal| run(sizes, endings).map_err(|_| refusal))
    };
    let (batches, runs) = tries.skip(1).fold(first, other)?;
    let ids = batches.iter().map(|it| it.iter().find(|(name, _)| *name == ids_name).map(|it| it.1.clone()));
    let ids: Vec<Tensor> = ids.flatten().collect();
    let ids: [Tensor; PROBES] = ids.try_into().map_err(|_| Refusal::new(Code::Input, "no token ids"))?;
    let mut answers: HashMap<Value, [Tensor; PROBES]> = HashMap::new();
    for name in batches[0].iter().map(|it| &it.0) {
        let tensors = batches.iter().filter_map(|it| it.iter().find(|it| it.0 == *name));
        if let Ok(pair) = tensors.map(|it| it.1.clone()).collect::<Vec<_>>().try_into() {
            answers.insert(name.clone(), pair);
        }
    }
    for (index, port) in all.outputs.iter().enumerate() {
        let tensors: Option<Vec<Tensor>> = runs.iter().map(|run| run.get(index).cloned().flatten()).collect();
        if let Some(pair) = tensors.and_then(|it| it.try_into().ok()) {
            answers.insert(port.value.clone(), pair);
        }
    }
    Ok(learned(graph, ids, answers))
}

/// A batch of the given rows and columns for every input of the graph.
pub(super) fn batch_of(graph: &Graph, size: (usize, usize), hints: &Hints) -> Result<Batch, Refusal> {
    batch_ending(graph, size, 1, hints)
}

/// The same, whose rows hold the token that ends a sequence so many times.
pub(super) fn batch_ending(
    graph: &Graph,
    size: (usize, usize),
    ends: usize,
    hints: &Hints,
) -> Result<Batch, Refusal> {
    let ids = ids_input(graph)?.value.clone();
    batch(graph, &ids, size, (vocabulary_bound(graph, &ids), ends), hints)
}

fn learned(graph: &Graph, ids: [Tensor; PROBES], answers: HashMap<Value, [Tensor; PROBES]>) -> Probe {
    let independent = independent_of_contents(graph);
    let mut facts = Facts::default();
    let mut integers = HashMap::new();
    for (name, tensor) in &graph.initializers {
        facts.insert(name.clone(), Fact::of(tensor));
    }
    for (value, pair) in answers {
        let [first, second] = &pair;
        if first.element() != second.element() || first.dims().len() != second.dims().len() {
            continue;
        }
        let lengths = first.dims().iter().zip(second.dims()).map(|(&a, &b)| Length([a, b]));
        let mut fact = Fact::new(first.element(), lengths.collect());
        if independent.contains(&value) && first.dims() == second.dims() && first.data() == second.data() {
            fact.constant = Some(first.clone());
        }
        facts.insert(value.clone(), fact);
        if !first.element().is_floating() && first.to_i64().is_some() {
            integers.insert(value, pair);
        }
    }
    Probe { facts, ids, integers }
}

/// Operators whose result is shaped by contents; and those shaped by the contents of operands from this place on.
const SHAPED_BY_CONTENTS: &[&str] = &["NonZero", "Unique", "Compress", "NonMaxSuppression"];
const SHAPED_BY_OPERANDS: &[(&str, usize)] = &[
    ("Range", 0),
    ("ConstantOfShape", 0),
    ("Expand", 1),
    ("Reshape", 1),
    ("Tile", 1),
    ("Slice", 1),
    ("Pad", 1),
    ("Split", 1),
    ("OneHot", 1),
];

/// Values that depend on nothing but constants and the lengths of the inputs' axes.
fn independent_of_contents(graph: &Graph) -> HashSet<Value> {
    let mut contents: HashSet<Value> = graph.inputs.iter().map(|it| it.value.clone()).collect();
    let mut lengths: HashSet<Value> = HashSet::new();
    let mut independent = HashSet::new();
    for node in &graph.nodes {
        let reads = node.reads();
        let any = |set: &HashSet<Value>, from: usize| reads.iter().skip(from).any(|it| set.contains(it));
        let operator = |names: &[&str]| node.domain.is_empty() && names.contains(&node.op.as_str());
        let by_operand = SHAPED_BY_OPERANDS.iter().find(|it| node.is(it.0));
        let shaped = (operator(SHAPED_BY_CONTENTS) && any(&contents, 0))
            || by_operand.is_some_and(|it| any(&contents, it.1))
            || any(&lengths, 0);
        let measures = operator(&["Shape", "Size"]);
        let depends = if measures { any(&lengths, 0) } else { any(&contents, 0) || is_random(node) };
        for value in node.outputs.iter().filter(|it| !it.is_absent()) {
            if shaped {
                lengths.insert(value.clone());
            }
            if depends {
                contents.insert(value.clone());
            } else {
                independent.insert(value.clone());
            }
        }
    }
    independent
}

fn is_random(node: &Node) -> bool {
    node.op.starts_with("Random") || node.is("Bernoulli") || node.is("Multinomial")
}

/// What an input is for, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Mask,
    Types,
    Positions,
    Unknown,
}

fn role(name: &str) -> Role {
    match name {
        _ if name.contains("mask") => Role::Mask,
        _ if name.contains("token_type") || name.contains("segment") => Role::Types,
        _ if name.contains("position") => Role::Positions,
        _ => Role::Unknown,
    }
}

fn batch(
    graph: &Graph,
    ids: &Value,
    (rows, columns): (usize, usize),
    (bound, ends): (i64, usize),
    hints: &Hints,
) -> Result<Batch, Refusal> {
    let one = |port: &Port| {
        let dims = port.dims().unwrap_or(&[Axis::Unknown, Axis::Unknown]);
        let length = |(axis, dim): (usize, &Axis)| match dim {
            Axis::Fixed(length) => *length,
            _ => [rows, columns][axis.min(1)],
        };
        let dims: Vec<usize> = dims.iter().enumerate().map(length).collect();
        let count = dims.iter().try_fold(1usize, |product, &it| product.checked_mul(it));
        let count = count.filter(|&it| it <= MOST_ELEMENTS).ok_or_else(|| {
            let reason = format!("the input {} has a fixed shape of {dims:?}", port.value);
            Refusal::new(Code::Input, reason)
        })?;
        let width = dims.last().copied().unwrap_or(1).max(1);
        let role = if port.value == *ids { None } else { Some(role(&port.value)) };
        let value = |index: usize| match role {
            None => id(index, width, (bound, ends), hints),
            Some(Role::Mask) => 1,
            Some(Role::Types) => 0,
            Some(Role::Positions) => (index % width) as i64,
            Some(Role::Unknown) => 0,
        };
        let element = port.element().filter(|_| dims.len() == 2 && role != Some(Role::Unknown));
        let values: Vec<i64> = (0..count).map(value).collect();
        let tensor = element.and_then(|it| typed(it, &dims, &values));
        let reason = || Refusal::new(Code::Input, format!("the input {} is not understood", port.value));
        Ok((port.value.clone(), tensor.ok_or_else(reason)?))
    };
    graph.inputs.iter().map(one).collect()
}

/// A token id for each place: varied, below `bound`, not the padding, and the ending token at the end of each of as many
/// parts of a row.
fn id(index: usize, width: usize, (bound, ends): (i64, usize), hints: &Hints) -> i64 {
    let place = index % width + 1;
    let closes = (1..=ends).any(|it| place == it * width / ends);
    match hints.eos.filter(|_| closes) {
        Some(eos) => eos,
        None => {
            let low = 5;
            let span = bound - low;
            let varied = |step: i64| low + (index as i64 * 7 + 3 + step) % span;
            let ordinary = |id: &i64| Some(*id) != hints.eos && Some(*id) != hints.pad;
            (0..span).map(varied).find(ordinary).unwrap_or(low)
        }
    }
}

/// Integers as a tensor of an element type that inputs have.
pub(super) fn typed(element: Element, dims: &[usize], values: &[i64]) -> Option<Tensor> {
    let words = |bytes: Vec<u8>| Tensor::new(element, dims.to_vec(), bytes.into()).ok();
    match element {
        Element::I64 => Some(Tensor::from_i64(dims, values)),
        Element::I32 => words(values.iter().flat_map(|&it| (it as i32).to_le_bytes()).collect()),
        Element::Bool => words(values.iter().map(|&it| u8::from(it != 0)).collect()),
        _ if element.is_floating() => {
            Some(Tensor::from_f64(element, dims, &values.iter().map(|&it| it as f64).collect::<Vec<_>>()))
        }
        _ => None,
    }
}

/// Tables with fewer rows hold segment types, not tokens.
const SMALLEST_VOCABULARY: i64 = 16;

/// An id below which every table holds a row that token ids, or positions counted from them, may ask for.
fn vocabulary_bound(graph: &Graph, ids: &Value) -> i64 {
    let mut dependent: HashSet<Value> = HashSet::from([ids.clone()]);
    let mut bound = i64::MAX;
    for node in &graph.nodes {
        if !node.reads().iter().any(|it| dependent.contains(it)) {
            continue;
        }
        dependent.extend(node.outputs.iter().cloned());
        if let Some(table) = super::locate::table(graph, node) {
            let rows = table.1.dims()[0] as i64;
            bound = if rows < SMALLEST_VOCABULARY { bound } else { bound.min(rows) };
        }
    }
    if bound == i64::MAX { SMALLEST_VOCABULARY } else { bound }
}
