//! This file is where derived gradients meet reference gradients: PyTorch in float64 for whole models, central
//! differences in float64 for single operators.
//!
//! `tests/zoo/public` holds tiny random classifiers of many architectures and exporters, `tests/zoo/ops`
//! one-operator graphs, `tests/zoo/refuse` what must be refused or degrade.

use std::fs;
use std::path::{Path, PathBuf};

use explaind::compile::graph::Tensor;
use explaind::compile::probe::{Batch, Hints};
use explaind::compile::{Compiled, no_external, read};
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::NpzReader;

use crate::evaluate::{Program, evaluate, named};

/// How far a gradient may be off, in parts of the reference's largest value.
const TOLERANCE: f64 = 1e-3;

fn zoo(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo").join(folder)
}

/// Arrays of an `.npz` file.
struct Arrays(NpzReader<fs::File>);

impl Arrays {
    fn open(path: &Path) -> Self {
        Self(NpzReader::new(fs::File::open(path).unwrap()).unwrap())
    }

    fn names(&mut self) -> Vec<String> {
        let names = self.0.names().unwrap();
        names.into_iter().map(|it| it.trim_end_matches(".npy").to_owned()).collect()
    }

    fn ints(&mut self, name: &str) -> Option<Tensor> {
        let array: ArrayD<i64> = self.0.by_name::<ndarray::OwnedRepr<i64>, IxDyn>(name).ok()?;
        Some(Tensor::from_i64(array.shape(), &array.iter().copied().collect::<Vec<_>>()))
    }

    fn floats(&mut self, name: &str) -> Option<Tensor> {
        let array: ArrayD<f32> = self.0.by_name::<ndarray::OwnedRepr<f32>, IxDyn>(name).ok()?;
        Some(Tensor::from_f32(array.shape(), &array.iter().copied().collect::<Vec<_>>()))
    }

    fn doubles(&mut self, name: &str) -> Option<Vec<f64>> {
        let array: ArrayD<f64> = self.0.by_name::<ndarray::OwnedRepr<f64>, IxDyn>(name).ok()?;
        Some(array.iter().copied().collect())
    }
}

/// Opens a model as a server would.
fn open(path: &Path) -> Result<Compiled, String> {
    let graph = read(fs::read(path).unwrap().into(), &no_external).map_err(|error| error.to_string())?;
    Compiled::open(graph, &Hints::default(), &evaluate).map_err(|error| error.to_string())
}

/// The rows of the table that the ids name.
fn lookup(compiled: &Compiled, ids: &Tensor) -> Tensor {
    let table = compiled.graph.initializers[&compiled.embedding.table].to_f32().unwrap();
    let hidden = compiled.embedding.hidden;
    let ids = (ids.to_i64().unwrap(), ids.dims().to_vec());
    let rows = ids.0.iter().flat_map(|&it| &table[it as usize * hidden..(it as usize + 1) * hidden]);
    Tensor::from_f32(&[ids.1[0], ids.1[1], hidden], &rows.copied().collect::<Vec<_>>())
}

/// The worst error of the derived gradient over the sizes stored, in parts of the largest reference value.
fn worst_error(model: &Path, reference: &Path, prefixes: &[&str]) -> Result<f64, String> {
    let compiled = open(model)?;
    let gradient = compiled.gradient.as_ref().map_err(|refusal| refusal.to_string())?;
    let mut program = Program::open(gradient)?;
    let mut arrays = Arrays::open(reference);
    let names = arrays.names();
    let mut worst: f64 = 0.0;
    for prefix in prefixes {
        let mut batch: Batch = Vec::new();
        for port in &compiled.graph.inputs {
            let name = format!("{prefix}{}", port.value);
            batch.push(named(&port.value, arrays.ints(&name).ok_or(format!("no {name} in {names:?}"))?));
        }
        let ids = batch.iter().find(|it| &*it.0 == "input_ids").unwrap().1.clone();
        batch.push(named("inputs_embeds", lookup(&compiled, &ids)));
        batch.push(named("cotangent", arrays.floats(&format!("{prefix}cotangent")).unwrap()));
        let grad = program.run(&batch)?.pop().flatten().unwrap().to_f64().unwrap();
        let reference = arrays.doubles(&format!("{prefix}grad")).unwrap();
        let size = reference.iter().fold(0.0, |size: f64, it| size.max(it.abs()));
        if grad.len() != reference.len() {
            return Err(format!("{} values instead of {}", grad.len(), reference.len()));
        }
        let gap = grad.iter().zip(&reference).map(|(a, b)| (a - b).abs());
        let error = gap.fold(0.0, |gap: f64, it| if it.is_nan() { f64::INFINITY } else { gap.max(it) });
        worst = worst.max(if size > 0.0 { error / size } else { error });
    }
    Ok(worst)
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(zoo(folder)).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    paths
}

fn assert_all_agree(cases: impl Iterator<Item = (String, Result<f64, String>)>) {
    let mut failures = Vec::new();
    let mut count = 0;
    for (name, outcome) in cases {
        count += 1;
        match outcome {
            Ok(error) if error <= TOLERANCE => {}
            Ok(error) => failures.push(format!("{name}: off by {error:.1e}")),
            Err(reason) => failures.push(format!("{name}: {reason}")),
        }
    }
    assert!(count > 0 && failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_architecture_agrees_with_pytorch_at_every_size() {
    assert_all_agree(entries("public").into_iter().map(|folder| {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let error =
            worst_error(&folder.join("model.onnx"), &folder.join("reference.npz"), &["", "b1_", "b4_"]);
        (name, error)
    }));
}

#[test]
fn every_operator_agrees_with_central_differences() {
    let missing = fs::read_to_string(zoo("missing.txt")).unwrap();
    let missing: Vec<&str> = missing.split_whitespace().collect();
    let name = |it: &PathBuf| it.file_stem().unwrap().to_string_lossy().into_owned();
    let graphs = entries("ops").into_iter().filter(|it| it.extension().is_some_and(|it| it == "onnx"));
    let (uncovered, covered): (Vec<PathBuf>, _) = graphs.partition(|it| missing.contains(&name(it).as_str()));
    assert_all_agree(
        covered
            .into_iter()
            .map(|path| (name(&path), worst_error(&path, &path.with_extension("npz"), &["", "b3_"]))),
    );
    for path in uncovered {
        let outcome = worst_error(&path, &path.with_extension("npz"), &["", "b3_"]);
        assert!(outcome.is_err(), "{} is covered now: take it off the list", name(&path));
    }
}
