//! This file is where the reader meets files that somebody damaged: it may refuse them, never panic.

use std::fs;
use std::path::Path;

use explaind::compile::graph::Graph;
use explaind::compile::normalise::normalise;
use explaind::compile::probe::ids_input;
use explaind::compile::{no_external, read, write};
use proptest::prelude::*;

/// A model with subgraphs, one with half-precision weights and one of few nodes.
const SEEDS: [&str; 3] =
    ["ops/if_shape_constant.onnx", "ops/softmax_isnan_guard_all_masked.onnx", "ops/gemm_t11.onnx"];

fn seed(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo").join(name)).unwrap()
}

/// Everything that looks at a graph before ONNX Runtime has judged it.
fn look(mut graph: Graph) {
    let _ = graph.to_string();
    if normalise(&mut graph).is_ok() {
        let _ = ids_input(&graph);
        let _ = read(write(&graph).into(), &no_external);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_files_are_read_or_refused(
        which in 0..SEEDS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = seed(SEEDS[which]);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(graph) = read(bytes.into(), &no_external) {
            look(graph);
        }
    }

    #[test]
    fn noise_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(graph) = read(bytes.into(), &no_external) {
            look(graph);
        }
    }
}

#[test]
fn every_seed_of_the_fuzz_target_is_read_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/reader");
    let (mut accepted, mut refused) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        match read(fs::read(entry.unwrap().path()).unwrap().into(), &no_external) {
            Ok(graph) => {
                look(graph);
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted >= 10 && refused >= 2, "{accepted} {refused}");
}

#[test]
fn what_is_written_reads_back_to_the_same_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public");
    for entry in fs::read_dir(folder).unwrap() {
        let bytes = fs::read(entry.unwrap().path().join("model.onnx")).unwrap();
        let graph = read(bytes.into(), &no_external).unwrap();
        let again = read(write(&graph).into(), &no_external).unwrap();
        assert_eq!(again.to_string(), graph.to_string());
        assert_eq!(again.initializers, graph.initializers);
    }
}
