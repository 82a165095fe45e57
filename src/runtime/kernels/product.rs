//! Where products of matrices run whose axes lie in another order in memory than products speak of them.

use std::ops::RangeInclusive;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use ort::{
    operator::{ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::TensorElementType::Float32,
};

use super::completes;

/// `y = transpose(α·transpose(a, left)·transpose(b, right), result)`, as ONNX's MatMul multiplies and its Transpose turns.
/// The operands have as many axes; batch axes of length one are repeated. Of the last two axes of each turned operand, and
/// of the result before it is turned, one must be the last in memory.
#[derive(Clone, Copy)]
pub(super) struct Product;

impl Operator for Product {
    type Kernel<'a> = Box<dyn FnMut(&ComputeContext) -> ort::Result<()> + Send>;

    fn name(&self) -> &str {
        "Product"
    }

    fn versions(&self) -> RangeInclusive<u32> {
        1..=1
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32), OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let order = |name: &str| {
            let order = node.get::<Vec<i64>>(name).unwrap_or_default();
            let order = order.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
            order.map_err(|_| ort::Error::new(format!("Product has a negative axis in `{name}`")))
        };
        let orders = [order("left")?, order("right")?, order("result")?];
        let alpha = node.get::<f32>("alpha").unwrap_or(1.0);
        Ok(Box::new(move |context| {
            let missing = || ort::Error::new("Product lacks an operand");
            let (a, b) = (context.input(0)?.ok_or_else(missing)?, context.input(1)?.ok_or_else(missing)?);
            let (a, b) = (a.try_extract_tensor::<f32>()?, b.try_extract_tensor::<f32>()?);
            let lengths =
                |it: &[i64]| it.iter().map(|&it| usize::try_from(it).unwrap_or(0)).collect::<Vec<_>>();
            let Some(plan) = Plan::new([&lengths(a.0), &lengths(b.0)], &orders) else {
                return Err(ort::Error::new("the operands of Product do not fit each other"));
            };
            let shape: Vec<i64> = plan.written.iter().map(|&it| it as i64).collect();
            let mut result = context.output(0, shape)?.ok_or_else(missing)?;
            let (_, into) = result.try_extract_tensor_mut::<f32>()?;
            if !completes(|| plan.multiply(a.1, b.1, into, alpha)) {
                return Err(ort::Error::new("Product panicked"));
            }
            Ok(())
        }))
    }
}

/// The axes of an operand or of the result, in the order in which the product speaks of them.
struct Turned {
    lengths: Vec<usize>,
    /// How far apart neighbours along each axis lie; 0 where an axis is repeated.
    strides: Vec<usize>,
}

impl Turned {
    /// `None` if the order is not one of so many axes.
    fn new(lengths: &[usize], order: &[usize]) -> Option<Self> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..lengths.len()) {
            return None;
        }
        let strides = strides(lengths);
        let pick = |from: &[usize]| order.iter().map(|&it| from[it]).collect();
        Some(Self { lengths: pick(lengths), strides: pick(&strides) })
    }

    /// Lengths of the axes of each matrix.
    fn matrix(&self) -> [usize; 2] {
        [self.lengths[self.lengths.len() - 2], self.lengths[self.lengths.len() - 1]]
    }

    /// How far apart rows and columns of each matrix lie.
    fn steps(&self) -> [usize; 2] {
        [self.strides[self.strides.len() - 2], self.strides[self.strides.len() - 1]]
    }

    /// Do the elements of rows or of columns follow each other in memory?
    fn is_dense(&self) -> bool {
        self.matrix().into_iter().zip(self.steps()).any(|(length, step)| step == 1 || length <= 1)
    }

    /// Where the matrix of this batch index begins.
    fn start(&self, batch: &[usize]) -> usize {
        batch.iter().zip(&self.strides).map(|(place, step)| place * step).sum()
    }
}

/// A product for operands of given lengths.
struct Plan {
    left: Turned,
    right: Turned,
    result: Turned,
    /// Lengths of the result's axes as it is written.
    written: Vec<usize>,
}

impl Plan {
    /// `None` when the operands do not fit each other or the orders.
    fn new([a, b]: [&[usize]; 2], [left, right, order]: &[Vec<usize>; 3]) -> Option<Self> {
        let (mut left, mut right) = (Turned::new(a, left)?, Turned::new(b, right)?);
        let batch = left.lengths.len().checked_sub(2)?;
        if right.lengths.len() != batch + 2 || left.matrix()[1] != right.matrix()[0] {
            return None;
        }
        let mut lengths = Vec::with_capacity(batch + 2);
        for axis in 0..batch {
            lengths.push(match (left.lengths[axis], right.lengths[axis]) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            });
            for operand in [&mut left, &mut right] {
                if operand.lengths[axis] == 1 {
                    operand.strides[axis] = 0;
                }
            }
        }
        lengths.extend([left.matrix()[0], right.matrix()[1]]);
        let written = Turned::new(&lengths, order)?.lengths;
        let apart = strides(&written);
        let mut strides = vec![0; lengths.len()];
        order.iter().zip(apart).for_each(|(&axis, step)| strides[axis] = step);
        let result = Turned { lengths, strides };
        let dense = left.is_dense() && right.is_dense() && result.is_dense();
        dense.then_some(Self { left, right, result, written })
    }

    /// Writes every element of `into`.
    fn multiply(&self, a: &[f32], b: &[f32], into: &mut [f32], alpha: f32) {
        let [rows, columns] = self.result.matrix();
        let inner = self.left.matrix()[1];
        if inner == 0 {
            into.fill(0.0);
        }
        if inner == 0 || into.is_empty() {
            return;
        }
        let batch = &self.result.lengths[..self.result.lengths.len() - 2];
        let mut at = vec![0; batch.len()];
        for _ in 0..batch.iter().product() {
            let left = view(&a[self.left.start(&at)..], [rows, inner], self.left.steps());
            let right = view(&b[self.right.start(&at)..], [inner, columns], self.right.steps());
            let into = view_mut(&mut into[self.result.start(&at)..], [rows, columns], self.result.steps());
            matmul(into, Accum::Replace, left, right, alpha, Par::Seq);
            for (place, length) in at.iter_mut().zip(batch).rev() {
                *place += 1;
                if *place < *length {
                    break;
                }
                *place = 0;
            }
        }
    }
}

/// How far apart neighbours along each axis lie when the last axis is dense.
fn strides(lengths: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; lengths.len()];
    for axis in (1..lengths.len()).rev() {
        strides[axis - 1] = strides[axis] * lengths[axis];
    }
    strides
}

fn view(values: &[f32], [rows, columns]: [usize; 2], [down, along]: [usize; 2]) -> MatRef<'_, f32> {
    if along == 1 || columns == 1 {
        MatRef::from_row_major_slice_with_stride(values, rows, columns, down)
    } else {
        MatRef::from_column_major_slice_with_stride(values, rows, columns, along)
    }
}

fn view_mut(values: &mut [f32], [rows, columns]: [usize; 2], [down, along]: [usize; 2]) -> MatMut<'_, f32> {
    if along == 1 || columns == 1 {
        // The step between rows of which there is one says nothing. (faer 0.24 has a constructor of row-major views, too: it
        // forgets to turn them, and what is written by it goes astray.)
        MatMut::from_column_major_slice_with_stride_mut(values, columns, rows, down.max(columns))
            .transpose_mut()
    } else {
        MatMut::from_column_major_slice_with_stride_mut(values, rows, columns, along.max(rows))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The product by its definition, in double precision.
    fn by_definition(
        [a, b]: [(&[usize], &[f32]); 2],
        [left, right, order]: &[Vec<usize>; 3],
        alpha: f32,
    ) -> (Vec<usize>, Vec<f64>) {
        let rank = left.len();
        let turned =
            |lengths: &[usize], order: &[usize]| order.iter().map(|&it| lengths[it]).collect::<Vec<_>>();
        let (left_lengths, right_lengths) = (turned(a.0, left), turned(b.0, right));
        let mut lengths: Vec<usize> =
            left_lengths.iter().zip(&right_lengths).map(|(&a, &b)| if a == 1 { b } else { a }).collect();
        (lengths[rank - 2], lengths[rank - 1]) = (left_lengths[rank - 2], right_lengths[rank - 1]);
        let written = turned(&lengths, order);
        let element = |(lengths, values): (&[usize], &[f32]), order: &[usize], at: &[usize]| {
            let mut place = vec![0; rank];
            order
                .iter()
                .zip(at)
                .for_each(|(&axis, &it)| place[axis] = if lengths[axis] == 1 { 0 } else { it });
            let index = place.iter().zip(lengths).fold(0, |index, (place, length)| index * length + place);
            f64::from(values[index])
        };
        let count: usize = written.iter().product();
        let value = |index: usize| {
            let mut rest = index;
            let mut at = vec![0; rank];
            for axis in (0..rank).rev() {
                at[order[axis]] = rest % written[axis];
                rest /= written[axis];
            }
            let term = |k: usize| {
                let (mut l, mut r) = (at.clone(), at.clone());
                (l[rank - 1], r[rank - 2]) = (k, k);
                element(a, left, &l) * element(b, right, &r)
            };
            f64::from(alpha) * (0..left_lengths[rank - 1]).map(term).sum::<f64>()
        };
        (written.clone(), (0..count).map(value).collect())
    }

    /// Lengths in memory of what is turned to `lengths`.
    fn untwisted(lengths: &[usize], order: &[usize]) -> Vec<usize> {
        let mut memory = vec![0; lengths.len()];
        order.iter().zip(lengths).for_each(|(&axis, &length)| memory[axis] = length);
        memory
    }

    fn order() -> impl Strategy<Value = Vec<usize>> {
        Just(vec![0, 1, 2, 3]).prop_shuffle()
    }

    proptest! {
        #[test]
        fn products_of_turned_operands_are_those_of_the_definition(
            (left, right, order) in (order(), order(), order()),
            (batch, [rows, inner, columns]) in (prop::array::uniform2(0usize..4), prop::array::uniform3(0usize..20)),
            repeated in prop::array::uniform2(any::<bool>()),
            alpha in -2.0f32..2.0,
        ) {
            let once = |repeated: bool, it: usize| if repeated { 1 } else { it };
            let a = untwisted(&[once(repeated[0], batch[0]), batch[1], rows, inner], &left);
            let b = untwisted(&[batch[0], once(repeated[1], batch[1]), inner, columns], &right);
            let draw = |lengths: &[usize], seed: usize| -> Vec<f32> {
                let count: usize = lengths.iter().product();
                (0..count).map(|it| ((it * 7 + seed) % 13) as f32 / 6.5 - 1.0).collect()
            };
            let (x, y) = (draw(&a, 1), draw(&b, 5));
            let orders = [left, right, order];
            // The last axis in memory must be one of a matrix.
            let dense = |order: &[usize], lengths: [usize; 2]| order[2..].contains(&3) || lengths.iter().any(|&it| it <= 1);
            let place = |it: usize| orders[2][3] == it;
            let fits = dense(&orders[0], [rows, inner]) && dense(&orders[1], [inner, columns])
                && (place(2) || place(3) || rows <= 1 || columns <= 1);
            if let Some(plan) = Plan::new([&a, &b], &orders) {
                let (written, wanted) = by_definition([(&a, &x), (&b, &y)], &orders, alpha);
                prop_assert_eq!(&plan.written, &written);
                let mut found = vec![f32::NAN; wanted.len()];
                plan.multiply(&x, &y, &mut found, alpha);
                for (found, wanted) in found.iter().zip(wanted) {
                    prop_assert!((f64::from(*found) - wanted).abs() < 1e-5, "{} for {}", found, wanted);
                }
            } else {
                prop_assert!(!fits);
            }
        }
    }

    #[test]
    fn operands_that_do_not_fit_make_no_plan() {
        let plan = |a: &[usize], b: &[usize], left: &[usize]| {
            Plan::new([a, b], &[left.to_vec(), vec![0, 1, 2], vec![0, 1, 2]]).is_some()
        };
        assert!(plan(&[2, 3, 4], &[2, 4, 5], &[0, 1, 2]));
        assert!(plan(&[2, 4, 3], &[1, 4, 5], &[0, 2, 1]));
        assert!(!plan(&[2, 3, 4], &[2, 3, 5], &[0, 1, 2]), "inner lengths differ");
        assert!(!plan(&[2, 3, 4], &[3, 4, 5], &[0, 1, 2]), "batches differ");
        assert!(!plan(&[2, 3, 4], &[4, 5], &[0, 1, 2]), "ranks differ");
        assert!(!plan(&[2, 3, 4], &[2, 4, 5], &[0, 1]), "an order of fewer axes");
        assert!(!plan(&[2, 3, 4], &[2, 4, 5], &[0, 1, 1]), "an axis twice");
        assert!(!plan(&[3, 4, 2], &[2, 4, 5], &[2, 0, 1]), "matrices without a dense axis");
        assert!(Plan::new([&[4], &[4]], &[vec![0], vec![0], vec![0]]).is_none(), "vectors");
    }
}
