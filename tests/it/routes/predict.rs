//! Scores in the shape that Hugging Face clients know.

use serde_json::{Value, json};

use crate::service::{REVIEW, Service};

fn scores(list: &Value) -> Vec<(String, f64)> {
    let one = |it: &Value| (it["label"].as_str().unwrap().to_owned(), it["score"].as_f64().unwrap());
    list.as_array().unwrap().iter().map(one).collect()
}

#[tokio::test]
async fn one_text_gives_one_list_best_first() {
    let answer = Service::bundled().post("/predict", json!({ "inputs": REVIEW })).await;
    let found = scores(&answer.good());
    assert_eq!(found[0].0, "positive");
    assert!(found[0].1 > 0.9 && (found[0].1 + found[1].1 - 1.0).abs() < 1e-9, "{found:?}");
    assert!(answer.header("server-timing").starts_with("tokenize;dur="));
}

#[tokio::test]
async fn two_strings_are_two_texts_and_never_a_pair() {
    let body = json!({ "inputs": [REVIEW, "Dull."], "parameters": { "top_k": 1 } });
    let lists = Service::bundled().post("/predict", body).await.good();
    let best: Vec<String> = lists.as_array().unwrap().iter().map(|it| scores(it)[0].0.clone()).collect();
    assert_eq!(best, ["positive", "negative"]);
    assert!(lists.as_array().unwrap().iter().all(|it| it.as_array().unwrap().len() == 1));
}

#[tokio::test]
async fn the_function_to_apply_turns_the_same_logits_into_scores() {
    let ask = async |function: &str| {
        let body = json!({ "inputs": REVIEW, "parameters": { "function_to_apply": function } });
        scores(&Service::bundled().post("/predict", body).await.good())
    };
    let (logits, sigmoid, softmax) = (ask("none").await, ask("sigmoid").await, ask("softmax").await);
    let gap = logits[0].1 - logits[1].1;
    assert!((softmax[0].1 - 1.0 / (1.0 + (-gap).exp())).abs() < 1e-9);
    assert!((sigmoid[0].1 - 1.0 / (1.0 + (-logits[0].1).exp())).abs() < 1e-9);
}

#[tokio::test]
async fn bad_parameters_are_pointed_at() {
    let body = json!({ "inputs": REVIEW, "parameters": { "top_k": 0, "function_to_apply": "tanh", "k": 1 } });
    insta::assert_snapshot!(Service::bundled().post("/predict", body).await.refusal(), @r#"
    422 invalid-request
      /parameters/top_k: value is less than the minimum of 1
      /parameters/function_to_apply: is not one of ["softmax","sigmoid","none"]
      /parameters/k: is not a known field
    "#);
}
