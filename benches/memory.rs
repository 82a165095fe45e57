//! Memory of each further session of one model: weights copied, and shared with their packed forms.
//!
//! `cargo bench --bench memory -- [MODEL_DIR]`. Each arrangement runs in a process of its own, whose allocator
//! gives freed memory back at once (one arena, a trim threshold of zero); what is counted is the process's
//! private memory, so that the mapped library and the page cache of files stay out of it.

use std::{env, fs, path::PathBuf, process::Command};

use explaind::{
    compile::onnx::write::write,
    model::graphs,
    runtime::{Device, Graph, Optimise, Runtime, Session, SharedWeights, Source, Tensor},
};

const SESSIONS: usize = 9;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    let (arrangement, folder) = match arguments.as_slice() {
        [arrangement, folder] => (Some(arrangement.clone()), PathBuf::from(folder)),
        [folder] => (None, PathBuf::from(folder)),
        _ => (None, PathBuf::from("models/sst2")),
    };
    if let Some(arrangement) = arrangement {
        return measure(&arrangement, &folder);
    }
    let program = env::current_exe().expect("a program has a path");
    println!(
        "| private MiB | first session | each further, median of {} | by the weights' size |",
        SESSIONS - 1
    );
    println!("|---|---|---|---|");
    for arrangement in ["file", "copied", "shared"] {
        let status = Command::new(&program)
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_TRIM_THRESHOLD_", "0")
            .env("MALLOC_TOP_PAD_", "0")
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .arg(arrangement)
            .arg(&folder)
            .status();
        assert!(status.is_ok_and(|it| it.success()), "{arrangement} failed");
    }
}

fn measure(arrangement: &str, folder: &std::path::Path) {
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let path = folder.join("model.onnx");
    let size = weights_size(&path);
    let (name, graph) = match arrangement {
        "file" => ("the file, opened each time", Graph::file(&path)),
        "copied" => {
            let graph = graphs::read(&path).expect("the model reads");
            let model = Source::Bytes(write(&graph).into());
            ("weights in float32 inside the graph", Graph { model, weights: Vec::new() })
        }
        _ => {
            let graph = graphs::runnable(&graphs::read(&path).expect("the model reads"));
            ("weights and packed forms shared (production)", graph)
        }
    };
    let weights = SharedWeights::default();
    let mut sessions = Vec::new();
    let mut sizes = vec![private()];
    for _ in 0..SESSIONS {
        let mut session =
            Session::open(&runtime, &graph, &weights, Optimise::Everything).expect("the session opens");
        let inputs =
            session.inputs().into_iter().map(|it| (it.name, Tensor::i64([1, 8], vec![1; 8]))).collect();
        session.run(inputs, ["logits"]).expect("the session runs");
        sessions.push(session);
        sizes.push(private());
    }
    let mut steps: Vec<f64> = sizes.windows(2).map(|it| it[1] - it[0]).collect();
    let first = steps.remove(0);
    steps.sort_by(f64::total_cmp);
    let further = steps[steps.len() / 2];
    println!("| {name} | {first:.1} | {further:.1} | {:.1} % of {size:.1} |", 100.0 * further / size);
}

/// Size of the model's weights as ONNX Runtime computes with them, in MiB.
fn weights_size(path: &std::path::Path) -> f64 {
    let graph = graphs::read(path).expect("the model reads");
    let bytes: usize = graph.initializers.values().map(|it| it.data().len()).sum();
    bytes as f64 / f64::from(1 << 20)
}

/// Private memory of this process in MiB.
fn private() -> f64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux tells");
    let kilobytes = |name: &str| -> f64 {
        let line = text.lines().find(|it| it.starts_with(name)).expect("Linux tells");
        line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number")
    };
    (kilobytes("Private_Dirty:") + kilobytes("Private_Clean:")) / 1024.0
}
