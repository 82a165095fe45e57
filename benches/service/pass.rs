//! Single passes on demand, for comparison with another program, and what deriving the gradient costs.

use std::{collections::BTreeMap, io::BufRead, path::Path, sync::Arc, time::Duration};

use explaind::{
    compile::{
        Compiled,
        composite::Composite,
        graph::{Graph, Tensor},
        probe::{Batch, Hints},
    },
    model::{GradientGraph, Manifest, Model, OpenSettings, derived, graphs},
    runtime::{
        Data, Device, Extra, Optimise, Program, Row, Runtime, Session, SessionSettings, SharedWeights,
        Tensor as Fed, granted_cores, release_freed_memory,
    },
};

use crate::{
    measure::{median, memory, row, table, timed},
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
            let rows = points(&model, graph, rows);
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

/// The rows as points of gradient passes: their own embeddings, and the first label's cotangent.
pub fn points(model: &Model, graph: &GradientGraph, rows: Vec<Row>) -> Vec<Row> {
    let cotangent: Arc<[f32]> = (0..model.labels.len()).map(|at| f32::from(at == 0)).collect();
    let point = |row: Row| {
        let point: Arc<[f32]> = row.ids.iter().flat_map(|&id| graph.words.row(id)).copied().collect();
        Row { extras: vec![Extra::Values(point), Extra::Values(cotangent.clone())], ..row }
    };
    rows.into_iter().map(point).collect()
}

/// A row of so many tokens, by its number.
pub fn ids(number: usize, tokens: usize) -> Row {
    Row::of((0..tokens).map(|at| (1000 + (number * 31 + at * 7) % 2000) as u32).collect::<Vec<_>>(), None)
}

/// The time and memory of reading a model and deriving its gradient graph, without the runs that measure it.
pub fn derive(folder: &Path) {
    let file = folder.join("model.onnx");
    let size = std::fs::metadata(&file).expect("the model is there").len() as f64 / (1 << 20) as f64;
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let before = memory(std::process::id(), "VmRSS:");
    let weights = SharedWeights::default();
    let (reading, graph) = timed(|| graphs::read_shared(&file, &weights).expect("the model reads"));
    release_freed_memory();
    let read = memory(std::process::id(), "VmRSS:");
    let ran = std::cell::Cell::new(Duration::ZERO);
    let run = |graph: &Graph, batches: &[Batch]| -> Result<Vec<Vec<Option<Tensor>>>, String> {
        let (time, outputs) = timed(|| derived::evaluate(&runtime, &weights, graph, batches));
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

/// The time of one worker's gradient pass of so many rows of so many tokens, by type of operator.
pub fn profile(folder: &Path, rows: usize, tokens: usize) {
    const RUNS: usize = 10;
    let mut runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let (manifest, weights) =
        (Manifest::read(folder, None).expect("the folder reads"), SharedWeights::default());
    let graph = graphs::read_shared(&manifest.graph, &weights).expect("the model reads");
    let (compiled, _) =
        derived::compile_to_serve(graph, &runtime, &weights, &manifest).expect("the structure is found");
    let gradient = graphs::runnable(&compiled.gradient.as_ref().expect("the gradient is derived").graph);
    // The profiler's own small pieces of memory would lie in the gaps that large tensors leave, and each tensor then come
    // from new memory, at the price of its page faults: more than an addition takes. An arena keeps the two apart.
    runtime.settings = SessionSettings { profile: true, arena: true, ..runtime.settings };
    let mut session =
        Session::open(&runtime, &gradient, &weights, Optimise::Everything).expect("a session opens");
    let numbers: Vec<i64> = (0..rows).flat_map(|row| ids(row, tokens).ids.to_vec()).map(i64::from).collect();
    let embedded =
        compiled.lookup(&numbers, &[rows, tokens]).and_then(|it| it.to_f32()).expect("known tokens");
    let logits = compiled.probe.facts.get(&compiled.logits.value).and_then(|it| it.shape.last()?.constant());
    let labels = logits.expect("the labels are counted");
    let feed = |name: &str| {
        let dims = vec![rows, tokens];
        match name {
            "inputs_embeds" => {
                Fed { dims: vec![rows, tokens, compiled.embedding.hidden], data: Data::F32(embedded.clone()) }
            }
            "cotangent" => Fed { dims: vec![rows, labels], data: Data::F32(vec![1.0; rows * labels]) },
            "input_ids" => Fed { dims, data: Data::I64(numbers.clone()) },
            "attention_mask" => Fed { dims, data: Data::I64(vec![1; rows * tokens]) },
            _ => Fed { dims, data: Data::I64(vec![0; rows * tokens]) },
        }
    };
    let (inputs, outputs) = (session.inputs(), session.outputs());
    for _ in 0..RUNS {
        let inputs = inputs.iter().map(|it| (it.name.clone(), feed(&it.name))).collect();
        session.run(inputs, outputs.iter().map(|it| it.name.as_str())).expect("it runs");
    }
    let path = session.end_profiling().expect("a profile");
    let events: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&path).expect("the profile reads")).expect("a list of events");
    std::fs::remove_file(path).expect("the profile is there");
    let kernels = events.iter().filter(|it| it["cat"] == "Node");
    let mut nodes: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for event in kernels.filter(|it| it["name"].as_str().is_some_and(|it| it.ends_with("_kernel_time"))) {
        let [operator, node] =
            [&event["args"]["op_name"], &event["name"]].map(|it| it.as_str().unwrap_or_default());
        nodes.entry((operator, node)).or_default().push(event["dur"].as_f64().unwrap_or(0.0) / 1e3);
    }
    let mut times: BTreeMap<&str, f64> = BTreeMap::new();
    // Of every node the median over runs: the first one finds no memory yet.
    nodes.iter().for_each(|((operator, _), runs)| *times.entry(operator).or_default() += median(runs));
    let mut times: Vec<(&str, f64)> = times.into_iter().collect();
    times.sort_by(|a, b| b.1.total_cmp(&a.1));
    let whole: f64 = times.iter().map(|it| it.1).sum();
    table(&["operator", "ms", "share"]);
    for (operator, time) in times.iter().filter(|it| it.1 > 0.005 * whole) {
        row(&[format!("`{operator}`"), format!("{time:.1}"), format!("{:.1} %", 100.0 * time / whole)]);
    }
    row(&["all".to_owned(), format!("{whole:.1}"), "100 %".to_owned()]);
}
