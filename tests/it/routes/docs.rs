//! The contract and the page to try it on.

use serde_json::Value;

use crate::service::Service;

#[tokio::test]
async fn the_page_and_its_assets_come_out_of_the_binary() {
    let service = Service::bundled();
    assert_eq!(service.get("/docs").await.header("location"), "/docs/");
    assert!(service.get("/docs/").await.header("content-type").starts_with("text/html"));
    let start = service.get("/docs/swagger-initializer.js").await;
    assert!(String::from_utf8_lossy(&start.body).contains("/openapi.json"));
    for asset in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js"] {
        let answer = service.get(&format!("/docs/{asset}")).await;
        assert!(answer.status.is_success() && answer.body.len() > 10_000, "{asset}");
    }
}

#[tokio::test]
async fn every_example_of_the_document_answers() {
    let service = Service::bundled();
    let document = service.get("/openapi.json").await.good();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let example = &operations["post"]["requestBody"]["content"]["application/json"]["example"];
        if *example == Value::Null {
            continue;
        }
        let mut request = example.clone();
        // A second is enough on an idle machine; the tests share theirs.
        request["timeout_ms"] = 20_000.into();
        let answer = service.post(path, request).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.json());
        tried += 1;
    }
    assert_eq!(tried, explaind::explain::registry::METHODS.len() + 1);
}
