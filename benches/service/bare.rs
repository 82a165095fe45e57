//! Bare ONNX Runtime: sessions and ready batches, no queue, no text, no HTTP.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use explaind::{
    model::{Manifest, Model, derived, graphs, text::Caps},
    runtime::{
        Device, Graph, Layout, Optimise, Row, Runtime, Session, SessionSettings, SharedWeights, Tensor,
    },
};

use crate::measure::timed;

/// A batch as ONNX Runtime takes it.
type Batch = Vec<(String, Tensor)>;

/// Sessions of one graph, one a thread.
pub struct Bare {
    sessions: Vec<Session>,
    layout: Layout,
}

impl Bare {
    /// `threads` sessions of the bundled model's file, made as the service makes them but for `settings`.
    pub fn open(layout: &Layout, threads: usize, settings: SessionSettings, optimise: Optimise) -> Self {
        let graph = graphs::runnable(&graphs::read(&folder().join("model.onnx")).expect("the model reads"));
        Self::of(&graph, layout, threads, settings, optimise)
    }

    /// `threads` sessions of the very graph that the service runs.
    pub fn lean(layout: &Layout, threads: usize, settings: SessionSettings) -> Self {
        let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
        let manifest = Manifest::read(folder(), None).expect("the folder reads");
        let graph = graphs::read(&manifest.graph).expect("the model reads");
        let compiled = derived::compile(graph, &runtime, &SharedWeights::default(), &manifest);
        let lean = compiled.ok().and_then(|it| it.lean).expect("the model is spared work");
        Self::of(&graphs::runnable(&lean), layout, threads, settings, Optimise::Everything)
    }

    /// As [`Bare::open`], of any graph.
    pub fn of(
        graph: &Graph,
        layout: &Layout,
        threads: usize,
        settings: SessionSettings,
        optimise: Optimise,
    ) -> Self {
        let mut runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
        runtime.settings = settings;
        let weights = SharedWeights::default();
        let open = |_| Session::open(&runtime, graph, &weights, optimise).expect("a session opens");
        Self { sessions: (0..threads).map(open).collect(), layout: layout.clone() }
    }

    /// The time to run `rows` in batches of `size`. Making the batches is not counted.
    pub fn run(&mut self, rows: &[Row], size: usize) -> Duration {
        let batches: Vec<_> = rows.chunks(size).map(|rows| self.layout.stack(rows)).collect();
        self.run_batches(batches)
    }

    /// The time to run `rows` with each session taking an equal part in one batch.
    pub fn run_spread(&mut self, rows: &[Row]) -> Duration {
        self.run(rows, rows.len().div_ceil(self.sessions.len()))
    }

    fn run_batches(&mut self, batches: Vec<Batch>) -> Duration {
        let batches: Vec<_> = batches.into_iter().map(|it| std::sync::Mutex::new(Some(it))).collect();
        let next = AtomicUsize::new(0);
        let work = |session: &mut Session| {
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                let batch = batch.lock().expect("nothing panicked").take().expect("taken once");
                session.run(batch, ["logits"]).expect("the batch runs");
            }
        };
        let (first, others) = self.sessions.split_first_mut().expect("at least one session");
        let (time, ()) = timed(|| {
            std::thread::scope(|scope| {
                others.iter_mut().for_each(|session| drop(scope.spawn(|| work(session))));
                work(first);
            });
        });
        time
    }

    /// The times in milliseconds of `calls` runs of one row on every session at once.
    pub fn single_calls(&mut self, row: &Row, calls: usize) -> Vec<f64> {
        let layout = &self.layout;
        std::thread::scope(|scope| {
            let call = |session: &mut Session| {
                let batch = layout.stack(std::slice::from_ref(row));
                timed(|| session.run(batch, ["logits"]).expect("the row runs")).0.as_secs_f64() * 1e3
            };
            let running: Vec<_> = self
                .sessions
                .iter_mut()
                .map(|session| scope.spawn(move || (0..calls).map(|_| call(session)).collect::<Vec<_>>()))
                .collect();
            running.into_iter().flat_map(|it| it.join().expect("the thread ends")).collect()
        })
    }
}

/// The bundled model's folder.
pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/sst2"))
}

/// The first words of a long review that make exactly `tokens` tokens.
pub fn review(model: &Model, tokens: usize) -> String {
    const WORDS: &str = "The first hour is a delight , full of wit and odd details , but the film then forgets \
        what made it fun and ends on a note so loud , so long and so empty that even its friends look away , \
        which is a pity for a story about people who never stop looking .";
    let words: Vec<&str> = WORDS.split(' ').filter(|it| !it.is_empty()).collect();
    (1..=words.len())
        .map(|count| words[..count].join(" "))
        .find(|text| encoded(model, text).len() == tokens)
        .expect("a prefix of this length")
}

/// The text as a row.
pub fn encoded(model: &Model, text: &str) -> Row {
    let caps = Caps { characters: 100_000, run: 1000 };
    model.tokenizer.encode(text, None, true, caps).expect("a plain text").row()
}

/// The row with the tokens `at` for which `gone` holds replaced by the mask token.
pub fn masked(model: &Model, row: &Row, gone: impl Fn(usize) -> bool) -> Row {
    let mask = model.special.mask.expect("BERT has a mask token");
    let last = row.len() - 1;
    let hide = |(at, &id): (usize, &u32)| if at > 0 && at < last && gone(at) { mask } else { id };
    Row::of(row.ids.iter().enumerate().map(hide).collect::<Vec<_>>(), row.types.clone())
}

/// The row without the tokens for which `gone` holds; the first and the last stay.
pub fn deleted(row: &Row, gone: impl Fn(usize) -> bool) -> Row {
    let last = row.len() - 1;
    let kept = |at: &usize| *at == 0 || *at == last || !gone(*at);
    Row::of((0..row.len()).filter(kept).map(|at| row.ids[at]).collect::<Vec<_>>(), None)
}
