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
