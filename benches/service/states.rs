//! Hidden units one by one: the service beside bare sessions of the graph that starts from a hidden state.

use std::sync::Arc;

use explaind::{
    compile::intervene,
    model::{Manifest, Model, derived, graphs},
    runtime::{Device, Extra, Optimise, Row, Runtime, SessionSettings, SharedWeights, granted_cores},
};
use serde_json::json;

use crate::{
    bare::{Bare, encoded, folder, review},
    host::Host,
    measure::{in_turn, line, median, ratio, timed},
    numbers::TOKENS,
};

/// Every layer's units, each zeroed alone, over HTTP; beside the same rows on bare sessions.
pub fn units(model: &Model, host: &Host, rounds: usize) {
    let manifest = Manifest::read(folder(), None).expect("the folder reads");
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let graph = graphs::read(&manifest.graph).expect("the model reads");
    let compiled =
        derived::compile(graph, &runtime, &SharedWeights::default(), &manifest).expect("a structure");
    let intervention = compiled.intervention.expect("an intervention graph");
    let text = review(model, TOKENS);
    let graph = model.intervention().expect("an intervention graph");
    let cores = granted_cores();
    for layer in 0..graph.widths.len() {
        let unit = json!({ "level": "hidden", "layer": layer, "unit": "unit" });
        let body = json!({ "inputs": text, "parameters": unit, "timeout_ms": 60_000 });
        let mut client = host.client();
        let passes = client.post("/explain/leave-one-out", &body)["usage"]["forward_passes"].as_u64();
        let passes = passes.expect("usage tells") as usize;
        let cut = intervene::from_state(&intervention.cut, graph.widths.len(), layer);
        let layout = graph.from_state(layer).expect("it opens").program.layout.clone();
        let runnable = graphs::runnable(&cut.graph);
        let mut bare = Bare::of(&runnable, &layout, cores, SessionSettings::default(), Optimise::Everything);
        let rows = edited(model, &text, graph.widths[layer], passes);
        let mut timed_sizes: Vec<(f64, usize)> = Vec::new();
        for size in [10, 20, 40, 80] {
            let times = (0..3).map(|_| bare.run(&rows, size).as_secs_f64());
            timed_sizes.push((times.fold(f64::MAX, f64::min), size));
        }
        timed_sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let best = timed_sizes[0].1;
        let body = body.to_string();
        let mut ours = || timed(|| client.exchange("/explain/leave-one-out", &body)).0;
        let times = in_turn(rounds, &mut [&mut ours, &mut || bare.run(&rows, best)]);
        let over = ratio(&times[0], &times[1]);
        let measured = format!(
            "{over:.3} ({:.1} against {:.1} ms; {passes} rows, bare in batches of {best})",
            median(&times[0]),
            median(&times[1])
        );
        let what = format!(
            "{} units of hidden state {layer}, {TOKENS} tokens: time by that of the bare rows",
            graph.widths[layer]
        );
        line(&what, measured, "≤ 1.25", over <= 1.25);
    }
}

/// As many rows as are asked for, each with one unit of a state zeroed.
fn edited(model: &Model, text: &str, width: usize, count: usize) -> Vec<Row> {
    let row = encoded(model, text);
    let state: Arc<[f32]> = (0..row.len() * width).map(|it| (it as f32 * 0.37).sin()).collect();
    let one = |number: usize| {
        let values =
            state.iter().enumerate().map(|(at, &it)| if at % width == number % width { 0.0 } else { it });
        Row { extras: vec![Extra::Values(values.collect())], ..row.clone() }
    };
    (0..count).map(one).collect()
}
