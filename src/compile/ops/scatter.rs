//! This file is where elements are put to places: the Scatter family, TopK, Compress, and arrangements such as
//! Pad and Tile.

use super::Gradient::{Rule, Rules};
use super::Kind::{Maximum, Routing, Sum};
use super::index::gather;
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length, Shape};
use crate::compile::graph::{Attribute, Element, Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row(
        "ScatterND",
        Routing,
        scatter_nd,
        &[
            "i = Unsqueeze([1, -2], [1]); y = ScatterND(x[4, 3], i, u[2, 3])",
            "i = Unsqueeze([1, 1], [1]); y = ScatterND(x[4, 3], i, u[2, 3]) {reduction: \"add\"}",
        ],
    ),
    row(
        "ScatterElements",
        Routing,
        scatter_elements,
        &[
            "i = Reshape([0, -1, 1, 1, 2, 2], [2, 3]); y = ScatterElements(x[4, 3], i, u[2, 3])",
            "i = Reshape([0, 0, 1, 0, 2, 2], [2, 3]); y = ScatterElements(x[2, 4], i, u[2, 3]) {axis: -1, reduction: \"add\"}",
        ],
    ),
    Operator {
        name: "TopK",
        domain: "",
        kind: Maximum,
        gradient: Rules(top_k),
        examples: &["y, i = TopK(x, [2])", "y, i = TopK(x, [2]) {axis: 1, largest: 0}"],
    },
    row(
        "Compress",
        Routing,
        compress,
        &[
            "c = Greater([1, -1, 1], 0); y = Compress(x, c) {axis: 1}",
            "c = Greater([1, -1, 1, 1, 1], 0); y = Compress(x, c)",
        ],
    ),
    row("Tile", Routing, tile, &["y = Tile(x, [1, 2, 3])", "y = Tile(x[3], [2])"]),
    row("Trilu", Routing, trilu, &["y = Trilu(x)", "y = Trilu(x, 1) {upper: 0}", "y = Trilu(x, -1)"]),
    row(
        "CumSum",
        Sum,
        cumulative,
        &[
            "y = CumSum(x, 1)",
            "y = CumSum(x, -1) {exclusive: 1, reverse: 1}",
            "y = CumSum(x, 0) {reverse: 1}",
        ],
    ),
    row(
        "Pad",
        Routing,
        pad,
        &[
            "y = Pad(x, [0, 1, 2, 0, 3, 0])",
            "y = Pad(x, [0, -1, 1, 0, 0, -2], 7.0)",
            "y = Pad(x, [0, 1, 2, 0, 2, 3]) {mode: \"reflect\"}",
            "y = Pad(x, [0, 1, 2, 0, 2, 3]) {mode: \"edge\"}",
            "y = Pad(x, [1, 2], _, [-1])",
        ],
    ),
    row(
        "ReverseSequence",
        Routing,
        reverse_sequence,
        &["y = ReverseSequence(x[3, 2, 4], [1, 3]) {time_axis: 0, batch_axis: 1}"],
    ),
];

const fn row(
    name: &'static str,
    kind: Kind,
    rule: super::Rule,
    examples: &'static [&'static str],
) -> Operator {
    Operator { name, domain: "", kind, gradient: Rule(rule), examples }
}

/// `d data` = `dy` with zeros where updates went, or all of it if they were added; `d updates` = `dy` there
fn scatter_nd(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    scatter(b, node, dy, &[], "GatherND")
}

fn scatter_elements(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    scatter(b, node, dy, &[("axis", node.int("axis").unwrap_or(0).into())], "GatherElements")
}

fn scatter(
    b: &mut Builder,
    node: &Node,
    dy: &Value,
    attributes: &[(&str, Attribute)],
    back: &str,
) -> Result<Cotangents, Misfit> {
    let [data, index, updates] = &node.inputs[..] else { return Err("it has not three operands".into()) };
    let adds = match node.text("reduction") {
        None | Some("none") => false,
        Some("add") => true,
        Some(_) => return Err("updates are neither put nor added".into()),
    };
    let element = b.fact(dy).element;
    let d_data = match (b.wants(data), adds) {
        (false, _) => None,
        (true, true) => Some(dy.clone()),
        (true, false) => {
            let zeros = b.zeros_like(updates);
            let fact = Fact::new(element, b.shape(data));
            Some(b.emit(&node.op, &[dy, index, &zeros], attributes, fact))
        }
    };
    let d_updates = b.wants(updates).then(|| {
        let fact = Fact::new(element, b.shape(updates));
        b.emit(back, &[dy, index], attributes, fact)
    });
    Ok(vec![d_data, None, d_updates])
}

/// `dx` = `dy` at the places that were taken, else 0
fn top_k(b: &mut Builder, node: &Node, dys: &[Option<Value>]) -> Result<Cotangents, Misfit> {
    let (x, y) = (&node.inputs[0], &node.outputs[0]);
    let Some(Some(dy)) = dys.first() else { return Ok(Vec::new()) };
    let axis = b.fact(x).axis(node.int("axis").unwrap_or(-1)).ok_or("the axis is out of range")?;
    let fact = Fact::new(Element::I64, b.shape(y));
    let places = b.further_output(y, 1, fact).ok_or("its places cannot be asked for")?;
    let zeros = b.zeros_like(x);
    let fact = Fact::new(b.fact(dy).element, b.shape(x));
    only(b.emit("ScatterElements", &[&zeros, &places, dy], &[("axis", (axis as i64).into())], fact))
}

/// `dx` = `dy` at the kept places, else 0: as a Gather of these
fn compress(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, condition) = (&node.inputs[0], &node.inputs[1]);
    let along = node.int("axis");
    let source = if along.is_some() { x.clone() } else { b.flattened(x) };
    let axis = b.fact(&source).axis(along.unwrap_or(0)).ok_or("the axis is out of range")?;
    let places = b.range(&source, axis);
    let fact = Fact::new(Element::I64, vec![b.shape(dy)[axis]]);
    let places = b.emit("Compress", &[&places, condition], &[("axis", 0.into())], fact);
    let gather = Node::new("Gather", &[source, places], &node.outputs).with("axis", axis as i64);
    let cotangents = gather::gather(b, &gather, dy)?;
    Ok(match cotangents.into_iter().next().flatten() {
        Some(dx) => vec![Some(b.reshape_like(&dx, x))],
        None => Vec::new(),
    })
}

/// `dx` = `dy` in the shape (r₀, d₀, r₁, d₁, …), summed over the repeats
fn tile(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, repeats) = (&node.inputs[0], &node.inputs[1]);
    let (short, long) = (b.shape(x), b.shape(dy));
    let constant = b.ints_of(repeats);
    let mut lists = Vec::new();
    let mut shape: Shape = Vec::new();
    for axis in 0..short.len() {
        lists.push(match &constant {
            Some(repeats) => b.ints(&[repeats[axis]]),
            None => {
                let (start, end) = (b.ints(&[axis as i64]), b.ints(&[axis as i64 + 1]));
                b.emit("Slice", &[repeats, &start, &end], &[], Fact::new(Element::I64, vec![Length::ONE]))
            }
        });
        lists.push(b.length_of(x, axis));
        shape.push(long[axis].zip(short[axis], |long, short| long.checked_div(short).unwrap_or(1)));
        shape.push(short[axis]);
    }
    let target = b.joined(&lists);
    let split = b.reshape_exactly(dy, &target, shape);
    let axes: Vec<usize> = (0..short.len()).map(|axis| 2 * axis).collect();
    only(b.reduce_sum(&split, &axes, false))
}

/// `dx` = the same triangle of `dy`
fn trilu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let fact = Fact::new(b.fact(dy).element, b.shape(dy));
    let upper = ("upper", node.int("upper").unwrap_or(1).into());
    let operands: Vec<&Value> = std::iter::once(dy).chain(node.input(1)).collect();
    only(b.emit("Trilu", &operands, &[upper], fact))
}

/// `dx` = sums of `dy` from the other end
fn cumulative(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let fact = Fact::new(b.fact(dy).element, b.shape(dy));
    let flag = |name: &str| node.int(name).unwrap_or(0);
    let attributes: [(&str, Attribute); 2] =
        [("exclusive", flag("exclusive").into()), ("reverse", (1 - flag("reverse")).into())];
    only(b.emit("CumSum", &[dy, &node.inputs[1]], &attributes, fact))
}

/// A value around: `dx` is `dy` with the amounts turned negative, the value gets the rest of `dy`. Copies around: `dy`
/// added up where copies came from.
fn pad(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, pads) = (&node.inputs[0], &node.inputs[1]);
    match node.text("mode") {
        None | Some("constant") => {}
        Some("reflect" | "edge" | "wrap") => return only(copied(b, node, dy)),
        Some(_) => return Err("the mode is not known".into()),
    }
    let turned = match b.ints_of(pads) {
        Some(pads) => b.ints(&pads.iter().map(|it| -it).collect::<Vec<_>>()),
        None => b.neg(pads),
    };
    let absent = Value::absent();
    let padded = |b: &mut Builder, value: &Value, amounts: &Value, like: &Value| {
        let fact = Fact::new(b.fact(value).element, b.shape(like));
        let operands = match node.input(3) {
            Some(axes) => vec![value, amounts, &absent, axes],
            None => vec![value, amounts],
        };
        b.emit("Pad", &operands, &[], fact)
    };
    let dx = padded(b, dy, &turned, x);
    let fills = node.input(2).is_some_and(|it| b.wants(it));
    let d_fill = fills.then(|| {
        let inner = padded(b, &dx, pads, dy);
        b.sub(dy, &inner)
    });
    Ok(vec![Some(dx), None, d_fill])
}

/// Pads the table of flat positions in the same way, and adds `dy` up at these positions.
fn copied(b: &mut Builder, node: &Node, dy: &Value) -> Value {
    let x = &node.inputs[0];
    let flat = b.flattened(x);
    let table = b.range(&flat, 0);
    let table = b.reshape_like(&table, x);
    let mut operands: Vec<&Value> = node.inputs.iter().collect();
    operands[0] = &table;
    let mode = node.text("mode").unwrap_or("constant");
    let places = b.emit("Pad", &operands, &[("mode", mode.into())], Fact::new(Element::I64, b.shape(dy)));
    let flat = added_at(b, x, &places, dy);
    b.reshape_like(&flat, x)
}

/// Zeros, as many as `x` has elements, with `dy` added up at flat `places` of its shape.
pub(super) fn added_at(b: &mut Builder, x: &Value, places: &Value, dy: &Value) -> Value {
    let (places, updates) = (b.flattened(places), b.flattened(dy));
    let zeros = b.zeros_like(x);
    let zeros = b.flattened(&zeros);
    let fact = Fact::new(b.fact(dy).element, b.shape(&zeros));
    let attributes: [(&str, Attribute); 2] = [("axis", 0.into()), ("reduction", "add".into())];
    b.emit("ScatterElements", &[&zeros, &places, &updates], &attributes, fact)
}

/// `dx` = `dy` reversed in the same way
fn reverse_sequence(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let fact = Fact::new(b.fact(dy).element, b.shape(dy));
    let axis = |name: &str, default: i64| node.int(name).unwrap_or(default);
    let attributes: [(&str, Attribute); 2] =
        [("time_axis", axis("time_axis", 0).into()), ("batch_axis", axis("batch_axis", 1).into())];
    only(b.emit("ReverseSequence", &[dy, &node.inputs[1]], &attributes, fact))
}
