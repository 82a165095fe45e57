//! Slow twins: LRP's rules by the book, on explicit matrices in float64, against derived relevance graphs of small
//! random layers.

use explaind::compile::anatomy::Anatomy;
use explaind::compile::composite::Composite;
use explaind::compile::cut::Cut;
use explaind::compile::facts::{Fact, Facts, Length};
use explaind::compile::graph::{Element, Graph, Port, Tensor, Type, Value};
use explaind::compile::probe::Batch;
use explaind::compile::relevance;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::evaluate::evaluate;

/// Bounds of the embeddings' components for z^B.
const RANGE: (f64, f64) = (-2.0, 2.0);

/// A graph from `inputs_embeds` to `logits`, as a model's cut graph.
struct Small {
    cut: Cut,
    dims: [usize; 3],
}

impl Small {
    /// `text` reads `inputs_embeds`; `weights` are its constants. `tokens` is fixed or varies.
    fn new(text: &str, weights: &[(&str, &[usize], &[f64])], dims: [usize; 3], varies: bool) -> Self {
        let mut graph = Graph::parse(text).unwrap();
        for (name, dims, values) in weights {
            graph.inputs.retain(|it| &*it.value != *name);
            graph.initializers.insert((*name).into(), Tensor::from_f64(Element::F32, dims, values));
        }
        graph.opsets.insert(String::new(), 17);
        let all = {
            let mut all = graph.clone();
            let port = |it: &Value| Port { value: it.clone(), ty: Type::Other(Box::default()) };
            all.outputs = graph.nodes.iter().flat_map(|it| &it.outputs).map(port).collect();
            all
        };
        let [rows, tokens, hidden] = dims;
        let other = [rows + 1, if varies { tokens + 2 } else { tokens }, hidden];
        let seen = [dims, other].map(|dims| {
            let mut seen = evaluate(&all, &[vec![("inputs_embeds".into(), zeros(&dims))]]).unwrap();
            seen.remove(0)
        });
        let mut facts = Facts::default();
        for (name, tensor) in &graph.initializers {
            facts.insert(name.clone(), Fact::of(tensor));
        }
        let mut learn = |value: &Value, element: Element, first: &[usize], second: &[usize]| {
            let shape = first.iter().zip(second).map(|(&a, &b)| Length([a, b])).collect();
            facts.insert(value.clone(), Fact::new(element, shape));
        };
        for (place, port) in all.outputs.iter().enumerate() {
            let [one, two] = [0, 1].map(|it: usize| seen[it][place].as_ref().unwrap());
            learn(&port.value, one.element(), one.dims(), two.dims());
        }
        learn(&"inputs_embeds".into(), Element::F32, &dims, &other);
        graph.outputs = vec![Port { value: "logits".into(), ty: Type::Tensor(Element::F32, None) }];
        Self { cut: Cut { graph, facts }, dims }
    }

    /// Each token's relevance for the first logit of every row, what was absorbed, and the logits.
    fn relevance(&self, composite: Composite, x: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let made = relevance::derive(&self.cut, &Anatomy::default(), composite, RANGE).unwrap();
        let [rows, ..] = self.dims;
        let labels = self.cut.facts.get("logits").unwrap().shape[1].0[0];
        let seed: Vec<f64> = (0..rows * labels).map(|it| f64::from(u8::from(it % labels == 0))).collect();
        let batch: Batch = vec![
            ("inputs_embeds".into(), Tensor::from_f64(Element::F32, &self.dims, x)),
            ("cotangent".into(), Tensor::from_f64(Element::F32, &[rows, labels], &seed)),
        ];
        let run =
            evaluate(&made.graph, &[batch]).unwrap_or_else(|it| panic!("{it}\n{}", made.graph)).remove(0);
        let of = |name: &str| {
            let place = made.graph.outputs.iter().position(|it| &*it.value == name).unwrap();
            run[place].as_ref().unwrap().to_f64().unwrap()
        };
        (of("relevance"), of("absorbed"), of("logits"))
    }
}

fn zeros(dims: &[usize]) -> Tensor {
    Tensor::from_f64(Element::F32, dims, &vec![0.0; dims.iter().product()])
}

fn draw(rng: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    (0..count).map(|_| f64::from(rng.random_range(-1.0_f32..1.0))).collect()
}

#[track_caller]
fn close(what: &str, found: &[f64], wanted: &[f64], tolerance: f64) {
    let size = wanted.iter().fold(1e-3_f64, |size, it| size.max(it.abs()));
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= tolerance * size, "{what}: {found} instead of {wanted}");
    }
}

/// How a book hands the relevance of `z_j = Σᵢ xᵢw_ij + b_j` to the operands: `R_i`, given every contribution
/// `xᵢw_ij`, the bias, the result and its relevance.
type Rule<'a> = dyn Fn(f64, f64, &[f64], f64, f64, f64) -> f64 + 'a;

/// One row through `x·w + b`: relevance of the operands by `rule(x_i, w_ij, contributions of j, b_j, z_j, R_j)`.
fn layer(x: &[f64], w: &[f64], b: &[f64], r: &[f64], rule: &Rule<'_>) -> Vec<f64> {
    let outs = b.len();
    let mut relevance = vec![0.0; x.len()];
    for j in 0..outs {
        let parts: Vec<f64> = x.iter().enumerate().map(|(i, x)| x * w[i * outs + j]).collect();
        let z = parts.iter().sum::<f64>() + b[j];
        for (i, sum) in relevance.iter_mut().enumerate() {
            *sum += rule(x[i], w[i * outs + j], &parts, b[j], z, r[j]);
        }
    }
    relevance
}

fn forward(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let outs = b.len();
    (0..outs).map(|j| b[j] + x.iter().enumerate().map(|(i, x)| x * w[i * outs + j]).sum::<f64>()).collect()
}

fn positive(it: f64) -> f64 {
    it.max(0.0)
}

/// Bach et al. 2015, equation 58, with the stabiliser on the side of the result.
fn epsilon(epsilon: f64) -> impl Fn(f64, f64, &[f64], f64, f64, f64) -> f64 {
    move |x, w, _, _, z, r| x * w / (z + epsilon * z.signum()) * r
}

/// The generalised rule γ: contributions with the result's sign count more, the bias among them.
fn gamma(x: f64, w: f64, parts: &[f64], b: f64, z: f64, r: f64) -> f64 {
    let weighed = |it: f64| if it * z > 0.0 { 1.25 * it } else { it };
    weighed(x * w) / (parts.iter().map(|&it| weighed(it)).sum::<f64>() + weighed(b)) * r
}

/// Bach et al. 2015, equation 60.
fn alpha_beta(alpha: f64, beta: f64, bias: bool) -> impl Fn(f64, f64, &[f64], f64, f64, f64) -> f64 {
    move |x, w, parts, b, _, r| {
        let b = if bias { b } else { 0.0 };
        let plus: f64 = parts.iter().map(|&it| positive(it)).sum::<f64>() + positive(b);
        let minus: f64 = parts.iter().map(|&it| -positive(-it)).sum::<f64>() - positive(-b);
        let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        (alpha * share(positive(x * w), plus) - beta * share(-positive(-x * w), minus)) * r
    }
}

/// A pooled two-layer rectifier network and its weights.
struct Network {
    w1: Vec<f64>,
    b1: Vec<f64>,
    w2: Vec<f64>,
    b2: Vec<f64>,
}

const DIMS: [usize; 3] = [2, 3, 4];
const UNITS: usize = 6;
const LABELS: usize = 2;

impl Network {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (w1, b1) = (draw(rng, DIMS[2] * UNITS), draw(rng, UNITS));
        Self { w1, b1, w2: draw(rng, UNITS * LABELS), b2: draw(rng, LABELS) }
    }

    fn graph(&self) -> Small {
        let text = "h = MatMul(inputs_embeds[b, t, 4], w1[4, 6]); z = Add(h, b1[6]); a = Relu(z); \
                    p = ReduceSum(a, [1]) {keepdims: 0}; logits = Gemm(p, w2[6, 2], b2[2])";
        let weights: [(&str, &[usize], &[f64]); 4] = [
            ("w1", &[DIMS[2], UNITS], &self.w1),
            ("b1", &[UNITS], &self.b1),
            ("w2", &[UNITS, LABELS], &self.w2),
            ("b2", &[LABELS], &self.b2),
        ];
        Small::new(text, &weights, DIMS, true)
    }

    /// Each token's relevance for the first logit, by the book.
    fn twin(&self, x: &[f64], hidden: &Rule<'_>, entry: &Rule<'_>) -> Vec<f64> {
        let [rows, tokens, width] = DIMS;
        let mut relevance = Vec::new();
        for row in 0..rows {
            let token = |it: usize| &x[(row * tokens + it) * width..][..width];
            let active: Vec<Vec<f64>> = (0..tokens)
                .map(|it| forward(token(it), &self.w1, &self.b1).into_iter().map(positive).collect())
                .collect();
            let pooled: Vec<f64> = (0..UNITS).map(|unit| active.iter().map(|it| it[unit]).sum()).collect();
            let logits = forward(&pooled, &self.w2, &self.b2);
            let seed = vec![logits[0], 0.0];
            let pooled_relevance = layer(&pooled, &self.w2, &self.b2, &seed, hidden);
            for (it, active) in active.iter().enumerate() {
                let share = |unit: usize| match pooled[unit] {
                    0.0 => 0.0,
                    whole => active[unit] / whole * pooled_relevance[unit],
                };
                let r: Vec<f64> = (0..UNITS).map(share).collect();
                relevance.push(layer(token(it), &self.w1, &self.b1, &r, entry).iter().sum());
            }
        }
        relevance
    }
}

#[test]
fn rules_for_linear_layers_are_those_of_the_book() {
    for seed in 0..5 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let network = Network::draw(&mut rng);
        let (small, x) = (network.graph(), draw(&mut rng, DIMS.iter().product()));
        let cases: [(Composite, Box<Rule<'_>>); 5] = [
            (Composite::Lrp0, Box::new(epsilon(0.0))),
            (Composite::Epsilon, Box::new(epsilon(1e-6))),
            (Composite::Gamma, Box::new(gamma)),
            (Composite::AlphaBeta, Box::new(alpha_beta(2.0, 1.0, true))),
            (Composite::ZPlus, Box::new(alpha_beta(1.0, 0.0, true))),
        ];
        for (composite, rule) in cases {
            let (found, _, _) = small.relevance(composite, &x);
            close(composite.slug(), &found, &network.twin(&x, &*rule, &*rule), 2e-4);
        }
    }
}

#[test]
fn deep_taylor_enters_by_squares_and_by_the_box() {
    for seed in 0..5 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let network = Network::draw(&mut rng);
        let (small, x) = (network.graph(), draw(&mut rng, DIMS.iter().product()));
        let hidden = alpha_beta(1.0, 0.0, false);
        let squared = |j: usize| (0..DIMS[2]).map(|i| network.w1[i * UNITS + j].powi(2)).sum::<f64>();
        let totals: Vec<f64> = (0..UNITS).map(squared).collect();
        // The weights of a unit are found again by its bias, which no two units share.
        let total = |b: f64| totals[network.b1.iter().position(|it| *it == b).unwrap()];
        let entry = |_: f64, w: f64, _: &[f64], b: f64, _: f64, r: f64| w * w / total(b) * r;
        let (found, absorbed, logits) = small.relevance(Composite::DeepTaylor, &x);
        close("w²", &found, &network.twin(&x, &hidden, &entry), 2e-4);
        let sum: f64 = found[..DIMS[1]].iter().sum();
        assert!((sum + absorbed[0] - logits[0]).abs() < 1e-4, "{sum} and {absorbed:?} of {logits:?}");

        let (low, high) = RANGE;
        let least = |b: f64| -> f64 {
            let j = network.b1.iter().position(|it| *it == b).unwrap();
            let part = |i: usize| network.w1[i * UNITS + j];
            (0..DIMS[2]).map(|i| low * positive(part(i)) - high * positive(-part(i))).sum()
        };
        let entry = |x: f64, w: f64, parts: &[f64], b: f64, _: f64, r: f64| {
            let part = x * w - low * positive(w) + high * positive(-w);
            part / (parts.iter().sum::<f64>() - least(b)) * r
        };
        let (found, _, _) = small.relevance(Composite::DeepTaylorBox, &x);
        close("z^B", &found, &network.twin(&x, &hidden, &entry), 2e-4);
    }
}

/// Softmax attention with a residual, a normalization and a gate, by AttnLRP's rules in relevance form.
#[test]
fn rules_for_attention_are_those_of_the_paper() {
    let text = "q = MatMul(inputs_embeds[b, t, 4], wq[4, 4]); k = MatMul(inputs_embeds, wk[4, 4]); \
                v = MatMul(inputs_embeds, wv[4, 4]); kt = Transpose(k) {perm: [0, 2, 1]}; s = MatMul(q, kt); \
                p = Softmax(s); o = MatMul(p, v); n = LayerNormalization(o, g[4], c[4]); m = Tanh(n); \
                u = Mul(m, v); y = ReduceSum(u, [1]) {keepdims: 0}; logits = MatMul(y, w[4, 2])";
    let [rows, tokens, width] = DIMS;
    for seed in 0..5 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [wq, wk, wv] = [0, 1, 2].map(|_| draw(&mut rng, width * width));
        let (g, c, w) = (draw(&mut rng, width), draw(&mut rng, width), draw(&mut rng, width * 2));
        let square: &[usize] = &[width, width];
        let weights: [(&str, &[usize], &[f64]); 6] = [
            ("wq", square, &wq),
            ("wk", square, &wk),
            ("wv", square, &wv),
            ("g", &[width], &g),
            ("c", &[width], &c),
            ("w", &[width, 2], &w),
        ];
        let small = Small::new(text, &weights, DIMS, true);
        let x = draw(&mut rng, DIMS.iter().product());
        for composite in [Composite::AttnLrp, Composite::CpLrp] {
            let mut wanted = Vec::new();
            for row in 0..rows {
                let x: Vec<&[f64]> = x[row * tokens * width..][..tokens * width].chunks(width).collect();
                let none = vec![0.0; width];
                let through = |w: &[f64]| x.iter().map(|x| forward(x, w, &none)).collect::<Vec<_>>();
                let (q, k, v) = (through(&wq), through(&wk), through(&wv));
                let score = |i: usize, j: usize| (0..width).map(|d| q[i][d] * k[j][d]).sum::<f64>();
                let p: Vec<Vec<f64>> = (0..tokens)
                    .map(|i| {
                        let all: Vec<f64> = (0..tokens).map(|j| score(i, j).exp()).collect();
                        all.iter().map(|it| it / all.iter().sum::<f64>()).collect()
                    })
                    .collect();
                let o = |i: usize, d: usize| (0..tokens).map(|j| p[i][j] * v[j][d]).sum::<f64>();
                let mut rq = vec![vec![0.0; width]; tokens];
                let (mut rk, mut rv) = (rq.clone(), rq.clone());
                let mut units = vec![0.0; width];
                let mut gates = Vec::new();
                for (i, value) in v.iter().enumerate() {
                    let o: Vec<f64> = (0..width).map(|d| o(i, d)).collect();
                    let mean = o.iter().sum::<f64>() / width as f64;
                    let variance = o.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / width as f64;
                    let deviation = (variance + 1e-5).sqrt();
                    let n: Vec<f64> = (0..width).map(|d| (o[d] - mean) / deviation * g[d] + c[d]).collect();
                    let u: Vec<f64> = (0..width).map(|d| n[d].tanh() * value[d]).collect();
                    units.iter_mut().zip(&u).for_each(|(sum, it)| *sum += it);
                    gates.push((o, mean, deviation, n, u));
                }
                for (i, (o, _, deviation, n, u)) in gates.iter().enumerate() {
                    // z-rule for the last layer and the sum over tokens: both linear.
                    let ru: Vec<f64> = (0..width).map(|d| u[d] * w[d * 2]).collect();
                    // The product of gate and value is shared; tanh passes its half on.
                    let rn: Vec<f64> = ru.iter().map(|it| 0.5 * it).collect();
                    (0..width).for_each(|d| rv[i][d] += 0.5 * ru[d]);
                    // The normalization is the linear layer x ↦ (x − mean x)·g/σ + c.
                    let matrix: Vec<f64> = (0..width * width)
                        .map(|at| {
                            let (a, b) = (at / width, at % width);
                            (f64::from(u8::from(a == b)) - 1.0 / width as f64) * g[b] / deviation
                        })
                        .collect();
                    assert!((n[0] - forward(o, &matrix, &c)[0]).abs() < 1e-9);
                    let ro = layer(o, &matrix, &c, &rn, &epsilon(0.0));
                    let mut rp = vec![0.0; tokens];
                    for j in 0..tokens {
                        for d in 0..width {
                            let part = p[i][j] * v[j][d] / o[d] * ro[d];
                            let half = if composite == Composite::AttnLrp { 0.5 } else { 0.0 };
                            rp[j] += half * part;
                            rv[j][d] += (1.0 - half) * part;
                        }
                    }
                    let all: f64 = rp.iter().sum();
                    for j in 0..tokens {
                        // Proposition 3.1.
                        let rs = score(i, j) * (rp[j] - p[i][j] * all);
                        for d in 0..width {
                            let part = q[i][d] * k[j][d] / score(i, j) * rs;
                            rq[i][d] += 0.5 * part;
                            rk[j][d] += 0.5 * part;
                        }
                    }
                }
                for i in 0..tokens {
                    let of =
                        |w: &[f64], r: &[f64]| layer(x[i], w, &none, r, &epsilon(0.0)).iter().sum::<f64>();
                    wanted.push(of(&wq, &rq[i]) + of(&wk, &rk[i]) + of(&wv, &rv[i]));
                }
            }
            let (found, absorbed, logits) = small.relevance(composite, &x);
            close(composite.slug(), &found, &wanted, 1e-3);
            let sum: f64 = found[..tokens].iter().sum();
            let gap = (sum + absorbed[0] - logits[0]).abs();
            assert!(gap < 1e-4 * (1.0 + sum.abs()), "{}: books open by {gap}", composite.slug());
        }
    }
}

/// Captum's networks: three inputs, three units, one output, no bias.
fn captum(first: [f64; 9], second: f64, activation: &str) -> Small {
    let text = format!(
        "x = Reshape(inputs_embeds[b, 3, 1], [0, 3]); h = Gemm(x, w1[3, 3]) {{transB: 1}}; a = {activation}(h); \
         logits = Gemm(a, w2[1, 3]) {{transB: 1}}"
    );
    let weights: [(&str, &[usize], &[f64]); 2] = [("w1", &[3, 3], &first), ("w2", &[1, 3], &[second; 3])];
    Small::new(&text, &weights, [1, 3, 1], false)
}

/// Values that `captum` computed: `attr/_core/lrp.py` with the rule named.
#[test]
fn captums_networks_get_captums_relevance() {
    let x = [1.0, 2.0, 3.0];
    let plain = captum([2.0; 9], 3.0, "Relu");
    // EpsilonRule
    close("ε", &plain.relevance(Composite::Epsilon, &x).0, &[18.0, 36.0, 54.0], 1e-5);
    let mut first = [2.0; 9];
    first[0] = -2.0;
    let mixed = captum(first, 3.0, "Relu");
    // Alpha1_Beta0_Rule clamps weights, which is z⁺ for operands that are not negative.
    close("z⁺", &mixed.relevance(Composite::ZPlus, &x).0, &[12.0, 33.6, 50.4], 1e-5);
    let tanh = captum([0.1; 9], 0.1, "Tanh");
    close("tanh", &tanh.relevance(Composite::Epsilon, &x).0, &[0.0269, 0.0537, 0.0806], 2e-3);
    // GammaRule with γ = 1, then 0.25 gives 9.3333, 34.6667, 52. Ours differs on purpose: one γ of 0.25 throughout,
    // and contributions of either sign of operand and result. By hand: the first unit has contributions −2, 4, 6 of
    // 8, which count −2, 5, 7.5 of 10.5 for its 24; the others 2, 4, 6 of 12 for their 36.
    let unit = |part: f64| part / 10.5 * 24.0;
    let wanted = [unit(-2.0) + 12.0, unit(5.0) + 24.0, unit(7.5) + 36.0];
    close("γ", &mixed.relevance(Composite::Gamma, &x).0, &wanted, 1e-5);
}

#[test]
fn a_role_that_no_paper_decides_is_refused_with_its_node() {
    let text = "p = ReduceProd(inputs_embeds[b, t, 4]) {axes: [2], keepdims: 0}; y = ReduceSum(p, [1]); \
                logits = MatMul(y, w[1, 2])";
    let small = Small::new(text, &[("w", &[1, 2], &[1.0, 2.0])], DIMS, true);
    for composite in Composite::ALL {
        let refusal = relevance::derive(&small.cut, &Anatomy::default(), composite, RANGE).unwrap_err();
        assert_eq!(refusal.gaps.len(), 1);
        assert_eq!((&*refusal.gaps[0].node, &*refusal.gaps[0].operator), ("p", "ReduceProd"));
        assert!(refusal.gaps[0].reason.starts_with(composite.slug()), "{}", refusal.gaps[0].reason);
    }
}

/// What is masked out by −∞ or put beside the embeddings counts as absorbed, and is no number's end.
#[test]
fn constants_beside_the_operand_are_booked() {
    let text = "c = Greater(inputs_embeds[b, t, 4], -0.5); m = Where(c, inputs_embeds, low[1]); e = Exp(m); \
                j = Concat(e, inputs_embeds) {axis: 1}; i = Add(j, shift[4]); y = ReduceSum(i, [1]) {keepdims: 0}; \
                logits = MatMul(y, w[4, 2])";
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (shift, w) = (draw(&mut rng, 4), draw(&mut rng, 8));
    let weights: [(&str, &[usize], &[f64]); 3] =
        [("low", &[1], &[f64::NEG_INFINITY]), ("shift", &[4], &shift), ("w", &[4, 2], &w)];
    let small = Small::new(text, &weights, DIMS, true);
    let x = draw(&mut rng, DIMS.iter().product());
    let (found, absorbed, logits) = small.relevance(Composite::AttnLrp, &x);
    for row in 0..DIMS[0] {
        let sum: f64 = found[row * DIMS[1]..][..DIMS[1]].iter().sum();
        let gap = (sum + absorbed[row] - logits[row * 2]).abs();
        assert!(gap < 1e-4, "{sum} and {} of {}", absorbed[row], logits[row * 2]);
    }
}
