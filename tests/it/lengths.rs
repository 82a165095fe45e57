//! This file is where graphs that treat short and long texts differently are opened: what was learned at a few lengths
//! must hold at others, or nothing is derived.

use std::time::Instant;

use explaind::compile::Compiled;
use explaind::compile::cut::EMBEDS;
use explaind::compile::derive::{COTANGENT, EMBEDS_GRAD};
use explaind::compile::graph::{Attribute, Graph, Tensor, Value};
use explaind::compile::probe::Hints;
use explaind::compile::refusal::{Code, Refusal};

use explaind::explain::{Arrival, ExplainAnswer, ExplainError, ExplainRequest, explain, registry};
use explaind::runtime::Cancel;
use serde_json::{Value as Json, json};

use crate::evaluate::evaluate;
use crate::models::derived;
use crate::support::house;

const VOCABULARY: usize = 200;

/// A classifier of two components a token, which are also its labels.
fn classifier(behind: &str) -> Graph {
    let text = format!("e = Gather(table, ids); {behind}");
    let text = text.replace("ids", "input_ids: int64[b, s]");
    let mut graph = Graph::parse(&text).unwrap();
    graph.inputs.retain(|it| &*it.value != "table");
    let values: Vec<f32> = (0..VOCABULARY * 2).map(|it| ((it * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
    graph.initializers.insert("table".into(), Tensor::from_f32(&[VOCABULARY, 2], &values));
    graph
}

fn open(graph: Graph) -> Compiled {
    Compiled::open(graph, &Hints::default(), &evaluate).unwrap()
}

/// Every derived graph is refused for the same reason.
#[track_caller]
fn refusal(compiled: Compiled) -> Refusal {
    let refusal = compiled.wrong.clone().expect("it is not what was learned of it");
    assert_eq!(compiled.gradient.map(|_| ()), Err(refusal.clone()));
    assert_eq!(compiled.intervention.map(|_| ()), Err(refusal.clone()));
    assert_eq!(compiled.attention.map(|_| ()), Err(refusal.clone()));
    assert!(compiled.lean.is_none());
    refusal
}

/// `logits = mean over windows of tanh(max within a window)`: with `w` windows a component's gradient sums to
/// `mean (1 − tanh²)`, however many tokens there are.
#[test]
fn windows_are_counted_in_the_text_at_hand() {
    let windows = "t = Transpose(e) {perm: [0, 2, 1]}; \
                   m = MaxPool(t) {kernel_shape: [12], strides: [12], ceil_mode: 1}; q = Tanh(m); \
                   logits = ReduceMean(q) {axes: [2], keepdims: 0}";
    let compiled = open(classifier(windows));
    let derived = compiled.gradient.as_ref().unwrap_or_else(|it| panic!("{it:?}"));
    for tokens in [5, 12, 20, 30, 61] {
        let ids: Vec<i64> = (0..tokens as i64).map(|it| (it * 13 + 1) % VOCABULARY as i64).collect();
        let embeds = compiled.lookup(&ids, &[1, tokens]).unwrap();
        let rows = embeds.to_f64().unwrap();
        let largest = |window: &[f64], label: usize| {
            window.chunks(2).map(|it| it[label]).fold(f64::NEG_INFINITY, f64::max)
        };
        let batch = vec![
            (Value::from("input_ids"), Tensor::from_i64(&[1, tokens], &ids)),
            (EMBEDS.into(), embeds),
            (COTANGENT.into(), Tensor::from_f32(&[1, 2], &[1.0, 1.0])),
        ];
        let kept: Vec<_> = batch.into_iter().filter(|it| derived.graph.input(&it.0).is_some()).collect();
        let place = derived.graph.outputs.iter().position(|it| &*it.value == EMBEDS_GRAD).unwrap();
        let gradient =
            evaluate(&derived.graph, &[kept]).unwrap()[0][place].as_ref().unwrap().to_f64().unwrap();
        for label in 0..2 {
            let slopes = rows.chunks(24).map(|it| 1.0 - largest(it, label).tanh().powi(2));
            let expected = slopes.clone().sum::<f64>() / slopes.count() as f64;
            let found: f64 = gradient.chunks(2).map(|it| it[label]).sum();
            assert!((found - expected).abs() < 1e-5, "{tokens} tokens: {found} instead of {expected}");
        }
    }
}

fn with_branch(tokens: i64) -> Graph {
    let mut graph = classifier(&format!(
        "l = Shape(ids) {{start: 1, end: 2}}; c = Greater(l, [{tokens}]); d = Squeeze(c); \
         s = ReduceSum(e, [1]) {{keepdims: 0}}; logits = If(d)"
    ));
    let node = graph.nodes.last_mut().unwrap();
    for (name, text) in [("then_branch", "r = Mul(s, 0.25)"), ("else_branch", "r = Tanh(s)")] {
        let mut branch = Graph::parse(text).unwrap();
        branch.inputs.clear();
        node.attributes.insert(name.into(), Attribute::Graph(Box::new(branch)));
    }
    graph
}

#[test]
fn a_branch_on_the_length_is_control_flow() {
    let compiled = open(with_branch(20));
    assert_eq!(compiled.gradient.map(|_| ()).unwrap_err().code, Code::ControlFlow);
}

#[test]
fn a_branch_that_only_long_texts_take_is_found_and_nothing_derived() {
    let compiled = open(with_branch(100));
    assert!(compiled.folded);
    let refusal = refusal(compiled);
    assert_eq!(refusal.code, Code::Measured);
    assert!(refusal.reason.contains("131 tokens"), "{}", refusal.reason);
}

#[test]
fn a_cut_that_only_long_texts_suffer_is_found_and_nothing_derived() {
    let text = "c = Slice(ids, [0], [30], [1]); e = Gather(table, c); logits = ReduceMean(e) {axes: [1], keepdims: 0}";
    let mut graph = classifier(text);
    graph.nodes.remove(0);
    let refusal = refusal(open(graph));
    assert_eq!(refusal.code, Code::Measured);
    assert!(refusal.reason.contains("38 tokens"), "{}", refusal.reason);
}

#[test]
fn a_first_token_is_read_in_texts_of_any_length() {
    let compiled =
        open(classifier("f = Slice(e, [0], [4], [1]); logits = ReduceMean(f) {axes: [1], keepdims: 0}"));
    let derived = compiled.gradient.unwrap_or_else(|it| panic!("{it:?}"));
    assert!(derived.measures.logits < 1e-5);
}

/// A masked position is `e + e·log 0`, plus infinity where `e < 0`: a Softmax over that is not a number.
#[test]
fn logits_that_are_no_numbers_on_padded_rows_are_refused() {
    let masked = "m = Cast(attention_mask: int64[b, s]) {to: 1}; l = Log(m); \
                  u = Unsqueeze(l, [2]); n = Mul(e, u); q = Add(e, n); p = Softmax(q) {axis: 1}; \
                  r = Mul(p, e); logits = ReduceSum(r, [1]) {keepdims: 0}";
    let hints = Hints { pad: Some(0), ..Hints::default() };
    let compiled = Compiled::open(classifier(masked), &hints, &evaluate).unwrap();
    let refusal = refusal(compiled);
    assert!(refusal.reason.contains("a length is baked in"), "{refusal}");
}

/// A component's gradient is one in as many as there are tokens within the bounds, and nothing elsewhere.
#[test]
fn tokens_that_only_long_texts_lose_have_no_gradient() {
    const TOKENS: usize = 160;
    for (bounds, kept) in [("[0], [140]", 0..140), ("[-140], [9223372036854775807]", 20..TOKENS)] {
        let text = format!("f = Slice(e, {bounds}, [1]); logits = ReduceMean(f) {{axes: [1], keepdims: 0}}");
        let hints = Hints { max_length: Some(TOKENS), ..Hints::default() };
        let compiled = Compiled::open(classifier(&text), &hints, &evaluate).unwrap();
        let derived = compiled.gradient.as_ref().unwrap_or_else(|it| panic!("{bounds}: {it:?}"));
        let batch = vec![
            (EMBEDS.into(), compiled.lookup(&[7; TOKENS], &[1, TOKENS]).unwrap()),
            (COTANGENT.into(), Tensor::from_f32(&[1, 2], &[1.0, 1.0])),
        ];
        let place = derived.graph.outputs.iter().position(|it| &*it.value == EMBEDS_GRAD).unwrap();
        let found = evaluate(&derived.graph, &[batch]).unwrap()[0][place].as_ref().unwrap().to_f64().unwrap();
        for (at, found) in found.iter().enumerate() {
            let expected = if kept.contains(&(at / 2)) { 1.0 / 140.0 } else { 0.0 };
            assert!((found - expected).abs() < 1e-7, "{bounds}, {at}: {found} instead of {expected}");
        }
    }
}

#[test]
fn a_row_of_the_greatest_length_is_tried() {
    let hints = Hints { max_length: Some(200), ..Hints::default() };
    let refusal = refusal(Compiled::open(with_branch(150), &hints, &evaluate).unwrap());
    assert_eq!(refusal.code, Code::Measured);
    assert!(refusal.reason.contains("200 tokens"), "{}", refusal.reason);
    let short = Hints { max_length: Some(140), ..Hints::default() };
    assert!(Compiled::open(with_branch(150), &short, &evaluate).unwrap().gradient.is_ok());
}

#[test]
fn a_text_that_a_derived_graph_scores_otherwise_is_refused() {
    let unlimited = [
        ("config.json", "max_position_embeddings", Json::Null),
        ("tokenizer_config.json", "model_max_length", Json::Null),
    ];
    let folder = derived("bert-legacy17", |it| *it = with_branch(150), &unlimited);
    let house = house("branch", folder.path());
    let ask = |tokens: usize| -> Result<ExplainAnswer, ExplainError> {
        let body = json!({ "inputs": ["t5 ".repeat(tokens)], "granularity": "token" });
        let request: ExplainRequest = serde_json::from_value(body).unwrap();
        let arrival = Arrival { id: "test".into(), at: Instant::now(), cancel: Cancel::default() };
        explain(&house, registry::find("saliency").unwrap(), &request, &arrival)
    };
    ask(20).unwrap();
    let Err(ExplainError::Unavailable(missing)) = ask(160) else { panic!("it is told of one branch only") };
    assert_eq!((&*missing.code, missing.method.as_deref()), ("measured", Some("saliency")));
    assert!(missing.reason.contains("does not hold for the text at /inputs/0"), "{}", missing.reason);
}
