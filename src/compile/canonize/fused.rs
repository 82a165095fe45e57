//! This file is where ONNX Runtime's fused normalizations, products and activations come apart.

use super::draft::Draft;
use super::{Lowering, MICROSOFT};
use crate::compile::graph::{Attribute, Element, Node, Tensor, Value};
use crate::compile::ops::Misfit;

pub(super) static LOWERINGS: &[Lowering] = &[
    row(
        "SkipLayerNormalization",
        false,
        skip_layer,
        &[
            "y = com.microsoft::SkipLayerNormalization(x, s, g[4], b[4], c[4]) {epsilon: 0.01}",
            "y, _, _, z = com.microsoft::SkipLayerNormalization(x, s, g[4]) {epsilon: 0.01}",
        ],
    ),
    row(
        "SkipSimplifiedLayerNormalization",
        false,
        skip_simplified,
        &["y, _, _, z = com.microsoft::SkipSimplifiedLayerNormalization(x, s, g[4], c[4]) {epsilon: 0.01}"],
    ),
    row("SimplifiedLayerNormalization", false, simplified, &[]),
    Lowering {
        name: "SimplifiedLayerNormalization",
        domain: "",
        measured: false,
        lower: simplified,
        examples: &["y = SimplifiedLayerNormalization(x, g[4]) {axis: -1, epsilon: 0.01}"],
    },
    row(
        "EmbedLayerNormalization",
        false,
        embed,
        &[
            "y, n = com.microsoft::EmbedLayerNormalization(i: int32[2, 3], s: int32[2, 3], w[9, 4], p[5, 4], t[2, 4], g[4], b[4], m: int32[2, 3])",
        ],
    ),
    row("BiasGelu", false, biased_gelu, &["y = com.microsoft::BiasGelu(x, c[4])"]),
    row("FastGelu", false, biased_gelu, &["y = com.microsoft::FastGelu(x, c[4])"]),
    row(
        "FusedGemm",
        false,
        fused_gemm,
        &[
            "y = com.microsoft::FusedGemm(x[3, 4], w[4, 2], c[2]) {activation: \"Tanh\", alpha: 0.5}",
            "y = com.microsoft::FusedGemm(x[3, 4], w[2, 4]) {activation: \"LeakyRelu\", activation_alpha: 0.3, transB: 1}",
        ],
    ),
    row(
        "FusedConv",
        false,
        fused_conv,
        &[
            "y = com.microsoft::FusedConv(x[2, 3, 7], w[4, 3, 2], c[4]) {activation: \"Relu\", strides: [2], pads: [1, 0]}",
            "y = com.microsoft::FusedConv(x[2, 4, 7], w[4, 2, 3]) {activation: \"LeakyRelu\", activation_params: [0.3], group: 2}",
        ],
    ),
];

const fn row(
    name: &'static str,
    measured: bool,
    lower: fn(&mut Draft<'_>, &Node) -> Result<(), Misfit>,
    examples: &'static [&'static str],
) -> Lowering {
    Lowering { name, domain: MICROSOFT, measured, lower, examples }
}

/// `y = LayerNormalization(input + skip + bias)`; the sum is the fourth result.
fn skip_layer(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [input, skip, gamma, ..] = &node.inputs[..] else { return Err("it has too few operands".into()) };
    let sum = skipped(d, node, &[input, skip], node.input(4));
    let epsilon = node.float("epsilon").unwrap_or(1e-12) as f32;
    layer_norm(d, &sum, (gamma, node.input(3)), epsilon, &node.outputs[..node.outputs.len().min(3)]);
    Ok(())
}

/// `y = RMSNormalization(input + skip + bias)`; the sum is the fourth result.
fn skip_simplified(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [input, skip, gamma, ..] = &node.inputs[..] else { return Err("it has too few operands".into()) };
    if node.output(1).is_some() || node.output(2).is_some() {
        return Err("its statistics are asked for".into());
    }
    let sum = skipped(d, node, &[input, skip], node.input(3));
    rms_norm(d, &sum, gamma, node.float("epsilon").unwrap_or(1e-12), &node.outputs[0]);
    Ok(())
}

/// `y = x/√(mean x² + ε)·γ`
fn simplified(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [x, gamma] = &node.inputs[..] else { return Err("it has not two operands".into()) };
    if node.output(1).is_some() || node.int("axis").unwrap_or(-1) != -1 {
        return Err("it normalizes several axes, or its statistics are asked for".into());
    }
    rms_norm(d, x, gamma, node.float("epsilon").unwrap_or(1e-5), &node.outputs[0]);
    Ok(())
}

/// The sum of the operands, and of a bias if there is one, under the name of the fourth result.
fn skipped(d: &mut Draft<'_>, node: &Node, operands: &[&Value; 2], bias: Option<&Value>) -> Value {
    let mut terms = vec![operands[0]];
    terms.extend(bias);
    terms.push(operands[1]);
    let mut sum = terms[0].clone();
    for (place, term) in terms.iter().enumerate().skip(1) {
        match node.output(3).filter(|_| place + 1 == terms.len()) {
            Some(name) => {
                d.end("Add", &[&sum, term], &[], std::slice::from_ref(name));
                sum = name.clone();
            }
            None => sum = d.emit("Add", &[&sum, term], &[]),
        }
    }
    sum
}

fn layer_norm(
    d: &mut Draft<'_>,
    x: &Value,
    (gamma, beta): (&Value, Option<&Value>),
    epsilon: f32,
    outputs: &[Value],
) {
    let operands: Vec<&Value> = [x, gamma].into_iter().chain(beta).collect();
    d.end("LayerNormalization", &operands, &[("axis", (-1).into()), ("epsilon", epsilon.into())], outputs);
}

/// The chain that exporters write for it, since the operator itself exists from opset 23 on only.
fn rms_norm(d: &mut Draft<'_>, x: &Value, gamma: &Value, epsilon: f64, y: &Value) {
    let epsilon = d.scalar(epsilon);
    let square = d.emit("Mul", &[x, x], &[]);
    let mean = d.reduce("ReduceMean", &square, -1, true);
    let mean = d.emit("Add", &[&mean, &epsilon], &[]);
    let root = d.emit("Sqrt", &[&mean], &[]);
    let normal = d.emit("Div", &[x, &root], &[]);
    d.end("Mul", &[&normal, gamma], &[], std::slice::from_ref(y));
}

/// Words, positions and segments looked up, added and normalized. The second result counts each row's tokens.
fn embed(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let need = |place: usize| node.input(place).ok_or("an operand is missing");
    let (ids, words, positions) = (need(0)?, need(2)?, need(3)?);
    let (gamma, beta) = (need(5)?, need(6)?);
    let mut sum = d.emit("Gather", &[words, ids], &[]);
    let place = match node.input(8) {
        Some(places) => d.emit("Gather", &[positions, places], &[]),
        None => {
            let places = d.range(ids, 1);
            d.emit("Gather", &[positions, &places], &[])
        }
    };
    sum = d.emit("Add", &[&sum, &place], &[]);
    if let (Some(segments), Some(table)) = (node.input(1), node.input(4)) {
        let segment = d.emit("Gather", &[table, segments], &[]);
        sum = d.emit("Add", &[&sum, &segment], &[]);
    }
    if let Some(name) = node.output(2) {
        d.end("Identity", &[&sum], &[], std::slice::from_ref(name));
    }
    let epsilon = node.float("epsilon").unwrap_or(1e-12) as f32;
    layer_norm(d, &sum, (gamma, Some(beta)), epsilon, &node.outputs[..1]);
    if let Some(counts) = node.output(1) {
        match node.input(7) {
            Some(mask) => {
                let axes = d.ints(&[1]);
                let keep = ("keepdims", 0.into());
                d.end("ReduceSum", &[mask, &axes], &[keep], std::slice::from_ref(counts));
            }
            None => {
                let batch = d.measured(ids, 0);
                let zero = Tensor::new(Element::I32, vec![1], vec![0; 4].into());
                let zero = zero.map_err(|error| Misfit(error.to_string()))?;
                let value = ("value", zero.into());
                d.end("ConstantOfShape", &[&batch], &[value], std::slice::from_ref(counts));
            }
        }
    }
    Ok(())
}

/// `y = Gelu(x + c)`, or of the tanh form. The bias is that of the product in front, which relevance must not miss.
fn biased_gelu(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [x, bias] = &node.inputs[..] else { return Err("it has no bias".into()) };
    let sum = d.emit("Add", &[x, bias], &[]);
    let op = if node.op == "BiasGelu" { "Gelu" } else { "FastGelu" };
    d.end(op, &[&sum], &[], &node.outputs[..1]);
    d.of_domain(MICROSOFT);
    Ok(())
}

/// `y = activation(Gemm(a, b, c))`
fn fused_gemm(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let activation = node.text("activation").unwrap_or("");
    let known = ["", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "LeakyRelu", "Elu", "HardSigmoid"];
    if !known.contains(&activation) {
        return Err("its activation is not known".into());
    }
    let gemm: Vec<_> = ["alpha", "beta", "transA", "transB"]
        .into_iter()
        .filter_map(|it| Some((it, node.attributes.get(it)?.clone())))
        .collect();
    let operands: Vec<&Value> = node.inputs.iter().filter(|it| !it.is_absent()).collect();
    if activation.is_empty() {
        d.end("Gemm", &operands, &gemm, &node.outputs[..1]);
        return Ok(());
    }
    let product = d.emit("Gemm", &operands, &gemm);
    let settings: Vec<_> = [("alpha", "activation_alpha"), ("beta", "activation_beta")]
        .into_iter()
        .filter_map(|(to, from)| Some((to, node.attributes.get(from)?.clone())))
        .collect();
    d.end(activation, &[&product], &settings, &node.outputs[..1]);
    Ok(())
}

/// `y = activation(Conv(x, w, b) + z)`
fn fused_conv(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let activation = node.text("activation").unwrap_or("");
    let settings: &[&str] = match activation {
        "Relu" | "Tanh" | "Sigmoid" => &[],
        "LeakyRelu" => &["alpha"],
        "HardSigmoid" => &["alpha", "beta"],
        _ => return Err("its activation is not known".into()),
    };
    let numbers = match node.attributes.get("activation_params") {
        Some(Attribute::Floats(numbers)) => &numbers[..],
        _ => &[],
    };
    if numbers.len() != settings.len() {
        return Err("its activation has other settings".into());
    }
    let own = |name: &str| !name.starts_with("activation");
    let kept = node.attributes.iter().filter(|it| own(it.0));
    let kept: Vec<(&str, Attribute)> = kept.map(|(name, it)| (name.as_str(), it.clone())).collect();
    let operands: Vec<&Value> = node.inputs.iter().take(3).filter(|it| !it.is_absent()).collect();
    let mut product = d.emit("Conv", &operands, &kept);
    if let Some(addend) = node.input(3) {
        product = d.emit("Add", &[&product, addend], &[]);
    }
    let settings: Vec<(&str, Attribute)> =
        settings.iter().zip(numbers).map(|(&name, &number)| (name, number.into())).collect();
    d.end(activation, &[&product], &settings, &node.outputs[..1]);
    Ok(())
}
