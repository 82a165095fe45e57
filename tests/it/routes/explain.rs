//! The main job: answers, and everything that is refused.

use std::path::Path;

use axum::body::HttpBody;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::{
    service::{Answer, REVIEW, Service},
    support,
};

const PATH: &str = "/explain/leave-one-out";

async fn ask(body: Value) -> Answer {
    Service::bundled().post(PATH, body).await
}

async fn refusal(body: Value) -> String {
    ask(body).await.refusal()
}

#[tokio::test]
async fn a_review_is_explained_word_by_word() {
    let answer = ask(json!({ "inputs": { "text": REVIEW, "id": "r1" }, "seed": 3 })).await;
    let told = answer.good();
    assert_eq!(told["id"], answer.header("x-request-id"));
    assert_eq!((&told["method"], &told["seed"]), (&"leave-one-out".into(), &3.into()));
    assert_eq!(told["parameters"]["operation"], "mask");
    let result = &told["results"][0];
    assert_eq!((&result["id"], &result["prediction"]["label"]), (&"r1".into(), &"positive".into()));
    let words: Vec<&str> = result["explanations"][0]["attributions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["text"].as_str().unwrap())
        .collect();
    assert_eq!(words, ["A", "warm", ",", "funny", "and", "quietly", "moving", "film", "."]);
    let timing = answer.header("server-timing");
    for stage in ["tokenize;dur=", "queue;dur=", "forward;dur=", "reduce;dur="] {
        assert!(timing.contains(stage), "{timing}");
    }
}

#[tokio::test]
async fn every_input_and_every_target_has_its_explanation() {
    let told = ask(json!({ "inputs": [REVIEW, { "text": "Dull." }], "target": "all" })).await.good();
    let results = told["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        let targets: Vec<&Value> =
            result["explanations"].as_array().unwrap().iter().map(|it| &it["target"]["label"]).collect();
        assert_eq!(targets, ["negative", "positive"]);
    }
}

#[tokio::test]
async fn a_pair_is_told_apart_by_segment() {
    let told = ask(json!({ "inputs": { "text": "Warm film.", "text_pair": "Dull plot." } })).await.good();
    let segments: Vec<u64> = told["results"][0]["explanations"][0]["attributions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["segment"].as_u64().unwrap())
        .collect();
    assert_eq!(segments, [0, 0, 0, 1, 1, 1]);
}

#[tokio::test]
async fn what_is_no_json_is_malformed() {
    let service = Service::bundled();
    for (body, told) in [
        (&b"{\"inputs\": "[..], "400 malformed-json"),
        (b"", "400 malformed-json"),
        (b"{\"inputs\": \"a\", \"inputs\": \"b\"}", "400 malformed-json"),
        (b"{\"inputs\": \"a raw \x00 byte\"}", "400 malformed-json"),
        (b"{\"inputs\": \"\xff\"}", "400 invalid-utf8"),
    ] {
        assert_eq!(service.post_bytes(PATH, body.to_vec()).await.refusal(), told);
    }
}

#[tokio::test]
async fn a_body_that_is_not_declared_as_json_is_not_read() {
    let request = axum::http::Request::post(PATH).header("content-type", "text/plain");
    let answer = Service::bundled().ask(request.body("{}".into()).unwrap()).await;
    assert_eq!(answer.refusal(), "415 unsupported-media-type");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_its_length_is_told_or_not() {
    let service = Service::with(&["--max-body-bytes=1000", "--max-text-chars=900"]);
    let long = json!({ "inputs": "word ".repeat(250) }).to_string();
    let told = service.post_bytes(PATH, long.clone()).await.refusal();
    assert_eq!(told, "413 body-too-large\n  limit max_body_bytes = 1000");
    let stream = axum::body::Body::new(axum::body::Body::from(long).map_frame(|it| it));
    assert_eq!(stream.size_hint().exact(), None, "a body whose length nobody knows beforehand");
    assert_eq!(service.post_bytes(PATH, stream).await.refusal(), told);
}

#[tokio::test]
async fn a_text_of_nothing_has_nothing_to_explain() {
    for text in ["", "   ", "\n\t\u{a0}"] {
        let told = refusal(json!({ "inputs": text })).await;
        assert!(told.starts_with("422 invalid-input\n  /inputs: "), "{told}");
    }
    let told = refusal(json!({ "inputs": [REVIEW, { "text": "" }, " "] })).await;
    assert!(told.contains("\n  /inputs/1/text: ") && told.contains("\n  /inputs/2: "), "{told}");
}

#[tokio::test]
async fn a_nul_in_a_text_is_refused_where_it_stands() {
    let told = refusal(json!({ "inputs": ["fine", "a\u{0}b"] })).await;
    assert!(told.starts_with("422 invalid-input\n  /inputs/1: "), "{told}");
}

#[tokio::test]
async fn all_misfits_of_the_schema_are_told_at_once() {
    let body = json!({
        "inputs": 3, "modle": "sst2", "target": true, "output": "loudness", "granularity": "paragraph",
        "parameters": { "operation": "burn", "speed": 1 }, "seed": -1, "timeout_ms": 0, "truncate": "yes",
    });
    insta::assert_snapshot!(refusal(body).await, @r#"
    422 invalid-request
      /inputs: is not of type array and is not of type string and is not of type object
      /target: is not of type array and is not of type integer and is not of type string
      /output: is not one of ["logit","probability","log_odds"]
      /granularity: is not one of ["token","word","sentence"] and is not of type object
      /parameters/operation: is not one of ["delete","mask","unk","pad","replace","neighbors","mlm"] and is not one of ["zero","mean","random","noise","shuffle","swap"]
      /parameters/speed: is not a known field
      /seed: value is less than the minimum of 0
      /timeout_ms: value is less than the minimum of 1
      /truncate: is not of type boolean
      /modle: is not a known field
    "#);
}

#[tokio::test]
async fn samples_and_shares_outside_of_their_limits_are_pointed_at_with_the_limit() {
    let bounds = [("samples", json!(0), "minimum"), ("samples", json!(200_001), "200000")];
    let shares = [("threshold", json!(0), "0"), ("threshold", json!(1), "1")];
    for slug in [
        "lime",
        "kernel-shap",
        "permutation-shap",
        "partition-shap",
        "trans-shap",
        "decision-tree",
        "anchors",
    ] {
        let shares = if slug == "anchors" { &shares[..] } else { &[] };
        for (name, value, said) in bounds.iter().chain(shares) {
            let body = json!({ "inputs": REVIEW, "parameters": { *name: value } });
            let refusal = Service::bundled().post(&format!("/explain/{slug}"), body).await.refusal();
            assert!(refusal.contains(&format!("/parameters/{name}")), "{slug}: {refusal}");
            assert!(refusal.starts_with("422") && refusal.contains(said), "{slug}: {refusal}");
        }
    }
}

#[tokio::test]
async fn points_and_noise_outside_of_their_limits_are_pointed_at() {
    let service = Service::bundled();
    let long = "word ".repeat(40);
    for (slug, name, parameters, said) in [
        ("integrated-gradients", "steps", json!({ "steps": 0 }), "minimum of 1"),
        ("integrated-gradients", "steps", json!({ "steps": 1025 }), "maximum of 1024"),
        (
            "integrated-gradients",
            "baseline_text",
            json!({ "baseline": "text", "baseline_text": long }),
            "a baseline is not longer",
        ),
        ("smooth-grad", "noise", json!({ "noise": -0.1 }), "minimum of 0"),
    ] {
        let body = json!({ "inputs": REVIEW, "parameters": parameters });
        let told = service.post(&format!("/explain/{slug}"), body).await.refusal();
        assert!(told.starts_with("422") && told.contains(&format!("/parameters/{name}: ")), "{slug}: {told}");
        assert!(told.contains(said), "{slug}: {told}");
    }
    // JSON has no number for it, and one that is too large to be held is none.
    let body = format!(r#"{{"inputs": "{REVIEW}", "parameters": {{"noise": 1e999}}}}"#);
    let told = service.post_bytes("/explain/smooth-grad", body).await.refusal();
    assert!(told.starts_with("400 malformed-json"), "{told}");
}

#[tokio::test]
async fn no_input_and_too_many_are_refused() {
    let told = refusal(json!({ "inputs": [] })).await;
    assert!(told.starts_with("422 invalid-request\n  /inputs: "), "{told}");
    let told = refusal(json!({ "inputs": vec!["a"; 33] })).await;
    assert!(told.starts_with("422 limit-exceeded\n  /inputs: "), "{told}");
    assert!(told.ends_with("limit max_inputs = 32"), "{told}");
}

#[tokio::test]
async fn a_pair_of_strings_in_an_array_in_an_array_is_no_input() {
    let told = refusal(json!({ "inputs": [["a", "b"]] })).await;
    assert!(told.starts_with("422 invalid-request\n  /inputs/0: "), "{told}");
}

#[tokio::test]
async fn a_label_that_the_model_lacks_is_pointed_at() {
    for (target, pointer) in
        [(json!("neutral"), "/target"), (json!(2), "/target"), (json!([0, "neutral"]), "/target/1")]
    {
        let told = refusal(json!({ "inputs": REVIEW, "target": target })).await;
        assert!(told.starts_with(&format!("422 invalid-input\n  {pointer}: ")), "{told}");
    }
    assert!(refusal(json!({ "inputs": REVIEW, "target": [] })).await.starts_with("422 invalid-"));
}

#[tokio::test]
async fn a_model_without_label_names_is_asked_by_index() {
    let folder = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    for file in ["model.onnx", "tokenizer.json", "tokenizer_config.json"] {
        std::os::unix::fs::symlink(bundled.join(file), folder.path().join(file)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(bundled.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().retain(|key, _| key != "id2label" && key != "label2id");
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let service = Service::closed(&[]);
    service.door.open(support::house("nameless", folder.path()));
    let told = service.post(PATH, json!({ "inputs": REVIEW, "target": ["positive"] })).await.refusal();
    assert!(told.starts_with("422 invalid-input\n  /target/0: "), "{told}");
    let told = service.post(PATH, json!({ "inputs": REVIEW, "target": 1 })).await.good();
    assert_eq!(told["results"][0]["explanations"][0]["target"]["index"], 1);
}

#[tokio::test]
async fn an_unknown_model_or_method_is_not_found() {
    assert_eq!(refusal(json!({ "inputs": REVIEW, "model": "nobody" })).await, "404 unknown-model");
    let told = Service::bundled().post("/explain/tea-leaves", json!({ "inputs": REVIEW })).await.refusal();
    assert_eq!(told, "404 unknown-method");
}

#[tokio::test]
async fn a_long_text_is_refused_or_cut_as_the_request_says() {
    let long = "good ".repeat(600);
    let told = refusal(json!({ "inputs": long })).await;
    assert!(told.starts_with("422 input-too-long\n  /inputs: "), "{told}");
    assert!(told.ends_with("limit max_length = 512"), "{told}");
    let spans = json!({ "spans": [[0, 4], [5, 9]] });
    let told = ask(json!({ "inputs": long, "truncate": true, "granularity": spans, "timeout_ms": 60_000 }))
        .await
        .good();
    assert_eq!(told["results"][0]["truncated"], true);
}

#[tokio::test]
async fn a_text_past_the_limit_on_characters_is_refused() {
    let service = Service::with(&["--max-text-chars=10"]);
    let told = service.post(PATH, json!({ "inputs": ["short", "longer than ten"] })).await.refusal();
    assert!(told.starts_with("422 limit-exceeded\n  /inputs/1: "), "{told}");
    assert!(told.ends_with("limit max_text_chars = 10"), "{told}");
}

#[tokio::test]
async fn spans_that_overlap_or_lie_outside_are_pointed_at() {
    for spans in [json!([[0, 4], [3, 6]]), json!([[0, 400]]), json!([[4, 4]]), json!([[5, 2]]), json!([[1]])]
    {
        let told = refusal(json!({ "inputs": REVIEW, "granularity": { "spans": spans } })).await;
        assert!(told.starts_with("422 invalid-input\n  /granularity/spans"), "{spans}: {told}");
    }
    let told = refusal(json!({ "inputs": REVIEW, "granularity": { "spans": [] } })).await;
    assert!(told.starts_with("422 invalid-request\n  /granularity/spans: "), "{told}");
}

#[tokio::test]
async fn a_price_over_the_limit_is_refused_before_any_pass() {
    let service = Service::with(&["--max-passes=5"]);
    let told = service.post(PATH, json!({ "inputs": REVIEW })).await.refusal();
    assert!(told.starts_with("422 limit-exceeded\n"), "{told}");
    assert!(told.ends_with("limit max_passes = 5"), "{told}");
    assert_eq!(service.metric("explaind_rows_total"), 0.0);
}

#[tokio::test]
async fn a_deadline_that_passes_is_told_and_counted() {
    let service = Service::with(&[]);
    let body = json!({ "inputs": vec!["good ".repeat(200); 32], "timeout_ms": 30 });
    assert_eq!(service.post(PATH, body).await.refusal(), "504 deadline-exceeded");
    let late = r#"explaind_explanations_total{method="leave-one-out",outcome="deadline"}"#;
    assert_eq!(service.metric(late), 1.0);
}

#[tokio::test]
async fn a_number_without_a_fraction_is_an_integer_however_it_is_written() {
    let service = Service::bundled();
    for seed in ["3", "3.0", "3e0", "0.3e1"] {
        let body = format!(r#"{{"inputs": "{REVIEW}", "seed": {seed}, "target": 1.0}}"#);
        let told = service.post_bytes(PATH, body).await.good();
        assert_eq!(told["seed"], 3, "{seed}");
    }
}

#[tokio::test]
async fn a_number_that_no_field_can_hold_is_pointed_at() {
    let service = Service::bundled();
    for (field, value) in [("seed", "18446744073709551616"), ("target", "1180591620717411303424")] {
        let body = format!(r#"{{"inputs": "{REVIEW}", "{field}": {value}}}"#);
        let told = service.post_bytes(PATH, body).await.refusal();
        assert_eq!(
            told,
            format!(
                "422 invalid-request\n  /{field}: holds a number that is out of the range of its field, or a large one that is not written in digits"
            )
        );
    }
}

#[tokio::test]
async fn a_packed_body_is_refused_as_such() {
    let request = axum::http::Request::post(PATH).header("content-type", "application/json");
    let request = request.header("content-encoding", "gzip");
    let answer = Service::bundled().ask(request.body(b"\x1f\x8b\x08".to_vec().into()).unwrap()).await;
    assert_eq!(answer.refusal(), "415 unsupported-media-type");
    assert!(answer.json()["detail"].as_str().unwrap().contains("Content-Encoding"));
}

#[tokio::test]
async fn a_refusal_does_not_outgrow_its_request() {
    let mut body = json!({ "inputs": REVIEW });
    let fields = body.as_object_mut().unwrap();
    fields.extend((0..5000).map(|it| (format!("k{it}"), it.into())));
    let answer = ask(body).await;
    assert!(answer.body.len() < 20_000, "{}", answer.body.len());
    assert_eq!(answer.json()["detail"], "5000 fields do not fit; the first 100 are listed");
    let answer = ask(json!({ "inputs": REVIEW, "target": "z".repeat(50_000) })).await;
    assert!(answer.body.len() < 5000 && answer.refusal().starts_with("422 invalid-input\n  /target: "));
}

#[tokio::test]
async fn a_missing_companion_is_a_problem_that_says_what_would_help() {
    let answer = ask(json!({ "inputs": REVIEW, "parameters": { "operation": "mlm" } })).await;
    assert_eq!(answer.refusal(), "501 method-unavailable");
    let missing = answer.json()["missing"].clone();
    assert_eq!((&missing["code"], &missing["method"]), (&"fill_mask".into(), &"leave-one-out".into()));
    assert!(missing["advice"].as_str().unwrap().contains("--fill-mask"), "{missing}");
}

#[tokio::test]
async fn replacements_are_held_to_what_inputs_are_held_to() {
    let told = async |text: String| {
        let parameters = json!({ "operation": "replace", "replacements": [["the"], [text], ["movie"]] });
        refusal(json!({ "inputs": "A good film", "parameters": parameters })).await
    };
    let at = "\n  /parameters/replacements/1/0: ";
    let long = told("word ".repeat(600)).await;
    assert!(long.starts_with(&format!("422 input-too-long{at}")), "{long}");
    assert!(long.ends_with("limit max_length = 512"), "{long}");
    let huge = told("word ".repeat(30_000)).await;
    assert!(huge.starts_with(&format!("422 limit-exceeded{at}")), "{huge}");
    assert!(huge.ends_with("limit max_text_chars = 100000"), "{huge}");
    let nul = told("a\0b".to_owned()).await;
    assert!(nul.starts_with(&format!("422 invalid-input{at}")), "{nul}");
    let halves = json!([["the"], ["word ".repeat(300)], ["word ".repeat(250)]]);
    let parameters = json!({ "operation": "replace", "replacements": halves });
    let together = refusal(json!({ "inputs": "A good film", "parameters": parameters })).await;
    assert!(together.starts_with(&format!("422 input-too-long{at}")), "each fits, both do not: {together}");
    let parameters = json!({ "baseline": "text", "baseline_text": "a\0b" });
    let body = json!({ "inputs": "A good film", "parameters": parameters });
    let nul = Service::bundled().post("/explain/integrated-gradients", body).await.refusal();
    assert!(nul.starts_with("422 invalid-input\n  /parameters/baseline_text: "), "{nul}");
}

#[tokio::test]
async fn a_row_that_replacements_make_longer_has_its_price() {
    let service = Service::with(&["--queue-tokens=2000", "--chunk-tokens=512"]);
    let body = |text: &str, timeout_ms: u64| {
        let parameters = json!({ "operation": "replace", "replacements": [[text], [text]] });
        json!({ "inputs": "good film", "parameters": parameters, "timeout_ms": timeout_ms })
    };
    let long = "word ".repeat(250);
    let first = tokio::spawn({
        let (service, body) = (service.clone(), body(&long, 60_000));
        async move { service.post(PATH, body).await.status }
    });
    // Three rows of 504 tokens and the input's own are priced at 2,016.
    while service.metric("explaind_queue_tokens") < 1000.0 && !first.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(!first.is_finished(), "the work was over before its price was seen");
    assert_eq!(first.await.unwrap(), 200);
}

#[tokio::test]
async fn a_target_that_is_named_twice_is_explained_once() {
    let told =
        ask(json!({ "inputs": REVIEW, "target": ["positive", 1, "positive", "predicted", 0] })).await.good();
    let explanations = told["results"][0]["explanations"].as_array().unwrap();
    let indices: Vec<&Value> = explanations.iter().map(|it| &it["target"]["index"]).collect();
    assert_eq!(indices, [1, 0]);
    let many = refusal(json!({ "inputs": REVIEW, "target": vec![1; 1025] })).await;
    assert!(many.starts_with("422 invalid-request\n  /target: ") && many.contains("1024"), "{many}");
}

#[tokio::test]
async fn targets_and_inputs_are_looked_at_together() {
    let told = refusal(json!({ "inputs": ["", "fine", "a\0b"], "target": ["positive", 7, "nope"] })).await;
    insta::assert_snapshot!(told, @r"
    422 invalid-input
      /target/1: label index 7 is out of range; the model has 2 labels
      /target/2: the model has no label `nope`; its labels are negative, positive
      /inputs/0: the text is empty
      /inputs/2: the text holds a NUL character at position 1
    ");
    let body = json!({ "inputs": ["", "fine", "a\0b"] });
    let told = Service::bundled().post("/predict", body).await.refusal();
    assert!(told.contains("\n  /inputs/0: ") && told.contains("\n  /inputs/2: "), "{told}");
}

/// One round of more requests at once than can be done in time: how many were answered, refused, and late.
async fn overload(service: &Service) -> [usize; 3] {
    let body = |timeout_ms: u128| json!({ "inputs": "good ".repeat(60), "timeout_ms": timeout_ms as u64 });
    let started = std::time::Instant::now();
    service.post(PATH, body(60_000)).await.good();
    let together = 6 * started.elapsed();
    let asked: Vec<_> = (0..24)
        .map(|_| {
            let (service, body) = (service.clone(), body(together.as_millis()));
            tokio::spawn(async move { service.post(PATH, body).await })
        })
        .collect();
    let mut counts = [0; 3];
    for answer in asked {
        let answer = answer.await.unwrap();
        let place = match answer.status.as_u16() {
            200 => 0,
            429 => 1,
            504 => 2,
            other => panic!("{other}"),
        };
        assert!(place != 1 || answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        counts[place] += 1;
    }
    counts
}

#[tokio::test]
async fn what_is_admitted_under_overload_is_answered() {
    let service = Service::with(&[]);
    // The machine may become slower in the middle of a round, so that the rate that was measured no longer holds.
    for _ in 0..4 {
        let [answered, refused, late] = overload(&service).await;
        if answered > 1 && refused > 1 && late == 0 {
            return;
        }
        eprintln!("{answered} answered, {refused} refused, {late} late");
    }
    panic!("admitted requests were late in every round");
}
