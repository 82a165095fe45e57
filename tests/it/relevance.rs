//! Relevance graphs of every composite on every model of the zoo: they compute the model's logits, and their books
//! close.

use std::fs;
use std::path::{Path, PathBuf};

use explaind::compile::composite::Composite;
use explaind::compile::probe::Hints;
use explaind::compile::relevance::audit::audit;
use explaind::compile::{Compiled, no_external, read};

use crate::evaluate::evaluate;

fn folders() -> Vec<PathBuf> {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public");
    let mut paths: Vec<PathBuf> = fs::read_dir(zoo).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_composite_closes_its_books_on_every_architecture() {
    let mut failures = Vec::new();
    for folder in folders() {
        let graph = read(fs::read(folder.join("model.onnx")).unwrap().into(), &no_external).unwrap();
        let hints = Hints { pad: Some(1), eos: None };
        let compiled = Compiled::structure(graph, &hints, &evaluate).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for composite in Composite::ALL {
            let relevance = compiled.relevance(composite);
            if let Err(refusal) = relevance.and_then(|it| audit(&compiled, &it.graph, &hints, &evaluate)) {
                failures.push(format!("{name} {}: {refusal} {:?}", composite.slug(), refusal.gaps));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
