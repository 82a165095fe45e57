//! Calibration from outside: the program fits a temperature, and the server shows it with every probability.

use std::{fs, path::Path, process::Command, time::Instant};

use explaind::{
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
