//! The registry, told.

use explaind::explain::registry::METHODS;
use serde_json::json;

use crate::service::Service;

#[tokio::test]
async fn every_method_is_listed_with_a_schema_that_stands_alone() {
    let service = Service::bundled();
    let list = service.get("/methods").await.good();
    let listed = list["methods"].as_array().unwrap();
    assert_eq!(listed.len(), METHODS.len());
    for (page, method) in listed.iter().zip(METHODS) {
        assert_eq!(page["method"], method.about().slug);
        let schema =
            jsonschema::draft202012::new(&page["parameters"]).expect("a schema without a world around it");
        assert!(schema.is_valid(&json!({})), "{}: every parameter has a default", page["method"]);
        assert!(
            schema.is_valid(page["example"].get("parameters").unwrap_or(&json!({}))),
            "{}",
            page["method"]
        );
        assert!(!schema.is_valid(&json!({ "no_such_parameter": 1 })), "{}", page["method"]);
        let alone = service.get(&format!("/methods/{}", method.about().slug)).await.good();
        assert_eq!(alone, *page);
    }
}

#[tokio::test]
async fn an_unknown_method_is_a_problem() {
    assert_eq!(Service::bundled().get("/methods/tea-leaves").await.refusal(), "404 unknown-method");
}
