//! What is told of a model.

use explaind::{
    explain::registry::METHODS,
    model::{Entry, Model, Shelf},
};

use crate::{service::Service, support};

#[tokio::test]
async fn an_open_model_tells_labels_limits_and_methods() {
    let service = Service::with(&["--max-inputs=3"]);
    let page = service.get("/models/sst2").await.good();
    assert_eq!(page["status"], "ready");
    assert_eq!(page["labels"], serde_json::json!(["negative", "positive"]));
    assert_eq!(page["activation"], "softmax");
    assert_eq!(page["device"], support::runtime().device.to_string());
    assert_eq!((&page["limits"]["max_length"], &page["limits"]["max_inputs"]), (&512.into(), &3.into()));
    assert_eq!(page["digest"].as_str().unwrap().len(), 64);
    let methods = page["methods"].as_array().unwrap();
    assert_eq!(methods.len(), METHODS.len());
    assert!(methods.iter().all(|it| it["available"] == true), "{methods:#?}");
    assert_eq!(service.get("/models").await.good()["models"][0], page);
}

#[tokio::test]
async fn a_model_that_did_not_open_is_listed_and_refuses_work() {
    let service = Service::closed(&[]);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    let mut house = support::house("sst2", &folder);
    house.models.put("broken", Entry::Failed("config.json: no such file".to_owned()));
    service.door.open(house);
    let page = service.get("/models/broken").await.good();
    assert_eq!((&page["status"], &page["reason"]), (&"failed".into(), &"config.json: no such file".into()));
    let body = serde_json::json!({ "inputs": "a", "model": "broken" });
    assert_eq!(service.post("/predict", body).await.refusal(), "503 model-failed");
}

#[tokio::test]
async fn a_first_model_that_did_not_open_is_not_replaced_by_another() {
    let service = Service::closed(&[]);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    let mut house = support::house("sst2", &folder);
    let mut models = Shelf::default();
    models.put("broken", Entry::Failed("config.json: no such file".to_owned()));
    house.models.iter().for_each(|(name, entry)| models.put(name, entry.clone()));
    house.models = models;
    service.door.open(house);
    let answer = service.post("/predict", serde_json::json!({ "inputs": "a" })).await;
    assert_eq!(answer.refusal(), "503 model-failed");
    assert!(answer.json()["detail"].as_str().unwrap().contains("`broken`"));
    let body = serde_json::json!({ "inputs": "a", "model": "sst2" });
    service.post("/predict", body).await.good();
}

#[tokio::test]
async fn a_method_whose_defaults_do_not_suit_a_model_says_which_do() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    let mut model = Model::open("bare", &folder, &support::open_settings()).unwrap();
    (model.special.mask, model.special.unk, model.special.pad) = (None, None, None);
    let mut house = support::house("sst2", &folder);
    house.models.put("bare", Entry::Ready(model.into()));
    let service = Service::closed(&[]);
    service.door.open(house);
    let page = service.get("/models/bare").await.good();
    for method in page["methods"].as_array().unwrap() {
        let path = format!("/explain/{}", method["method"].as_str().unwrap());
        let body = serde_json::json!({ "inputs": "fine film", "model": "bare", "timeout_ms": 60_000 });
        let answer = service.post(&path, body).await;
        assert_eq!(method["available"], answer.status.is_success(), "{method}");
    }
    let missing = &page["methods"][0]["missing"];
    assert_eq!(missing["code"], "parameters");
    assert!(missing["reason"].as_str().unwrap().contains("take one of: delete"), "{missing}");
    let body =
        serde_json::json!({ "inputs": "fine", "model": "bare", "parameters": { "operation": "delete" } });
    service.post("/explain/leave-one-out", body).await.good();
}

#[tokio::test]
async fn an_unknown_model_is_a_problem() {
    assert_eq!(Service::bundled().get("/models/nobody").await.refusal(), "404 unknown-model");
}
