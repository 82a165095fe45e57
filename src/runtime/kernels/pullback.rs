//! Where pullbacks that take ONNX's operators many passes over memory take one each.
//!
//! What a `call` reaches is compiled for the processor at hand only where it is inlined, so loops are spelt out in it, and
//! helpers and closures say `inline(always)`: a closure inside an iterator may be compiled for any processor.

use std::{f32::consts::FRAC_1_SQRT_2, ops::RangeInclusive};

use ort::{
    operator::{ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::TensorElementType::Float32,
};
use pulp::{Arch, NullaryFnOnce};

use super::completes;

/// An operator whose first operand is a cotangent, and whose only result has the shape of it.
#[derive(Clone, Copy)]
pub(super) struct Pullback {
    name: &'static str,
    operands: &'static [Size],
    /// From the operands to the result, and the length of the last axis.
    compute: fn(&[&[f32]], &mut [f32], usize),
}

/// How many elements an operand has.
#[derive(Clone, Copy)]
enum Size {
    /// As many as the result.
    Whole,
    /// One for each element of the last axis.
    Row,
    /// One for each row.
    Rows,
}

pub(super) static PULLBACKS: &[Pullback] = &[
    Pullback { name: "GeluPullback", operands: &[Size::Whole; 2], compute: gelu },
    Pullback {
        name: "LayerNormalizationPullback",
        operands: &[Size::Whole, Size::Whole, Size::Row, Size::Rows, Size::Rows],
        compute: layer_normalization,
    },
    Pullback { name: "SoftmaxPullback", operands: &[Size::Whole; 2], compute: softmax },
];

impl Operator for Pullback {
    type Kernel<'a> = Box<dyn FnMut(&ComputeContext) -> ort::Result<()> + Send>;

    fn name(&self) -> &str {
        self.name
    }

    fn versions(&self) -> RangeInclusive<u32> {
        1..=1
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.operands.iter().map(|_| OperatorInput::required(Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'a>(&self, _: &KernelContext<'a>) -> ort::Result<Self::Kernel<'a>> {
        let Self { name, operands, compute } = *self;
        Ok(Box::new(move |context| {
            let missing = || ort::Error::new(format!("{name} lacks an operand"));
            let given = (0..operands.len()).map(|it| context.input(it)?.ok_or_else(missing));
            let given = given.collect::<ort::Result<Vec<_>>>()?;
            let views = given.iter().map(|it| it.try_extract_tensor::<f32>());
            let views = views.collect::<ort::Result<Vec<_>>>()?;
            let shape = views[0].0.to_vec();
            let mut lengths: Vec<usize> = shape.iter().map(|&it| usize::try_from(it).unwrap_or(0)).collect();
            let last = lengths.pop().unwrap_or(1);
            let rows = lengths.iter().product();
            let slices: Vec<&[f32]> = views.iter().map(|it| it.1).collect();
            let mut result = context.output(0, shape)?.ok_or_else(missing)?;
            let (_, into) = result.try_extract_tensor_mut::<f32>()?;
            if !fit(operands, &slices, (rows, last)) {
                return Err(ort::Error::new(format!("the operands of {name} do not fit each other")));
            }
            if !completes(|| compute(&slices, into, last)) {
                return Err(ort::Error::new(format!("{name} panicked")));
            }
            Ok(())
        }))
    }
}

/// Has every operand as many elements as it must have, in a result of so many rows of so many elements?
fn fit(sizes: &[Size], operands: &[&[f32]], (rows, last): (usize, usize)) -> bool {
    let wanted = |size: &Size| match size {
        Size::Whole => rows * last,
        Size::Row => last,
        Size::Rows => rows,
    };
    sizes.iter().map(wanted).eq(operands.iter().map(|it| it.len()))
}

/// `dy, x`: `dx = dy·(Φ(x) + x·φ(x))`
fn gelu(operands: &[&[f32]], into: &mut [f32], _: usize) {
    struct Work<'a>(&'a [f32], &'a [f32], &'a mut [f32]);

    impl NullaryFnOnce for Work<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self(dy, x, into) = self;
            let (dy, x) = (&dy[..into.len()], &x[..into.len()]);
            for at in 0..into.len() {
                into[at] = dy[at] * gelu_slope(x[at]);
            }
        }
    }

    let &[dy, x] = operands else { return };
    Arch::new().dispatch(Work(dy, x, into));
}

/// `Φ(x) + x·φ(x)`; Φ by formula 7.1.26 of Abramowitz and Stegun, which is off by less than 1e-7.
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;
    let t = 1.0 / (1.0 + 0.327_591_1 * FRAC_1_SQRT_2 * x.abs());
    let tail =
        t * (0.127_414_8 + t * (-0.142_248_37 + t * (0.710_706_9 + t * (-0.726_576 + t * 0.530_702_7))));
    let bell = exp(-0.5 * x * x);
    let below = tail * bell;
    let phi = if x < 0.0 { below } else { 1.0 - below };
    phi + x * FRAC_1_SQRT_TAU * bell
}

/// `eˣ` for `x ≤ 0`, zero below the smallest normal number; Cephes' polynomial behind a reduction by `ln 2`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let lowest = -87.0;
    let clamped = x.max(lowest);
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let whole = shifted - SHIFT;
    let r = clamped - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let p = (((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r;
    let p = (p + 1.666_666_5e-1) * r + 0.5;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let value = (p * r * r + r + 1.0) * scale;
    if x < lowest { 0.0 } else { value }
}

/// Numbers that are summed side by side.
const LANES: usize = 16;

/// Sums `of` the places of a row, lane by lane.
#[expect(clippy::needless_range_loop, reason = "iterators are made of closures; see above")]
#[inline(always)]
fn sums<const N: usize>(length: usize, of: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let whole = length / LANES * LANES;
    for start in 0..length / LANES {
        for lane in 0..LANES {
            let terms = of(start * LANES + lane);
            for sum in 0..N {
                lanes[sum][lane] += terms[sum];
            }
        }
    }
    let mut totals = [0.0; N];
    for sum in 0..N {
        for lane in 0..LANES {
            totals[sum] += lanes[sum][lane];
        }
    }
    for place in whole..length {
        let terms = of(place);
        for sum in 0..N {
            totals[sum] += terms[sum];
        }
    }
    totals
}

/// `dy, x, γ, μ, 1/σ` by rows: `dx = (g − mean g − x̂·mean(g·x̂))/σ`, `g = dy·γ`, `x̂ = (x − μ)/σ`
fn layer_normalization(operands: &[&[f32]], into: &mut [f32], width: usize) {
    struct Work<'a>([&'a [f32]; 5], &'a mut [f32], usize);

    impl NullaryFnOnce for Work<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self([dy, x, scale, mean, inverse], into, width) = self;
            let scale = &scale[..width];
            for row in 0..mean.len() {
                let (dy, x) = (&dy[row * width..][..width], &x[row * width..][..width]);
                let into = &mut into[row * width..][..width];
                let (mean, inverse) = (mean[row], inverse[row]);
                let [level, tilt] = sums(
                    width,
                    #[inline(always)]
                    |at| {
                        let g = dy[at] * scale[at];
                        [g, g * ((x[at] - mean) * inverse)]
                    },
                );
                let (level, tilt) = (level / width as f32, tilt / width as f32);
                for at in 0..width {
                    let normal = (x[at] - mean) * inverse;
                    into[at] = (dy[at] * scale[at] - level - normal * tilt) * inverse;
                }
            }
        }
    }

    let &[dy, x, scale, mean, inverse] = operands else { return };
    Arch::new().dispatch(Work([dy, x, scale, mean, inverse], into, width));
}

/// `dy, p` by rows: `dx = p·(dy − Σ p·dy)`
fn softmax(operands: &[&[f32]], into: &mut [f32], width: usize) {
    struct Work<'a>(&'a [f32], &'a [f32], &'a mut [f32], usize);

    impl NullaryFnOnce for Work<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self(dy, p, into, width) = self;
            for row in 0..into.len() / width.max(1) {
                let (dy, p) = (&dy[row * width..][..width], &p[row * width..][..width]);
                let into = &mut into[row * width..][..width];
                let [total] = sums(
                    width,
                    #[inline(always)]
                    |at| [p[at] * dy[at]],
                );
                for at in 0..width {
                    into[at] = p[at] * (dy[at] - total);
                }
            }
        }
    }

    let &[dy, p] = operands else { return };
    Arch::new().dispatch(Work(dy, p, into, width));
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use statrs::function::erf::erf;

    use super::*;

    fn draw(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    #[track_caller]
    fn assert_close(found: &[f32], wanted: impl Iterator<Item = f64>, bound: f64) {
        for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            assert!((f64::from(*found) - wanted).abs() <= bound, "{at}: {found} for {wanted}");
        }
    }

    #[test]
    fn operands_have_exactly_the_sizes_that_the_operator_reads() {
        let fits = |name: &str, lengths: &[usize]| {
            let pullback = PULLBACKS.iter().find(|it| it.name == name).unwrap();
            let values: Vec<Vec<f32>> = lengths.iter().map(|&it| vec![0.0; it]).collect();
            let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            fit(pullback.operands, &slices, (3, 8))
        };
        assert!(fits("GeluPullback", &[24, 24]) && fits("SoftmaxPullback", &[24, 24]));
        assert!(fits("LayerNormalizationPullback", &[24, 24, 8, 3, 3]));
        for short in [3, 8] {
            assert!(!fits("GeluPullback", &[24, short]) && !fits("SoftmaxPullback", &[24, short]));
            assert!(!fits("LayerNormalizationPullback", &[24, short, 8, 3, 3]));
        }
        assert!(!fits("LayerNormalizationPullback", &[24, 24, 3, 3, 3]), "a scale for each row");
        assert!(!fits("LayerNormalizationPullback", &[24, 24, 8, 8, 3]), "a mean for each column");
    }

    #[test]
    fn the_slope_of_gelu_is_that_of_double_precision() {
        let x: Vec<f32> = (-4000..=4000).map(|it| it as f32 * 0.005).chain([-1e4, 1e4, 0.0, -0.0]).collect();
        let mut found = vec![0.0; x.len()];
        gelu(&[&vec![1.0; x.len()], &x], &mut found, x.len());
        let slope = |&x: &f32| {
            let x = f64::from(x);
            let phi = 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
            phi + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
        };
        assert_close(&found, x.iter().map(slope), 4e-7);
    }

    #[test]
    fn exponentials_are_right_to_single_precision() {
        for at in 0..8700 {
            let x = -0.01 * at as f32;
            let wanted = f64::from(x).exp();
            assert!((f64::from(exp(x)) / wanted - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!([exp(-1e3), exp(f32::NEG_INFINITY), exp(0.0)], [0.0, 0.0, 1.0]);
    }

    /// The pullback by the Jacobian's definition, in double precision: `Σ_j dy_j ∂y_j/∂x_i`.
    fn by_jacobian(dy: &[f32], width: usize, jacobian: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
        let row = |row: usize| {
            let jacobian = &jacobian;
            (0..width).map(move |i| {
                (0..width).map(|j| f64::from(dy[row * width + j]) * jacobian(row, j, i)).sum::<f64>()
            })
        };
        (0..dy.len() / width).flat_map(row).collect()
    }

    #[test]
    fn a_normalized_row_s_pullback_is_its_jacobian_s() {
        for width in [1, 7, 16, 33, 384] {
            let (dy, x, scale) = (draw(3 * width, 1), draw(3 * width, 2), draw(width, 3));
            let double: Vec<f64> = x.iter().map(|&it| it.into()).collect();
            let statistics = |row: &[f64]| {
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / width as f64;
                (mean, 1.0 / (variance + 1e-2).sqrt())
            };
            let statistics: Vec<_> = double.chunks(width).map(statistics).collect();
            let (mean, inverse): (Vec<f32>, Vec<f32>) =
                statistics.iter().map(|it| (it.0 as f32, it.1 as f32)).unzip();
            let mut found = vec![0.0; dy.len()];
            layer_normalization(&[&dy, &x, &scale, &mean, &inverse], &mut found, width);
            let n = width as f64;
            let wanted = by_jacobian(&dy, width, |row, j, i| {
                let (mean, inverse) = statistics[row];
                let normal = |at: usize| (double[row * width + at] - mean) * inverse;
                let same = f64::from(u8::from(i == j));
                f64::from(scale[j]) * inverse * (same - 1.0 / n - normal(i) * normal(j) / n)
            });
            assert_close(&found, wanted.into_iter(), 2e-5);
        }
    }

    #[test]
    fn the_pullback_of_probabilities_is_their_jacobian_s() {
        for width in [1, 5, 16, 40] {
            let (dy, scores) = (draw(2 * width, 4), draw(2 * width, 5));
            let p: Vec<f32> = scores
                .chunks(width)
                .flat_map(|row| {
                    let total: f32 = row.iter().map(|it| it.exp()).sum();
                    row.iter().map(move |it| it.exp() / total)
                })
                .collect();
            let mut found = vec![0.0; dy.len()];
            softmax(&[&dy, &p], &mut found, width);
            let at = |row: usize, place: usize| f64::from(p[row * width + place]);
            let wanted =
                by_jacobian(&dy, width, |row, j, i| at(row, j) * (f64::from(u8::from(i == j)) - at(row, i)));
            assert_close(&found, wanted.into_iter(), 1e-6);
        }
    }
}
