//! Single passes on demand, for comparison with another program, and what deriving the gradient costs.

use std::{io::BufRead, path::Path, sync::Arc, time::Duration};

use explaind::{
    compile::{
        Compiled,
        composite::Composite,
        graph::{Graph, Tensor},
        probe::{Batch, Hints},
    },
    model::{Model, OpenSettings, graphs},
    runtime::{Device, Extra, Program, Row, Runtime, SharedWeights, granted_cores, release_freed_memory},
};

use crate::{
    evaluate,
    measure::{memory, row, table, timed},
    numbers::engine,
};

/// Reads lines `file|forward|gradient|COMPOSITE ROWS TOKENS` and answers each with the milliseconds that the engine took;
/// `file` is the model's file as it is, `forward` what the service makes of it.
pub fn serve(folder: &Path) {
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let settings = OpenSettings { runtime, workers: granted_cores() };
    let model = Model::open("model", folder, &settings).expect("the model opens");
    let graph = model.gradient().unwrap_or_else(|missing| panic!("{}", missing.reason));
    let file = graphs::runnable(&graphs::read(&folder.join("model.onnx")).expect("the model reads"));
    let weights = SharedWeights::default();
    let (kind, layout) = (model.forward.kind, model.forward.layout.clone());
    let file = Program::open(&settings.runtime, &file, &weights, kind, layout, settings.workers);
    let file = Arc::new(file.expect("the model's file runs"));
    let (_scheduler, lane) = engine(512);
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line of text");
        let words: Vec<&str> = line.split(' ').collect();
        let [what, count, tokens] = words[..] else { panic!("`{line}` is not a command") };
        let [count, tokens] = [count, tokens].map(|it| it.parse::<usize>().expect("a number"));
        let rows: Vec<Row> = (0..count).map(|number| ids(number, tokens)).collect();
        let composite = Composite::ALL.into_iter().find(|it| it.slug() == what);
        let relevance = composite.map(|it| {
            model.relevance(it).unwrap_or_else(|missing| panic!("{}", missing.reason)).program.clone()
        });
        let (time, answers) = if what == "gradient" || relevance.is_some() {
            let cotangent: Arc<[f32]> = (0..model.labels.len()).map(|at| f32::from(at == 0)).collect();
            let rows = rows.into_iter().map(|row| {
                let point: Arc<[f32]> = row.ids.iter().flat_map(|&id| graph.words.row(id)).copied().collect();
                Row { extras: vec![Extra::Values(point), Extra::Values(cotangent.clone())], ..row }
            });
            let rows = rows.collect();
            let program = relevance.as_ref().unwrap_or(&graph.gradient);
            timed(|| lane.evaluate(program, rows))
        } else {
            let program = if what == "file" { &file } else { &model.forward };
            timed(|| lane.evaluate(program, rows))
        };
        assert_eq!(answers.expect("the rows run").len(), count);
        println!("{}", time.as_secs_f64() * 1e3);
    }
}

fn ids(number: usize, tokens: usize) -> Row {
    Row::of((0..tokens).map(|at| (1000 + (number * 31 + at * 7) % 2000) as u32).collect::<Vec<_>>(), None)
}

/// The time and memory of reading a model and deriving its gradient graph, without the runs that measure it.
pub fn derive(folder: &Path) {
    let file = folder.join("model.onnx");
    let size = std::fs::metadata(&file).expect("the model is there").len() as f64 / (1 << 20) as f64;
    let before = memory(std::process::id(), "VmRSS:");
    let (reading, graph) = timed(|| graphs::read(&file).expect("the model reads"));
    let read = memory(std::process::id(), "VmRSS:");
    let ran = std::cell::Cell::new(Duration::ZERO);
    let run = |graph: &Graph, batches: &[Batch]| -> Result<Vec<Vec<Option<Tensor>>>, String> {
        let (time, outputs) = timed(|| evaluate::evaluate(graph, batches));
        ran.set(ran.get() + time);
        outputs
    };
    let hints = Hints { pad: Some(0), ..Hints::default() };
    let (all, compiled) = timed(|| Compiled::open(graph, &hints, &run).expect("the structure is found"));
    assert!(compiled.gradient.is_ok(), "the gradient is derived");
    release_freed_memory();
    let after = memory(std::process::id(), "VmRSS:");
    table(&[
        "model MiB",
        "reading",
        "deriving",
        "runs that probe and measure it",
        "resident after reading",
        "and after deriving",
    ]);
    row(&[
        format!("{size:.1}"),
        format!("{:.3} s", reading.as_secs_f64()),
        format!("{:.3} s", (all - ran.get()).as_secs_f64()),
        format!("{:.3} s", ran.get().as_secs_f64()),
        format!("{:+.2} x the model", (read - before) / size),
        format!("{:+.2} x the model", (after - before) / size),
    ]);
}
