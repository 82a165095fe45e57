//! Calibration from outside: the program fits a temperature, and the server shows it with every probability.

use std::{fs, path::Path, process::Command, time::Instant};

use explaind::{
    compile::{
        self,
        graph::{Node, Tensor, Type},
    },
    explain::{Arrival, ExplainRequest, PredictRequest, explain, predict, registry},
    runtime::Cancel,
};
use serde_json::{Value, json};

use crate::support::{bundled, house};

/// A copy of the bundled model's folder; its graph is linked.
fn folder() -> tempfile::TempDir {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    let copy = tempfile::tempdir().expect("a folder");
    for file in ["model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::os::unix::fs::symlink(bundled.join(file), copy.path().join(file)).expect("a link");
    }
    copy
}

fn calibrate(folder: &Path, lines: &[Value]) -> (bool, String) {
    let file = folder.join("labelled.jsonl");
    let text: String = lines.iter().map(|it| format!("{it}\n")).collect();
    fs::write(&file, text).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_explaind"))
        .arg("calibrate")
        .args([folder, &file])
        .output()
        .expect("the program runs");
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// The bundled model's log-odds as a model with a single logit.
fn single(problem: &str) -> tempfile::TempDir {
    let folder = folder();
    let (model, config) = (folder.path().join("model.onnx"), folder.path().join("config.json"));
    let mut graph = compile::read(fs::read(&model).unwrap().into(), &compile::no_external).unwrap();
    for node in &mut graph.nodes {
        node.outputs.iter_mut().filter(|it| &***it == "logits").for_each(|it| *it = "both".into());
    }
    graph.initializers.insert("odds".into(), Tensor::from_f32(&[2, 1], &[-1.0, 1.0]));
    graph.nodes.push(Node::new("MatMul", &["both".into(), "odds".into()], &["logits".into()]));
    graph.outputs[0].ty = Type::Other(Box::default());
    let mut settings: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    settings["id2label"] = json!({ "0": "positive" });
    settings["label2id"] = json!({ "positive": 0 });
    settings["problem_type"] = json!(problem);
    for (file, bytes) in [(model, compile::write(&graph)), (config, settings.to_string().into_bytes())] {
        fs::remove_file(&file).unwrap();
        fs::write(file, bytes).unwrap();
    }
    folder
}

fn arrival() -> Arrival {
    Arrival { id: "calibration".into(), at: Instant::now(), cancel: Cancel::default() }
}

#[test]
fn a_fitted_temperature_is_what_the_server_divides_by_and_tells() {
    let folder = folder();
    let line = |text: &str, label: &str| json!({ "text": text, "label": label });
    // The model is sure of all of them; one label says otherwise.
    let (done, told) = calibrate(
        folder.path(),
        &[
            line("A wonderful film.", "positive"),
            line("A terrible film.", "negative"),
            line("A lovely story.", "positive"),
            line("A dull story.", "positive"),
        ],
    );
    assert!(done, "{told}");
    for word in ["texts        4", "accuracy     0.7500", "NLL", "ECE", "explaind.json"] {
        assert!(told.contains(word), "{told}");
    }
    let written: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("explaind.json")).unwrap()).unwrap();
    let temperature = written["temperature"].as_f64().unwrap();
    assert!(temperature > 1.0, "{temperature}");

    let calibrated = house("sst2", folder.path());
    let body = json!({ "inputs": "A wonderful film.", "output": "probability" });
    let request: ExplainRequest = serde_json::from_value(body).unwrap();
    let method = registry::find("leave-one-out").unwrap();
    let answer = explain(&calibrated, method, &request, &arrival()).unwrap();
    let prediction = &answer.results[0].prediction;
    assert_eq!(prediction.temperature, temperature);
    let logits: Vec<f64> = prediction.scores.iter().map(|it| it.logit).collect();
    let expected = 1.0 / (1.0 + ((logits[0] - logits[1]) / temperature).exp());
    assert!((prediction.scores[1].score - expected).abs() < 1e-9);
    assert!((answer.results[0].explanations[0].value - expected).abs() < 1e-9);

    let request: PredictRequest = serde_json::from_value(json!({ "inputs": "A wonderful film." })).unwrap();
    let score = |house| predict(house, &request, &arrival()).unwrap().0[0][0].score;
    assert!((score(&calibrated) - expected).abs() < 1e-6);
    assert!(score(bundled()) > expected);
}

#[test]
fn a_line_that_does_not_fit_is_named_by_its_number_and_nothing_is_written() {
    let folder = folder();
    let good = json!({ "text": "A wonderful film.", "label": 1 });
    for (bad, words) in [
        (json!({ "text": "A film.", "label": "lovely" }), "no label `lovely`"),
        (json!({ "text": "A film.", "label": 2 }), "2"),
        (json!({ "text": "A film.", "label": -1 }), "a label is a name or an index"),
        (json!({ "text": "A film.", "label": true }), "a label is a name or an index"),
        (json!({ "text": "A film." }), "no `label`"),
        (json!({ "text": " ", "label": 0 }), "empty"),
        (json!({ "text": "A film.", "labels": [0, 1] }), "several labels"),
        (json!({ "text": "A film.", "label": 0, "weight": 2 }), "weight"),
    ] {
        let (done, told) = calibrate(folder.path(), &[good.clone(), bad]);
        assert!(!done && told.contains("line 2") && told.contains(words), "{told}");
    }
    let (done, told) = calibrate(folder.path(), &[good]);
    assert!(!done && told.contains("right side"), "{told}");
    assert!(!folder.path().join("explaind.json").exists());
}

#[test]
fn zero_and_one_say_whether_a_single_label_holds() {
    let folder = single("multi_label_classification");
    let line = |text: &str, label: Value| json!({ "text": text, "label": label });
    let mut lines = vec![
        line("A wonderful film.", json!(1)),
        line("A terrible film.", json!(0)),
        line("A lovely story.", json!("positive")),
        line("A dull story.", json!(1)),
    ];
    let (done, told) = calibrate(folder.path(), &lines);
    assert!(done && told.contains("accuracy     0.7500"), "{told}");
    lines.push(line("A film.", json!(2)));
    let (done, told) = calibrate(folder.path(), &lines);
    assert!(!done && told.contains("line 5") && told.contains("1 where it holds or 0"), "{told}");
}

#[test]
fn a_regression_is_said_to_be_one_whatever_the_file_holds() {
    let folder = single("regression");
    let (done, told) = calibrate(folder.path(), &[json!({ "text": "A film.", "labels": [0] })]);
    assert!(!done && told.contains("the model is a regression"), "{told}");
}

#[test]
fn a_mark_in_front_of_the_file_is_no_part_of_it() {
    let folder = folder();
    let file = folder.path().join("labelled.jsonl");
    fs::write(&file, "\u{feff}{\"text\": \"A wonderful film.\", \"label\": 1}\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_explaind"))
        .arg("calibrate")
        .args([folder.path(), &file])
        .output()
        .expect("the program runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("right side"), "the line is read: {told}");
}
