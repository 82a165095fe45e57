//! This file is where operators slide a window: pools, and transposed convolution.

use super::Gradient::Rule;
use super::Kind::{Maximum, Product, Sum};
use super::scatter::added_at;
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length, Shape};
use crate::compile::graph::{Attribute, Element, Node, Tensor, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row(
        "AveragePool",
        Sum,
        average,
        &[
            "y = AveragePool(x[2, 3, 7]) {kernel_shape: [2], strides: [2]}",
            "y = AveragePool(x[2, 3, 7]) {kernel_shape: [3], pads: [1, 1]}",
            "y = AveragePool(x[2, 3, 7]) {kernel_shape: [3], pads: [1, 1], count_include_pad: 1}",
            "y = AveragePool(x[1, 2, 7]) {kernel_shape: [2], strides: [2], ceil_mode: 1}",
            "y = AveragePool(x[1, 2, 5, 4]) {kernel_shape: [2, 3], strides: [2, 1], pads: [0, 1, 1, 0]}",
        ],
    ),
    row(
        "MaxPool",
        Maximum,
        maximum,
        &[
            "y = MaxPool(x[2, 3, 7]) {kernel_shape: [2], strides: [1]}",
            "y = MaxPool(x[1, 2, 5, 4]) {kernel_shape: [2, 3], strides: [2, 1], pads: [1, 1, 1, 1], ceil_mode: 1}",
        ],
    ),
    row("GlobalAveragePool", Sum, global_average, &["y = GlobalAveragePool(x[2, 3, 4, 2])"]),
    row("GlobalMaxPool", Maximum, global_maximum, &["y = GlobalMaxPool(x[2, 3, 5])"]),
    row(
        "ConvTranspose",
        Product,
        transposed_convolution,
        &[
            "k = Reshape([0.5, -1.0, 2.0, 0.1, 0.3, -0.7, 1.1, 0.9], [2, 2, 2]); y = ConvTranspose(x[2, 2, 4], k, b[2]) {strides: [2], pads: [1, 0]}",
            "k = Reshape([0.5, -1.0, 2.0, 0.3, -0.7, 1.1], [2, 1, 3]); y = ConvTranspose(x[1, 2, 4], k) {group: 2, dilations: [2]}",
        ],
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

/// The window of a pool or a convolution.
pub(super) struct Window {
    kernel: Vec<i64>,
    pub(super) strides: Vec<i64>,
    dilations: Vec<i64>,
    /// In front of each axis, then behind each.
    pub(super) pads: Vec<i64>,
    /// May the last window stand out over the end?
    ceil: bool,
}

impl Window {
    fn of(node: &Node) -> Result<Self, Misfit> {
        if !matches!(node.text("auto_pad"), None | Some("NOTSET" | "VALID")) {
            return Err("auto_pad is set".into());
        }
        Ok(Self::over(node, node.ints("kernel_shape").ok_or("kernel_shape is missing")?.to_vec()))
    }

    /// The window of a node whose kernel has these lengths.
    pub(super) fn over(node: &Node, kernel: Vec<i64>) -> Self {
        let spatial = kernel.len();
        let list = |name: &str, default: i64, length: usize| {
            node.ints(name).map_or_else(|| vec![default; length], <[i64]>::to_vec)
        };
        Self {
            strides: list("strides", 1, spatial),
            dilations: list("dilations", 1, spatial),
            pads: list("pads", 0, 2 * spatial),
            ceil: node.int("ceil_mode").unwrap_or(0) != 0,
            kernel,
        }
    }

    pub(super) fn attributes(&self) -> [(&'static str, Attribute); 2] {
        [("strides", self.strides.clone().into()), ("dilations", self.dilations.clone().into())]
    }

    /// A kernel of ones for one channel.
    fn ones(&self, b: &mut Builder, element: Element) -> Value {
        let dims: Vec<usize> = [1, 1].into_iter().chain(self.kernel.iter().map(|&it| it as usize)).collect();
        let count = dims.iter().product();
        b.constant(Tensor::from_f64(element, &dims, &vec![1.0; count]))
    }

    /// How far all windows reach together, given how many there are along `axis`.
    pub(super) fn reach(&self, axis: usize, windows: Length) -> Length {
        let span = self.dilations[axis] * (self.kernel[axis] - 1) + 1;
        Length(windows.0.map(|it| ((it as i64 - 1) * self.strides[axis] + span).max(0) as usize))
    }
}

/// `dx` = the share of each window, spread over it: a transposed convolution with ones
fn average(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let window = Window::of(node)?;
    let (element, target, windows) = (b.fact(x).element, b.shape(x), b.shape(dy));
    let spatial = target.len() - 2;
    let includes = node.int("count_include_pad").unwrap_or(0) != 0;
    let padded = window.pads.iter().any(|&it| it != 0);
    let share = if (padded && !includes) || window.ceil {
        let count = counts(b, node, &window, dy, includes);
        b.div(dy, &count)
    } else {
        b.scale(dy, 1.0 / window.kernel.iter().product::<i64>() as f64)
    };
    // Channels are rows of a batch here, so that one kernel does for all.
    let share = by_channel(b, &share);
    let ones = window.ones(b, element);
    let mut shape = b.shape(&share);
    for axis in 0..spatial {
        shape[axis + 2] = window.reach(axis, windows[axis + 2]);
    }
    let spread = b.emit("ConvTranspose", &[&share, &ones], &window.attributes(), Fact::new(element, shape));
    // The windows began in front of the first element, and ended behind the last or before it.
    let cut = fitted(b, &spread, x, &window, -1);
    only(b.reshape_like(&cut, x))
}

/// How many elements each window holds: a convolution of ones with ones, zeros around. Padding counts as
/// elements if the operator says so; what a last window stands out over it never does.
fn counts(b: &mut Builder, node: &Node, window: &Window, dy: &Value, includes: bool) -> Value {
    let x = &node.inputs[0];
    let (element, target, windows) = (b.fact(x).element, b.shape(x), b.shape(dy));
    let spatial = target.len() - 2;
    let one = b.ints(&[1]);
    let lengths: Vec<Value> = (0..spatial).map(|axis| b.length_of(x, axis + 2)).collect();
    let mut lists = vec![one.clone(), one];
    lists.extend(lengths);
    let lengths = b.joined(&lists);
    let mut shape: Shape = vec![Length::ONE, Length::ONE];
    shape.extend(&target[2..]);
    let fill = Tensor::from_f64(element, &[1], &[1.0]);
    let fact = Fact::new(element, shape.clone());
    let mut field = b.emit("ConstantOfShape", &[&lengths], &[("value", Attribute::Tensor(fill))], fact);
    if includes {
        let pads = b.ints(&spread_pads(&window.pads, 1));
        let value = b.scalar(1.0);
        for axis in 0..spatial {
            let more = (window.pads[axis] + window.pads[axis + spatial]) as usize;
            shape[axis + 2] = Length(shape[axis + 2].0.map(|it| it + more));
        }
        field = b.emit("Pad", &[&field, &pads, &value], &[], Fact::new(element, shape.clone()));
    }
    // Zeros up to the end of the last window.
    let mut amounts = vec![0; 4 + 2 * spatial];
    if !includes {
        (0..spatial).for_each(|axis| amounts[axis + 2] = window.pads[axis]);
    }
    let mut lists: Vec<Value> = amounts[..2 + spatial + 2].iter().map(|&it| b.ints(&[it])).collect();
    for axis in 0..spatial {
        let reach = reach_of(b, dy, window, axis);
        let have = b.length_of(&field, axis + 2);
        let rest = b.sub(&reach, &have);
        let front = b.ints(&[amounts[axis + 2]]);
        lists.push(b.sub(&rest, &front));
        shape[axis + 2] = window.reach(axis, windows[axis + 2]);
    }
    let pads = b.joined(&lists);
    let field = b.emit("Pad", &[&field, &pads], &[], Fact::new(element, shape.clone()));
    let ones = window.ones(b, element);
    shape[2..].copy_from_slice(&windows[2..]);
    b.emit("Conv", &[&field, &ones], &window.attributes(), Fact::new(element, shape))
}

/// Pads of the spatial axes as Pad wants them for all axes, times `sign`.
fn spread_pads(pads: &[i64], sign: i64) -> Vec<i64> {
    let half = pads.len() / 2;
    let side = |pads: &[i64]| [0, 0].into_iter().chain(pads.iter().map(|it| sign * it)).collect::<Vec<_>>();
    [side(&pads[..half]), side(&pads[half..])].concat()
}

/// How far the windows of `dy` reach along a spatial axis, as a list of one.
fn reach_of(b: &mut Builder, dy: &Value, window: &Window, axis: usize) -> Value {
    let span = window.dilations[axis] * (window.kernel[axis] - 1) + 1;
    let count = b.length_of(dy, axis + 2);
    let (stride, rest) = (b.ints(&[window.strides[axis]]), b.ints(&[span - window.strides[axis]]));
    let reach = b.mul(&count, &stride);
    b.add(&reach, &rest)
}

/// [batch, channels, …] as [batch·channels, 1, …].
fn by_channel(b: &mut Builder, x: &Value) -> Value {
    let shape = b.shape(x);
    let mut lists = vec![b.ints(&[-1]), b.ints(&[1])];
    lists.extend((2..shape.len()).map(|axis| b.length_of(x, axis)));
    let target = b.joined(&lists);
    let mut flat = vec![shape[0].zip(shape[1], |n, c| n * c), Length::ONE];
    flat.extend(&shape[2..]);
    b.reshape(x, &target, flat)
}

/// `spread`, cut in front by the pads (times `sign`) and cut or filled up behind to the lengths of `x`.
pub(super) fn fitted(b: &mut Builder, spread: &Value, x: &Value, window: &Window, sign: i64) -> Value {
    let (target, mut shape) = (b.shape(x), b.shape(spread));
    let spatial = target.len() - 2;
    let mut lists: Vec<Value> = vec![b.ints(&[0]), b.ints(&[0])];
    lists.extend((0..spatial).map(|axis| b.ints(&[sign * window.pads[axis]])));
    lists.extend([b.ints(&[0]), b.ints(&[0])]);
    for axis in 0..spatial {
        let (have, want) = (b.length_of(spread, axis + 2), b.length_of(x, axis + 2));
        let rest = b.sub(&want, &have);
        let front = b.ints(&[window.pads[axis]]);
        lists.push(b.add(&rest, &front));
        shape[axis + 2] = target[axis + 2];
    }
    let pads = b.joined(&lists);
    b.emit("Pad", &[spread, &pads], &[], Fact::new(b.fact(spread).element, shape))
}

/// `dx` = `dy`, added up where each window's maximum was
fn maximum(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, y) = (&node.inputs[0], &node.outputs[0]);
    if node.int("storage_order").unwrap_or(0) != 0 {
        return Err("places are counted by columns".into());
    }
    let fact = Fact::new(Element::I64, b.shape(y));
    let places = b.further_output(y, 1, fact).ok_or("its places cannot be asked for")?;
    let flat = added_at(b, x, &places, dy);
    only(b.reshape_like(&flat, x))
}

/// `dx = dy/n`, repeated over the `n` elements of a channel
fn global_average(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let axes: Vec<usize> = (2..b.rank(x)).collect();
    let n = b.count_along(x, &axes);
    let share = b.div(dy, &n);
    only(b.expand_like(&share, x))
}

/// `dx = dy·h/Σh` with `h = 1` where `x = y`, else 0: equal maxima share
fn global_maximum(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let axes: Vec<usize> = (2..b.rank(x)).collect();
    let (zero, element) = (b.scalar(0.0), b.fact(x).element);
    let taken = b.compare("Equal", x, &node.outputs[0]);
    let ones = b.cast(&taken, element);
    let count = b.reduce_sum(&ones, &axes, true);
    let share = b.div(dy, &count);
    only(b.select(&taken, &share, &zero))
}

/// `dX` = convolution of `dY` with the same kernel; `dB` = sum of `dY` over all but the channels
fn transposed_convolution(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, w) = (&node.inputs[0], &node.inputs[1]);
    if b.wants(w) {
        return Err("the kernel depends on the embeddings".into());
    }
    if !matches!(node.text("auto_pad"), None | Some("NOTSET" | "VALID"))
        || node.ints("output_shape").is_some()
    {
        return Err("the length of the result is prescribed".into());
    }
    let copied = ["strides", "dilations", "pads", "group"].into_iter();
    let attributes: Vec<(&str, Attribute)> =
        copied.filter_map(|it| Some((it, node.attributes.get(it)?.clone()))).collect();
    let dx = b.wants(x).then(|| {
        let fact = Fact::new(b.fact(dy).element, b.shape(x));
        b.emit("Conv", &[dy, w], &attributes, fact)
    });
    let db = node.input(2).filter(|it| b.wants(it)).is_some().then(|| {
        let axes: Vec<usize> = (0..b.rank(dy)).filter(|&it| it != 1).collect();
        b.reduce_sum(dy, &axes, false)
    });
    Ok(vec![dx, None, db])
}
