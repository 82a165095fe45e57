//! The served document equals the committed one.

use std::path::Path;

use explaind::api::openapi::Document;

/// Run with `UPDATE_OPENAPI=1` after an intended change, and read the diff.
#[test]
fn the_committed_document_is_the_served_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let served = Document::build().expect("a document").text;
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &served).expect("openapi/ is writable");
    }
    let committed = std::fs::read(&path).unwrap_or_default();
    assert!(
        committed == served,
        "openapi/openapi.json is not what is served: run UPDATE_OPENAPI=1 cargo test --test it openapi"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    let document: serde_json::Value =
        serde_json::from_slice(&Document::build().expect("a document").text).expect("JSON");
    let text = document.to_string();
    for target in text.split("\"$ref\":\"#").skip(1).filter_map(|it| it.split('"').next()) {
        assert!(document.pointer(target).is_some(), "{target}");
    }
}

#[test]
fn every_response_is_described_and_every_refusal_is_a_problem() {
    let document: serde_json::Value =
        serde_json::from_slice(&Document::build().expect("a document").text).expect("JSON");
    for (path, verbs) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in verbs.as_object().expect("verbs") {
            let responses = operation["responses"].as_object().expect("responses");
            for (status, response) in responses {
                assert!(response["description"].is_string(), "{verb} {path} {status}");
                let is_problem = !response["content"]["application/problem+json"].is_null();
                assert_eq!(is_problem, !status.starts_with('2'), "{verb} {path} {status}");
                assert_eq!(
                    matches!(status.as_str(), "429" | "503"),
                    !response["headers"]["retry-after"].is_null(),
                    "{verb} {path} {status}"
                );
            }
            assert!(responses.contains_key("405"), "{verb} {path}");
            assert_eq!(responses.contains_key("408"), verb == "post", "{verb} {path}");
        }
    }
    assert!(!document["paths"]["/models"]["get"]["responses"]["401"].is_null());
    assert!(document["paths"]["/livez"]["get"]["responses"]["401"].is_null());
}
