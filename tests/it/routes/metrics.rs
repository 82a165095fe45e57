//! What a scrape tells after work was done.

use serde_json::json;

use crate::service::{REVIEW, Service};

#[tokio::test]
async fn an_explanation_is_counted_once_with_its_passes_and_stages() {
    let service = Service::with(&[]);
    let usage =
        service.post("/explain/leave-one-out", json!({ "inputs": REVIEW })).await.good()["usage"].clone();
    let method = r#"{method="leave-one-out"}"#;
    assert_eq!(service.metric(r#"explaind_explanations_total{method="leave-one-out",outcome="ok"}"#), 1.0);
    assert_eq!(service.metric(&format!("explaind_forward_passes_total{method}")), usage["forward_passes"]);
    for stage in ["tokenize", "queue", "forward", "reduce"] {
        let series =
            format!(r#"explaind_explain_duration_seconds_count{{method="leave-one-out",stage="{stage}"}}"#);
        assert_eq!(service.metric(&series), 1.0);
    }
    assert_eq!(service.metric("explaind_in_flight"), 0.0);
    assert_eq!(service.metric("explaind_queue_tokens"), 0.0);
}

#[tokio::test]
async fn a_refusal_is_counted_as_invalid_and_costs_no_pass() {
    let service = Service::with(&[]);
    let before = service.metric("explaind_rows_total");
    service.post("/explain/leave-one-out", json!({ "inputs": "" })).await;
    service.post_bytes("/explain/leave-one-out", "{").await;
    let invalid = r#"explaind_explanations_total{method="leave-one-out",outcome="invalid"}"#;
    assert_eq!(service.metric(invalid), 2.0);
    service.get("/explain/leave-one-out").await;
    service.get("/predict").await;
    assert_eq!(service.metric(invalid), 2.0, "a wrong verb is no explanation");
    assert_eq!(service.metric(r#"explaind_predictions_total{outcome="invalid"}"#), 0.0);
    assert_eq!(service.metric("explaind_rows_total"), before);
}

#[tokio::test]
async fn nothing_of_a_request_becomes_a_label() {
    let service = Service::with(&[]);
    service.get("/a-path-of-the-callers").await;
    service.post("/explain/a-method-of-the-callers", json!({})).await;
    let text = String::from_utf8(service.get("/metrics").await.body.to_vec()).unwrap();
    assert!(!text.contains("callers"));
    assert!(text.contains(r#"route="unmatched""#));
}
