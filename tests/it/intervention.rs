//! This file is where hidden states are read and edited: against PyTorch's, and against runs without any edit.

use std::path::Path;

use explaind::model::Model;
use explaind::runtime::{Extra, Row, RowOut};

use crate::arrays::Arrays;
use crate::models::all;
use crate::reference::{gap, references, with_lane};

/// How far logits and states may be off.
const TOLERANCE: f64 = 1e-3;

/// The rows of a folder's reference with their word embeddings as an extra.
fn embedded(model: &Model, folder: &Path) -> Vec<Row> {
    let words = &model.intervention().unwrap_or_else(|it| panic!("{}: {it}", model.name)).embedded.words;
    let point = |row: &Row| -> Vec<f32> { row.ids.iter().flat_map(|&id| words.row(id)).copied().collect() };
    let rows = references(folder, "").into_iter().map(|it| it.row);
    rows.map(|row| Row { extras: vec![Extra::Values(point(&row).into())], ..row }).collect()
}

/// Logits and hidden states of every row.
fn states(model: &Model, rows: &[Row]) -> Vec<RowOut> {
    let program = model.intervention().expect("an intervention graph").states().expect("it opens");
    with_lane(|lane| lane.evaluate(&program, rows.to_vec())).expect("states")
}

/// The logits from hidden state `layer` on, which each row gets from `given`.
fn restarted(model: &Model, rows: &[Row], layer: usize, given: impl Fn(usize) -> Vec<f32>) -> Vec<Vec<f32>> {
    let restart = model.intervention().expect("an intervention graph").from_state(layer).expect("it opens");
    let row = |(at, row): (usize, &Row)| Row {
        extras: [Extra::Values(given(at).into())].into_iter().chain(row.extras.clone()).collect(),
        ..row.clone()
    };
    let rows = rows.iter().enumerate().map(row).collect();
    let outs = with_lane(|lane| lane.evaluate(&restart.program, rows)).expect("logits");
    outs.into_iter().map(|mut it| it.values.swap_remove(0)).collect()
}

#[test]
fn hidden_states_are_those_of_pytorch() {
    for (folder, model) in all() {
        let mut arrays = Arrays::open(&folder.join("reference.npz"));
        let rows = embedded(model, folder);
        let outs = states(model, &rows);
        let widths = &model.intervention().unwrap().widths;
        let known = arrays.names().iter().filter(|it| it.starts_with("hidden_states_")).count();
        assert_eq!(widths.len(), known, "{}", model.name);
        for (layer, width) in widths.iter().enumerate() {
            let wanted = arrays.floats(&format!("hidden_states_{layer}")).expect("a state");
            let length = wanted.dims()[1];
            let wanted = wanted.to_f64().expect("floats");
            for (at, (out, row)) in outs.iter().zip(&rows).enumerate() {
                let of_row = &wanted[at * length * width..][..row.len() * width];
                let gap = gap(&out.values[1 + layer], of_row);
                assert!(gap <= TOLERANCE, "{}: hidden state {layer} is off by {gap:e}", model.name);
            }
        }
    }
}

#[test]
fn a_state_put_back_changes_nothing_in_any_layer() {
    for (folder, model) in all() {
        let rows = embedded(model, folder);
        let outs = states(model, &rows);
        let wanted = references(folder, "");
        for layer in 0..model.intervention().unwrap().widths.len() {
            let logits = restarted(model, &rows, layer, |at| outs[at].values[1 + layer].clone());
            for (found, wanted) in logits.iter().zip(&wanted) {
                let gap = gap(found, &wanted.logits);
                assert!(gap <= TOLERANCE, "{}, layer {layer}: logits are off by {gap:e}", model.name);
            }
        }
    }
}

#[test]
fn what_lies_behind_a_state_is_all_that_is_computed() {
    for (_, model) in all() {
        let graph = model.intervention().unwrap();
        for layer in 0..graph.widths.len() {
            assert!(!graph.from_state(layer).unwrap().reads_embeddings, "{}, layer {layer}", model.name);
        }
    }
}
