//! This file is where rules meet finite differences on shapes that no row shows: broadcast, empty, counted from
//! the end.

use explaind::runtime::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{operators::worst_gap, support};

fn on_processor() -> bool {
    support::runtime().device == Device::Cpu
}

/// Draws for each form.
const DRAWS: usize = 8;

/// The operator version that the forms are written in.
pub(crate) const OPSET: i64 = 18;

/// Shapes and axes, drawn.
struct Draw {
    rng: ChaCha8Rng,
    /// May a shape be empty at all?
    empty: bool,
}

impl Draw {
    fn up_to(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// Up to four axes of up to three, one of them empty now and then.
    fn shape(&mut self, may_be_empty: bool) -> Vec<usize> {
        let rank = 1 + self.up_to(4);
        let mut shape: Vec<usize> = (0..rank).map(|_| 1 + self.up_to(3)).collect();
        if may_be_empty && self.up_to(4) == 0 && self.empty {
            let axis = self.up_to(rank);
            shape[axis] = 0;
        }
        shape
    }

    /// A shape that can be broadcast to `shape`, with or without its first axes.
    fn narrower(&mut self, shape: &[usize]) -> Vec<usize> {
        let start = self.up_to(shape.len());
        shape[start..].iter().map(|&it| if self.up_to(2) == 0 { 1 } else { it }).collect()
    }

    /// An axis, counted from either end.
    fn axis(&mut self, rank: usize) -> i64 {
        let axis = self.up_to(rank) as i64;
        if self.up_to(2) == 0 { axis } else { axis - rank as i64 }
    }
}

/// A graph of a form, its shapes drawn.
type Form = Box<dyn Fn(&mut Draw) -> String>;

/// Draws of each form.
fn drawn(forms: Vec<Form>, empty: bool) -> Vec<String> {
    let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(11), empty };
    forms.iter().flat_map(|form| (0..DRAWS).map(|_| form(&mut draw)).collect::<Vec<_>>()).collect()
}

/// Draws of every form, none of them empty.
pub(crate) fn every() -> Vec<String> {
    [broadcasts(), reductions(), axes()].into_iter().flat_map(|it| drawn(it, false)).collect()
}

fn assert_all(forms: Vec<Form>) {
    let mut failures = Vec::new();
    // CUDA's kernels do not sum over nothing.
    for text in drawn(forms, on_processor()) {
        match worst_gap(&text, OPSET) {
            Ok(gap) if gap < 2e-3 => {}
            Ok(gap) => failures.push(format!("{text}: off by {gap:e}")),
            Err(reason) => failures.push(format!("{text}: {reason}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn broadcast(op: &'static str, domain: &'static str) -> impl Fn(&mut Draw) -> String {
    move |draw| {
        let wide = draw.shape(true);
        let (left, right) = (draw.narrower(&wide), draw.narrower(&wide));
        if draw.up_to(2) == 0 {
            format!("y = {op}(x{wide:?}{domain}, w{right:?}{domain})")
        } else {
            format!("y = {op}(x{left:?}{domain}, w{wide:?}{domain})")
        }
    }
}

#[test]
fn operands_of_any_shapes_that_broadcast_are_covered() {
    assert_all(broadcasts());
}

fn broadcasts() -> Vec<Form> {
    vec![
        Box::new(broadcast("Add", "")),
        Box::new(broadcast("Sub", "")),
        Box::new(broadcast("Mul", "")),
        Box::new(broadcast("Div", " > 0")),
        Box::new(broadcast("Pow", " > 0")),
        Box::new(broadcast("Max", "")),
        Box::new(broadcast("Min", "")),
        Box::new(broadcast("Sum", "")),
        Box::new(broadcast("Mean", "")),
        Box::new(|draw: &mut Draw| {
            let wide = draw.shape(true);
            let (a, b) = (draw.narrower(&wide), draw.narrower(&wide));
            format!("c = Greater(n{wide:?}, 0.1); y = Where(c, x{a:?}, w{b:?})")
        }),
        Box::new(|draw: &mut Draw| {
            let wide = draw.shape(false);
            format!("y = Expand(x{:?}, {wide:?})", draw.narrower(&wide))
        }),
        Box::new(|draw: &mut Draw| {
            let batch = draw.shape(false);
            let (left, right) = (draw.narrower(&batch), draw.narrower(&batch));
            // CUDA's product is wrong where both are broadcast and happen to be as many.
            let left = if on_processor() { left } else { batch };
            let list = |batch: &[usize], rows: usize, columns: usize| [batch, &[rows, columns]].concat();
            format!("y = MatMul(x{:?}, w{:?})", list(&left, 2, 3), list(&right, 3, 2))
        }),
    ]
}

fn reduced(op: &'static str, domain: &'static str, may_be_empty: bool) -> impl Fn(&mut Draw) -> String {
    move |draw| {
        let shape = draw.shape(may_be_empty);
        // ONNX Runtime keeps the axes of empty operands whatever it is told.
        let (axis, keep) = (draw.axis(shape.len()), if shape.contains(&0) { 1 } else { draw.up_to(2) });
        format!("y = {op}(x{shape:?}{domain}, [{axis}]) {{keepdims: {keep}}}")
    }
}

#[test]
fn reductions_over_any_axis_are_covered() {
    assert_all(reductions());
}

fn reductions() -> Vec<Form> {
    vec![
        Box::new(reduced("ReduceSum", "", true)),
        Box::new(reduced("ReduceMean", "", false)),
        Box::new(reduced("ReduceMax", "", false)),
        Box::new(reduced("ReduceMin", "", false)),
        Box::new(reduced("ReduceL1", "", true)),
        Box::new(reduced("ReduceL2", " > 0", false)),
        Box::new(reduced("ReduceSumSquare", "", true)),
        Box::new(reduced("ReduceLogSumExp", "", false)),
        Box::new(reduced("ReduceLogSum", " > 0", false)),
        Box::new(reduced("ReduceProd", "", false)),
    ]
}

fn along(op: &'static str, operands: &'static str) -> impl Fn(&mut Draw) -> String {
    move |draw| {
        let shape = draw.shape(true);
        let axis = draw.axis(shape.len());
        format!("y = {op}(x{shape:?}{operands}) {{axis: {axis}}}")
    }
}

#[test]
fn axes_counted_from_either_end_are_covered() {
    assert_all(axes());
}

fn axes() -> Vec<Form> {
    vec![
        Box::new(along("Softmax", "")),
        Box::new(along("LogSoftmax", "")),
        Box::new(along("Flatten", "")),
        Box::new(along("LpNormalization", "")),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(true);
            let axis = draw.axis(shape.len());
            format!("y = Concat(x{shape:?}, w{shape:?}, x) {{axis: {axis}}}")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(false);
            let axis = draw.axis(shape.len());
            format!("y = Gather(x{shape:?}, [-1, 0, 0]) {{axis: {axis}}}")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(false);
            let axis = draw.axis(shape.len());
            format!("y = Gather(x{shape:?}, -1) {{axis: {axis}}}")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(true);
            let axis = draw.axis(shape.len());
            let (start, end) = (draw.up_to(4) as i64 - 2, draw.up_to(6) as i64 - 2);
            format!("y = Slice(x{shape:?}, [{start}], [{end}], [{axis}])")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(true);
            let axis = draw.axis(shape.len());
            format!(
                "y = CumSum(x{shape:?}, {axis}) {{exclusive: {}, reverse: {}}}",
                draw.up_to(2),
                draw.up_to(2)
            )
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(false);
            let axis = draw.axis(shape.len());
            format!("y, i = TopK(x{shape:?}, [1]) {{axis: {axis}, largest: {}}}", draw.up_to(2))
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(true);
            let repeats: Vec<usize> = shape.iter().map(|_| 1 + draw.up_to(2)).collect();
            format!("y = Tile(x{shape:?}, {repeats:?})")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(false);
            let pads: Vec<i64> = (0..2 * shape.len()).map(|_| draw.up_to(3) as i64).collect();
            format!("y = Pad(x{shape:?}, {pads:?}, 0.5)")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(true);
            let axis = draw.axis(shape.len() + 1);
            format!("y = Unsqueeze(x{shape:?}, [{axis}])")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = draw.shape(true);
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            let turn = draw.up_to(shape.len());
            perm.rotate_left(turn);
            format!("y = Transpose(x{shape:?}) {{perm: {perm:?}}}")
        }),
        Box::new(|draw: &mut Draw| {
            let shape = [draw.shape(true), vec![1 + draw.up_to(3), 1 + draw.up_to(3)]].concat();
            format!("y = Trilu(x{shape:?}, {}) {{upper: {}}}", draw.up_to(3) as i64 - 1, draw.up_to(2))
        }),
        Box::new(|draw: &mut Draw| {
            let shape = [draw.shape(true), vec![3]].concat();
            format!("y = LayerNormalization(x{shape:?}, g[3], c[3]) {{axis: -1, epsilon: 0.1}}")
        }),
    ]
}
