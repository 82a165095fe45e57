//! This file is where the model with less work meets the model: the same logits, and as much less work as there
//! should be.

use std::fs;
use std::path::{Path, PathBuf};

use explaind::compile::probe::{Batch, Hints};
use explaind::compile::{Compiled, lean, narrow, no_external, read};

use crate::arrays::Arrays;
use crate::evaluate::{evaluate, named};

fn open(model: &Path) -> Compiled {
    let graph = read(fs::read(model).unwrap().into(), &no_external).unwrap();
    Compiled::open(graph, &Hints::default(), &evaluate).unwrap_or_else(|it| panic!("{model:?}: {it}"))
}

fn root(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

#[test]
fn every_lean_model_gives_the_model_s_logits_at_every_size() {
    let folders = fs::read_dir(root("tests/zoo/public")).unwrap().map(|it| it.unwrap().path());
    let mut lean_models = 0;
    for folder in folders {
        let compiled = open(&folder.join("model.onnx"));
        let Some(lean) = compiled.lean else { continue };
        lean_models += 1;
        let mut arrays = Arrays::open(&folder.join("reference.npz"));
        for prefix in ["", "b1_", "b4_"] {
            let mut batch = Batch::new();
            for port in &compiled.graph.inputs {
                let ids = arrays.ints(&format!("{prefix}{}", port.value)).unwrap();
                batch.push(named(&port.value, ids));
            }
            let found = evaluate(&lean, &[batch]).unwrap().remove(0).remove(0).unwrap().to_f64().unwrap();
            let wanted = arrays.floats(&format!("{prefix}logits")).unwrap().to_f64().unwrap();
            let size = wanted.iter().fold(0.0, |size: f64, it| size.max(it.abs()));
            let gap = found.iter().zip(&wanted).fold(0.0, |gap: f64, (a, b)| gap.max((a - b).abs()));
            assert!(
                found.len() == wanted.len() && gap <= 1e-4 * size,
                "{folder:?} {prefix}: {gap:e} of {size:e}"
            );
        }
    }
    // Decoders pool where the text ends, and an encoder may average: these have nothing to spare.
    assert!(lean_models >= 20, "{lean_models} lean models");
}

/// Multiplications of one row of the bundled model: three layers, width 384, twelve heads.
mod count {
    const H: f64 = 384.0;
    const HEADS: f64 = 12.0;
    /// Pooler and classifier.
    const HEAD: f64 = H * H + 2.0 * H;

    /// Queries, keys, values, output and feed-forward are twelve squares; scores and context two products.
    fn layer(t: f64) -> f64 {
        12.0 * H * H * t + 2.0 * t * t * H
    }

    pub fn whole(t: f64) -> f64 {
        3.0 * layer(t) + HEAD
    }

    /// The last layer for one position; keys and values of all.
    pub fn narrow(t: f64) -> f64 {
        2.0 * layer(t) + 10.0 * H * H + 2.0 * H * H * t + 2.0 * t * H + HEAD
    }

    /// The last layer for one position; query and context go through the weights instead, and meet the hidden
    /// states in every head; the key's bias is one more product.
    pub fn lean(t: f64) -> f64 {
        2.0 * layer(t) + 12.0 * H * H + 2.0 * HEADS * H * t + H + HEAD
    }
}

#[test]
fn keys_and_values_that_one_query_reads_are_never_computed() {
    let compiled = open(&root("models/sst2/model.onnx"));
    // At the length of the longer probe.
    let part = |of: fn(f64) -> f64| 1.0 - of(23.0) / count::whole(23.0);
    let narrow = narrow::narrow(&compiled.forward).unwrap().1;
    assert!((narrow.part - part(count::narrow)).abs() < 1e-6, "{} {}", narrow.part, part(count::narrow));
    let (_, lean) = lean::lean(&compiled.forward).unwrap();
    assert!((lean.part - part(count::lean)).abs() < 1e-6, "{} {}", lean.part, part(count::lean));
    assert!(compiled.lean.is_some());
}
