//! Relevance graphs of every composite on every model of the zoo that has a gradient: they compute the model's
//! logits, and their books close.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use explaind::compile::anatomy::Anatomy;
use explaind::compile::composite::{Bend, Composite, Linear, Role};
use explaind::compile::cut::{Cut, EMBEDS, LOGITS};
use explaind::compile::derive::COTANGENT;
use explaind::compile::graph::text::Example;
use explaind::compile::graph::{Graph, Node, Tensor, Value};
use explaind::compile::probe::Hints;
use explaind::compile::relevance::audit::{Audit, audit};
use explaind::compile::relevance::{self, ABSORBED, RELEVANCE};
use explaind::compile::{Compiled, derive, no_external, read, write};
use explaind::explain::{Arrival, ExplainRequest, Explanation, explain, registry};
use explaind::runtime::Cancel;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::evaluate::evaluate;
use crate::operators::{inputs, learn};
use crate::support::{self, bundled};

/// The zoo's models, those among them that lack something included.
fn folders() -> Vec<PathBuf> {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo");
    let of = |it: &str| fs::read_dir(zoo.join(it)).unwrap().map(|it| it.unwrap().path());
    let mut paths: Vec<PathBuf> = of("public").chain(of("refuse")).collect();
    paths.sort();
    paths
}

#[test]
fn every_composite_closes_its_books_wherever_there_is_a_gradient() {
    let (mut failures, mut explained) = (Vec::new(), Vec::new());
    for folder in folders() {
        let graph = read(fs::read(folder.join("model.onnx")).unwrap().into(), &no_external).unwrap();
        let hints = Hints { pad: Some(1), ..Hints::default() };
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let compiled = Compiled::structure(graph, &hints, &evaluate);
        let compiled = compiled.and_then(|it| derive::gradient(&it.forward).map(|_| it));
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(_) if folder.parent().unwrap().ends_with("refuse") => continue,
            Err(refusal) => panic!("{name}: {refusal}"),
        };
        explained.push(name.clone());
        let mut audited = HashSet::new();
        // What is exported; and what is served, where operators of our own stand for what no composite bends. They are the
        // processor's alone.
        let served = support::runtime().has_kernels();
        let exported = Composite::ALL.into_iter().map(|it| (it, false));
        for (composite, kernels) in
            exported.chain([Composite::AttnLrp, Composite::Gamma].map(|it| (it, served)))
        {
            let outcome = compiled.relevance_with(composite, kernels).and_then(|it| {
                // Where no weights read the embeddings themselves, the two forms of deep Taylor are one graph.
                let known = !audited.insert(write(&it.graph));
                if known { Ok(Audit::default()) } else { audit(&compiled, &it.graph, &hints, &evaluate) }
            });
            if let Err(refusal) = outcome {
                failures.push(format!("{name} {}: {refusal} {:?}", composite.slug(), refusal.gaps));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for name in ["bert-fp16", "bert-ort-fused-full-sdpa17", "bert-softmax-probabilities", "cnn-legacy17"] {
        assert!(explained.iter().any(|it| it == name), "{name} has a gradient: {explained:?}");
    }
}

/// PyTorch's own attention layer computes on [sequence·batch] rows and [sequence, batch·heads], grouped layers on
/// [groups, batch·sequence], and some attention on heads one behind the other, [heads·batch].
#[test]
fn folded_rows_keep_books_of_their_own() {
    let layouts = [
        "t = Transpose(inputs_embeds[2, 3, 4]) {perm: [1, 0, 2]}; f = Reshape(t, [6, 4]); g = Gemm(f, w[4, 2], c[2]); r = Reshape(g, [3, 2, 2]); logits = ReduceSum(r, [0]) {keepdims: 0}",
        "f = Reshape(inputs_embeds[2, 3, 4], [6, 4]); g = Gemm(f, w[4, 2], c[2]); r = Reshape(g, [2, 3, 2]); logits = ReduceSum(r, [1]) {keepdims: 0}",
        "t = Transpose(inputs_embeds[2, 3, 10]) {perm: [1, 0, 2]}; f = Reshape(t, [3, 4, 5]); g = Add(f, c[5]); r = Reshape(g, [3, 2, 10]); m = MatMul(r, w[10, 2]); logits = ReduceSum(m, [0]) {keepdims: 0}",
        "k, l = Split(inputs_embeds[2, 3, 10], [5, 5]) {axis: 2}; f = Concat(k, l) {axis: 0}; g = Add(f, c[5]); m = MatMul(g, w[5, 2]); p, q = Split(m, [2, 2]) {axis: 0}; r = Add(p, q); logits = ReduceSum(r, [1]) {keepdims: 0}",
        "f = Reshape(inputs_embeds[2, 3, 4], [6, 1, 4]); t = Transpose(f) {perm: [1, 0, 2]}; m = MatMul(t, w[1, 4, 2]); g = Add(m, c[2]); r = Reshape(g, [2, 3, 2]); logits = ReduceSum(r, [1]) {keepdims: 0}",
    ];
    for text in layouts {
        let mut example = Example::parse(text).unwrap();
        let mut batch = inputs(&example, &mut ChaCha8Rng::seed_from_u64(3));
        let facts = learn(&example.graph, &batch).unwrap();
        let graph = &mut example.graph;
        let constants: Vec<_> = batch.extract_if(.., |it| &*it.0 != EMBEDS).collect();
        graph.inputs.retain(|it| &*it.value == EMBEDS);
        graph.initializers.extend(constants);
        let cut = Cut { graph: example.graph, facts };
        let made = relevance::derive(&cut, &Anatomy::default(), Composite::AttnLrp, (-2.0, 2.0)).unwrap();
        batch.push((COTANGENT.into(), Tensor::from_f32(&[2, 2], &[1.0, 0.0, 0.0, 0.0])));
        let run = evaluate(&made.graph, &[batch]).unwrap().remove(0);
        let of = |name: &str| {
            let place = made.graph.outputs.iter().position(|it| &*it.value == name).unwrap();
            run[place].as_ref().unwrap().to_f64().unwrap()
        };
        let (logits, tokens, absorbed) = (of(LOGITS), of(RELEVANCE), of(ABSORBED));
        assert_eq!(absorbed[1], 0.0, "{text}: the second row explains nothing");
        let first = tokens[..3].iter().sum::<f64>() + absorbed[0];
        assert!((first - logits[0]).abs() < 1e-5, "{text}: {first} of {}", logits[0]);
    }
}

/// Products with the weights of a layer.
fn products(graph: &Graph) -> usize {
    let is_weight = |it: &&Value| graph.initializers.get(*it).is_some_and(|it| it.dims().len() == 2);
    let is_product = |it: &&Node| ["MatMul", "FusedMatMul", "Gemm"].contains(&it.op.as_str());
    graph.nodes.iter().filter(is_product).filter(|it| it.inputs.iter().find(is_weight).is_some()).count()
}

/// A rule of signed contributions asks for the sizes of all contributions, forward and back, and for no more. There are
/// six layers in each of three blocks, the pooler and the head.
#[test]
fn relevance_takes_no_more_products_than_its_rules_ask_for() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2/model.onnx");
    let graph = read(fs::read(path).unwrap().into(), &no_external).unwrap();
    let compiled =
        Compiled::structure(graph, &Hints { pad: Some(0), ..Hints::default() }, &evaluate).unwrap();
    let gradient = products(&derive::gradient(&compiled.forward).unwrap().0);
    const LAYERS: usize = 20;
    assert_eq!(gradient, 2 * (LAYERS - 2), "the last block's keys and values are products by head");
    for composite in Composite::ALL {
        let by_sign = match composite.bend(Role::Layer) {
            Some(Bend::Linear(Linear::Gamma(_) | Linear::AlphaBeta { .. })) => 2,
            _ => 1,
        };
        let found = products(&compiled.relevance(composite).unwrap().graph);
        assert!(found <= by_sign * 2 * LAYERS, "{}: {found} products", composite.slug());
    }
}

/// The explanations of every review in `tests/fixtures/sentences.txt`.
fn explained(method: &str, parameters: &Json, count: usize) -> Vec<Explanation> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentences.txt");
    let text = fs::read_to_string(path).unwrap();
    let sentences: Vec<&str> = text.lines().filter(|it| !it.is_empty()).take(count).collect();
    assert_eq!(sentences.len(), count);
    let all: Vec<Explanation> = sentences
        .chunks(8)
        .flat_map(|inputs| {
            let body = json!({ "inputs": inputs, "parameters": parameters, "timeout_ms": 60_000 });
            let request: ExplainRequest = serde_json::from_value(body).unwrap();
            let arrival = Arrival { id: "books".into(), at: Instant::now(), cancel: Cancel::default() };
            let method = registry::find(method).unwrap();
            explain(bundled(), method, &request, &arrival).unwrap().results
        })
        .flat_map(|it| it.explanations)
        .collect();
    all
}

#[test]
fn books_close_on_every_review_and_at_every_layer() {
    let composites = ["lrp-0", "epsilon", "gamma", "alpha-beta", "z-plus", "cp-lrp", "attn-lrp"];
    let lrp = composites.map(|it| ("lrp", json!({ "composite": it })));
    let entries = ["w-squared", "z-b"].map(|it| ("deep-taylor", json!({ "entry": it })));
    for (method, parameters) in lrp.iter().chain(&entries) {
        for it in explained(method, parameters, 24) {
            let bound = 1e-3 * it.value.abs();
            let error = it.evidence["conservation_error"].as_f64().unwrap();
            assert!(error.abs() <= bound, "{method} {parameters}: {error:e} of {}", it.value);
            let layers = it.evidence["conservation_by_layer"].as_array().unwrap();
            assert_eq!(layers.len(), 4, "three layers lie between four hidden states");
            for layer in layers {
                let error = layer["error"].as_f64().unwrap();
                assert!(error.abs() <= bound, "{method} {parameters}: {layer} of {}", it.value);
            }
        }
    }
}

#[test]
fn components_sum_to_what_flows_through_them() {
    let parameters = json!({ "components": ["heads", "neurons", "layers"], "k": 4 });
    for it in explained("lrp", &parameters, 4) {
        let details = it.details.unwrap();
        let layers = details["layers"].as_array().unwrap();
        let books = it.evidence["conservation_by_layer"].as_array().unwrap();
        for (tokens, books) in layers.iter().zip(books) {
            let sum: f64 = tokens.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).sum();
            assert!((sum - books["relevance"].as_f64().unwrap()).abs() < 1e-4);
        }
        let heads = details["heads"].as_array().unwrap();
        assert_eq!((heads.len(), heads[0].as_array().unwrap().len()), (3, 12));
        for neurons in details["neurons"].as_array().unwrap() {
            let sizes: Vec<f64> = neurons["top"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it["score"].as_f64().unwrap().abs())
                .collect();
            assert_eq!(sizes.len(), 4);
            assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        }
        assert_eq!(details["tokens"].as_array().unwrap().len(), layers[0].as_array().unwrap().len());
    }
}

#[test]
fn only_borrowed_rules_are_called_substitutions() {
    let of = |method: &str, parameters: Json| {
        let it = explained(method, &parameters, 1).remove(0);
        it.evidence["substitutions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(of("lrp", json!({ "composite": "attn-lrp" })), Vec::<String>::new());
    let deep: Vec<String> = of("deep-taylor", json!({}));
    for operator in ["Softmax", "LayerNormalization", "Gelu", "MatMul"] {
        assert!(deep.iter().any(|it| it.contains(operator)), "{operator} is not in {deep:?}");
    }
}
