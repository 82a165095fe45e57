//! Resident memory of each further session of one model: weights copied, shared, shared and prepacked.
//!
//! `cargo bench --bench memory -- [MODEL_DIR]`. Each arrangement runs in a process of its own.

use std::{env, fs, path::PathBuf, process::Command};

use explaind::{
    model::graphs,
    runtime::{Device, Graph, Optimise, Runtime, Session, SharedWeights, Source, Tensor},
};

const SESSIONS: usize = 4;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    let (arrangement, folder) = match arguments.as_slice() {
        [arrangement, folder] => (Some(arrangement.clone()), PathBuf::from(folder)),
        [folder] => (None, PathBuf::from(folder)),
        _ => (None, PathBuf::from("models/sst2")),
    };
    let Some(arrangement) = arrangement else {
        let program = env::current_exe().expect("a program has a path");
        println!("resident memory in MiB after 1 to {SESSIONS} sessions, each run once");
        for arrangement in ["file", "copied", "shared"] {
            let status = Command::new(&program).arg(arrangement).arg(&folder).status();
            assert!(status.is_ok_and(|it| it.success()), "{arrangement} failed");
        }
        return;
    };
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let path = folder.join("model.onnx");
    let graph = match arrangement.as_str() {
        "file" => Graph::file(&path),
        "copied" => {
            let graph = graphs::read(&path).expect("the model reads");
            Graph {
                model: Source::Bytes(explaind::compile::onnx::write::write(&graph).into()),
                weights: Vec::new(),
            }
        }
        _ => graphs::runnable(&graphs::read(&path).expect("the model reads")),
    };
    let weights = SharedWeights::default();
    let before = resident();
    let mut sessions = Vec::new();
    let mut sizes = Vec::new();
    for _ in 0..SESSIONS {
        let mut session =
            Session::open(&runtime, &graph, &weights, Optimise::Everything).expect("the session opens");
        let inputs =
            session.inputs().into_iter().map(|it| (it.name, Tensor::i64([1, 8], vec![1; 8]))).collect();
        session.run(inputs, ["logits"]).expect("the session runs");
        sessions.push(session);
        sizes.push(resident() - before);
    }
    let steps: Vec<String> = sizes.windows(2).map(|it| format!("{:+.1}", it[1] - it[0])).collect();
    println!("{arrangement:>8}: first {:.1}, then {}", sizes[0], steps.join(" "));
}

/// Resident memory of this process in MiB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|it| it.starts_with("VmRSS:")).expect("Linux tells");
    let kilobytes: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number");
    kilobytes / 1024.0
}
