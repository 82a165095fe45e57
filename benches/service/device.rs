//! How many workers and how large chunks suit a device: `EXPLAIND_DEVICE=cuda cargo bench --bench service -- device FOLDER`.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use explaind::{
    model::{Model, OpenSettings},
    runtime::{Cancel, Device, Program, Row, Runtime, Scheduler, SchedulerSettings},
};

use crate::{
    measure::{median, row, table, timed},
    pass::{ids, points},
};

/// Rows that one measurement evaluates, and the tokens of each.
const SHAPES: [(usize, usize); 2] = [(1024, 32), (256, 128)];

/// Rows per second of forward and gradient passes, for some numbers of workers and sizes of chunks.
pub fn settings(folder: &Path) {
    let device = std::env::var("EXPLAIND_DEVICE").map_or(Device::Cpu, |it| it.parse().expect("a device"));
    let budgets = [512, 1024, 2048, 4096, 8192, 32_768];
    println!("rows per second on `{device}`\n");
    let mut head = vec!["pass".to_owned(), "rows x tokens".to_owned(), "workers".to_owned()];
    head.extend(budgets.iter().map(|it| format!("chunks of {it} tokens")));
    table(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for workers in [1, 2, 4] {
        let runtime = Runtime::load(device, 1).expect("ONNX Runtime loads");
        let model =
            Model::open("model", folder, &OpenSettings { runtime, workers }).expect("the model opens");
        let graph = model.gradient().unwrap_or_else(|missing| panic!("{}", missing.reason));
        for (count, tokens) in SHAPES {
            let rows: Vec<Row> = (0..count).map(|number| ids(number, tokens)).collect();
            let points = points(&model, graph, rows.clone());
            for (name, program, rows) in
                [("forward", &model.forward, &rows), ("gradient", &graph.gradient, &points)]
            {
                let speed = |&budget: &usize| format!("{:.0}", speed(program, rows, workers, budget));
                let mut cells = vec![name.to_owned(), format!("{count} x {tokens}"), workers.to_string()];
                cells.extend(budgets.iter().map(speed));
                row(&cells);
            }
        }
    }
}

fn speed(program: &Arc<Program>, rows: &[Row], workers: usize, chunk_tokens: usize) -> f64 {
    let settings = SchedulerSettings { workers, chunk_tokens, budget: u64::MAX / 2 };
    let scheduler = Scheduler::start(settings).expect("workers");
    let end = Instant::now() + Duration::from_secs(3600);
    let lane = scheduler.admit(1, end, Cancel::default()).expect("there is room");
    let run = || timed(|| lane.evaluate(program, rows.to_vec()).expect("the rows run")).0.as_secs_f64();
    run();
    rows.len() as f64 / median(&[run(), run(), run()])
}
