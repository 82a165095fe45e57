//! Identity, refusals, keys and origins: alike on every route.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use explaind::explain::registry::METHODS;
use serde_json::{Value, json};

use crate::service::{REVIEW, Service};

#[tokio::test]
async fn a_request_id_is_made_and_a_sane_one_is_kept() {
    let service = Service::bundled();
    let made = service.get("/livez").await;
    assert_eq!(made.header("x-request-id").len(), 36);
    let ask = |id: &str| Request::get("/nowhere").header("x-request-id", id).body(Body::empty()).unwrap();
    let kept = service.ask(ask("caller-7")).await;
    assert_eq!(kept.header("x-request-id"), "caller-7");
    assert_eq!(kept.json()["request_id"], "caller-7");
    let replaced = service.ask(ask("a\" b")).await;
    assert_eq!(replaced.header("x-request-id").len(), 36);
}

#[tokio::test]
async fn an_unknown_path_is_a_problem() {
    assert_eq!(Service::bundled().get("/nowhere").await.refusal(), "404 unknown-route");
}

#[tokio::test]
async fn a_wrong_verb_is_a_problem_that_names_the_right_one() {
    for (path, allowed) in [("/predict", "POST"), ("/explain/leave-one-out", "POST"), ("/models", "GET,HEAD")]
    {
        let answer = Service::bundled().verb(Method::DELETE, path).await;
        assert_eq!(answer.refusal(), "405 method-not-allowed");
        assert_eq!(answer.header("allow"), allowed);
    }
}

#[tokio::test]
async fn work_is_refused_until_models_are_open() {
    let service = Service::closed(&[]);
    let work = service.post("/predict", json!({ "inputs": REVIEW })).await;
    for answer in [work, service.get("/models").await, service.get("/readyz").await] {
        assert_eq!(answer.refusal(), "503 starting");
        assert_eq!(answer.header("retry-after"), "1");
    }
}

#[tokio::test]
async fn a_path_that_is_no_utf8_leads_nowhere() {
    let service = Service::bundled();
    for path in ["/models/%ff", "/methods/%ff", "/problems/%ff"] {
        assert_eq!(service.get(path).await.refusal(), "404 unknown-route", "{path}");
    }
    let answer = service.post("/explain/%ff", json!({ "inputs": REVIEW })).await;
    assert_eq!(answer.refusal(), "404 unknown-route");
}

#[tokio::test]
async fn where_keys_are_set_only_they_open_and_probes_stay_open() {
    let service = Service::with(&["--api-key=right"]);
    let ask = |key: Option<&str>| {
        let request = Request::post("/predict").header("content-type", "application/json");
        let request =
            key.into_iter().fold(request, |it, key| it.header("authorization", format!("Bearer {key}")));
        request.body(Body::from(json!({ "inputs": REVIEW }).to_string())).unwrap()
    };
    for wrong in [None, Some("wrong"), Some("")] {
        let answer = service.ask(ask(wrong)).await;
        assert_eq!(answer.refusal(), "401 unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(service.ask(ask(Some("right"))).await.status, StatusCode::OK);
    let lower = Request::get("/models").header("authorization", "bearer right");
    assert_eq!(service.ask(lower.body(Body::empty()).unwrap()).await.status, StatusCode::OK);
    for open in ["/livez", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(service.get(open).await.status, StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn only_named_origins_may_call_from_a_browser() {
    let ask = |origin: &str| {
        let request = Request::options("/predict").header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let request = request.header("access-control-request-headers", "authorization,content-type");
        request.body(Body::empty()).unwrap()
    };
    let service = Service::with(&["--cors-origin=https://shop.example"]);
    let named = service.ask(ask("https://shop.example")).await;
    assert_eq!(named.header("access-control-allow-origin"), "https://shop.example");
    assert!(named.header("access-control-allow-headers").contains("authorization"));
    let other = service.ask(ask("https://other.example")).await;
    assert_eq!(other.header("access-control-allow-origin"), "");
    let off = Service::bundled().ask(ask("https://shop.example")).await;
    assert_eq!(off.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn the_home_page_lists_every_route() {
    let service = Service::bundled();
    let home = service.get("/").await.good();
    assert_eq!(home["name"], "explaind");
    for line in home["routes"].as_array().unwrap() {
        let (verb, path) = line.as_str().unwrap().split_once(' ').unwrap();
        if verb == "GET" && !path.contains('{') {
            let status = service.get(path).await.status;
            assert!(status.is_success() || status.is_redirection(), "{path}: {status}");
        }
    }
}

/// The answer to each question, read through the schema that is published for it.
#[tokio::test]
async fn answers_fit_their_published_schemas() {
    let service = Service::bundled();
    let document = service.get("/openapi.json").await.good();
    let fits = |verb: &str, path: &str, answer: Value| {
        let content = &document["paths"][path][verb]["responses"]["200"]["content"];
        let mut schema = content["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{verb} {path} has no schema");
        schema["components"] = document["components"].clone();
        let schema = jsonschema::draft202012::new(&schema).expect("a schema");
        let misfits: Vec<String> =
            schema.iter_errors(&answer).map(|it| format!("{}: {it}", it.instance_path())).collect();
        assert!(misfits.is_empty(), "{verb} {path}: {misfits:#?}");
    };
    for (path, asked) in [
        ("/", "/"),
        ("/methods", "/methods"),
        ("/methods/{method}", "/methods/lrp"),
        ("/models", "/models"),
        ("/models/{model}", "/models/sst2"),
        ("/problems/{slug}", "/problems/overloaded"),
        ("/livez", "/livez"),
        ("/readyz", "/readyz"),
        ("/startupz", "/startupz"),
        ("/health", "/health"),
    ] {
        fits("get", path, service.get(asked).await.good());
    }
    for inputs in [json!(REVIEW), json!([REVIEW])] {
        fits("post", "/predict", service.post("/predict", json!({ "inputs": inputs })).await.good());
    }
    for method in METHODS {
        let path = format!("/explain/{}", method.about().slug);
        let example =
            document["paths"][&path]["post"]["requestBody"]["content"]["application/json"]["example"].clone();
        fits("post", &path, service.post(&path, example).await.good());
    }
}
