//! Which positions the classifier reads, told by the attention family: a BERT of the zoo with other poolers.

use std::fs;
use std::path::Path;
use std::time::Instant;

use explaind::compile::{
    self,
    graph::{Node, Tensor, Value as Name},
};
use explaind::explain::attending::{Mixing, Square};
use explaind::explain::{Arrival, ExplainError, ExplainRequest, House, explain, registry};
use explaind::model::graphs;
use explaind::runtime::Cancel;
use serde_json::{Value, json};

use crate::support::house;

const TEXT: &str = "t155 t64 t89 t60 t153 t51";
/// The tokens of [`TEXT`].
const TOKENS: usize = 6;
/// The id of the second word.
const MARKED: i64 = 64;
const LAYER: &str = "/m/bert/encoder/layer.0/output/LayerNorm/LayerNormalization_output_0";

/// What the pooler reads: nodes between the last hidden state, `h`, and what was picked of it.
fn pooler(kind: &str, h: &Name, picked: &Name) -> Vec<Node> {
    let node = |op: &str, inputs: &[&str], output: &str| {
        let inputs: Vec<Name> = inputs.iter().map(|&it| it.into()).collect();
        Node::new(op, &inputs, &[output.into()])
    };
    let pick =
        |from: &str, index: &str, output: &str| node("Gather", &[from, index], output).with("axis", -2);
    let mean = |of: &str| node("ReduceMean", &[of], picked).with("axes", vec![1]).with("keepdims", 0);
    match kind {
        "last" => vec![pick(h, "minus_one", picked)],
        "mean" => vec![mean(h)],
        "middle" => vec![node("Slice", &[h, "ones", "minus_ones", "ones"], "middle"), mean("middle")],
        "difference" => vec![
            pick(h, "zero", "first"),
            pick(h, "minus_one", "last"),
            node("Sub", &["first", "last"], picked),
        ],
        "marked" => vec![
            node("Equal", &["input_ids", "marked"], "is_marked"),
            node("Cast", &["is_marked"], "as_float").with("to", 1),
            node("ArgMax", &["as_float"], "place").with("axis", 1),
            node("GatherND", &[h, "place"], picked).with("batch_dims", 1),
        ],
        "masked" => vec![
            node("Equal", &["input_ids", "marked"], "is_marked"),
            node("Cast", &["is_marked"], "as_float").with("to", 1),
            node("Unsqueeze", &["as_float", "twos"], "mask"),
            node("Mul", &[h, "mask"], "masked"),
            node("ReduceSum", &["masked", "ones"], picked).with("keepdims", 0),
        ],
        "layers" => vec![
            pick(LAYER, "zero", "below"),
            pick(h, "zero", "first"),
            node("Add", &["first", "below"], picked),
        ],
        other => panic!("no pooler {other}"),
    }
}

fn with_pooler(kind: &str) -> House {
    let folder = tempfile::tempdir().expect("a folder");
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public/bert-legacy17-eager");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(zoo.join(file), folder.path().join(file)).expect("a file of the zoo");
    }
    let mut graph = graphs::read(&zoo.join("model.onnx")).expect("a graph");
    let place = graph.nodes.iter().rposition(|it| it.is("Gather")).expect("a pooler");
    let own = graph.nodes.remove(place);
    let nodes = pooler(kind, &own.inputs[0], &own.outputs[0]);
    graph.nodes.splice(place..place, nodes);
    for (name, dims, value) in [
        ("zero", &[][..], 0),
        ("minus_one", &[], -1),
        ("marked", &[], MARKED),
        ("ones", &[1], 1),
        ("twos", &[1], 2),
        ("minus_ones", &[1], -1),
    ] {
        graph.initializers.insert(name.into(), Tensor::from_i64(dims, &[value]));
    }
    fs::write(folder.path().join("model.onnx"), compile::write(&graph)).expect("a file");
    house(kind, folder.path())
}

fn ask(house: &House, slug: &str, parameters: &Value) -> Result<Value, ExplainError> {
    let request =
        json!({ "inputs": TEXT, "granularity": "token", "timeout_ms": 60_000, "parameters": parameters });
    let request: ExplainRequest = serde_json::from_value(request).expect("a well-formed request");
    let arrival = Arrival { id: "reading".into(), at: Instant::now(), cancel: Cancel::default() };
    let answer = explain(house, registry::find(slug).expect("a listed method"), &request, &arrival)?;
    Ok(serde_json::to_value(&answer.results[0].explanations[0]).expect("JSON"))
}

/// Rollout of every position, from the probabilities themselves.
fn rollout(house: &House) -> Square {
    let answer = ask(house, "attention", &json!({ "matrices": true })).expect("probabilities");
    let layers = answer["details"]["layers"].as_array().expect("layers").iter().map(|layer| {
        let heads = layer["heads"].as_array().expect("heads");
        let mut values = vec![0.0; TOKENS * TOKENS];
        for head in heads {
            let rows =
                head["rows"].as_array().expect("rows").iter().flat_map(|it| it.as_array().expect("a row"));
            let of_head = rows.map(|it| it.as_f64().expect("a number"));
            values.iter_mut().zip(of_head).for_each(|(sum, it)| *sum += it / heads.len() as f64);
        }
        Square { size: TOKENS, values }
    });
    Mixing::Rollout.mix(layers.collect::<Vec<_>>().into_iter(), TOKENS)
}

#[test]
fn the_rows_that_the_classifier_reads_are_told() {
    let (last, half) = (TOKENS - 1, 0.5);
    let several = |parts: &dyn Fn(usize) -> f64| (0..TOKENS).map(parts).collect::<Vec<f64>>();
    let one = |place: usize| several(&|it| f64::from(u8::from(it == place)));
    let middle = several(&|it| if it == 0 || it == last { 0.0 } else { 1.0 / (TOKENS - 2) as f64 });
    let ends = several(&|it| if it == 0 || it == last { half } else { 0.0 });
    for (kind, told, parts) in [
        ("last", json!(last), one(last)),
        ("marked", json!(1), one(1)),
        ("masked", json!(1), one(1)),
        ("mean", json!("mean"), several(&|_| 1.0 / TOKENS as f64)),
        ("middle", json!("several"), middle),
        ("difference", json!("several"), ends),
    ] {
        let house = with_pooler(kind);
        let all = rollout(&house);
        let row =
            |at: usize| -> f64 { parts.iter().enumerate().map(|(it, part)| part * all.row(it)[at]).sum() };
        let answer =
            ask(&house, "attention-rollout", &json!({})).unwrap_or_else(|it| panic!("{kind}: {it:?}"));
        let evidence = &answer["evidence"];
        assert_eq!(evidence["read_position"], told, "{kind}");
        if told == "several" {
            let found = evidence["read_parts"].as_array().expect("parts");
            let gap = |(a, b): (&Value, &f64)| (a.as_f64().expect("a number") - b).abs();
            assert!(found.iter().zip(&parts).all(|it| gap(it) < 1e-5), "{kind}: {found:?}");
        }
        let wanted = (0..TOKENS).map(row);
        let found = answer["attributions"].as_array().expect("a list").iter();
        let found = found.map(|it| it["score"].as_f64().expect("a number"));
        assert!(found.zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{kind}: {answer}");
    }
}

#[test]
fn where_it_is_not_known_what_is_read_only_probabilities_are_told() {
    let house = with_pooler("layers");
    for slug in ["attention-rollout", "attention-relevance"] {
        match ask(&house, slug, &json!({})) {
            Err(ExplainError::Unavailable(missing)) => {
                assert_eq!((missing.method.as_deref(), missing.code.as_str()), (Some(slug), "attention"));
                assert!(missing.reason.contains("not known which positions"), "{}", missing.reason);
            }
            other => panic!("{other:?}"),
        }
    }
    let answer = ask(&house, "attention", &json!({})).expect("probabilities");
    assert_eq!(answer["evidence"]["read_position"], "unknown");
}
