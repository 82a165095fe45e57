//! Where a program waits to be opened until someone asks for it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use ort::value::DynValue;

use super::{
    Graph, Layout, Program, ProgramKind, Runtime, RuntimeError, SharedWeights, release_freed_memory,
};

/// The weights of a graph, in memory: what graphs cut from it need no bytes of their own for.
pub struct Held {
    shared: SharedWeights,
    values: HashMap<String, Arc<DynValue>>,
}

/// A graph that costs no session before it is used. It keeps the model's text; its weights are the shared ones.
pub struct Deferred {
    runtime: Runtime,
    graph: Graph,
    values: Vec<Arc<DynValue>>,
    shared: SharedWeights,
    kind: ProgramKind,
    layout: Layout,
    workers: usize,
    opened: OnceLock<Result<Arc<Program>, String>>,
}

impl Held {
    /// The weights of `graph`, put among `shared` where they are not there yet.
    ///
    /// # Errors
    /// As [`super::Session::open`].
    pub fn of(graph: &Graph, shared: &SharedWeights) -> Result<Self, RuntimeError> {
        let names = graph.weights.iter().map(|it| it.name.clone());
        let values = names.zip(shared.of(graph)?).collect();
        Ok(Self { shared: shared.clone(), values })
    }

    /// A program of `graph` that is opened by the first who asks; its weights are among these, or become shared.
    ///
    /// # Errors
    /// As [`super::Session::open`].
    pub fn defer(
        &self,
        runtime: &Runtime,
        mut graph: Graph,
        kind: ProgramKind,
        layout: Layout,
        workers: usize,
    ) -> Result<Deferred, RuntimeError> {
        let mut values = Vec::with_capacity(graph.weights.len());
        for weight in &mut graph.weights {
            values.push(match self.values.get(&weight.name) {
                Some(value) => value.clone(),
                None => self.shared.value(weight)?,
            });
            weight.bytes = Bytes::new();
        }
        let (runtime, shared) = (runtime.clone(), self.shared.clone());
        Ok(Deferred { runtime, graph, values, shared, kind, layout, workers, opened: OnceLock::new() })
    }
}

impl Deferred {
    /// The program, opened if it is not yet: the first call takes as long as opening its sessions.
    ///
    /// # Errors
    /// ONNX Runtime's words, the same at every call.
    pub fn get(&self) -> Result<Arc<Program>, RuntimeError> {
        let opened = self.opened.get_or_init(|| {
            let Self { runtime, graph, values, shared, kind, layout, workers, .. } = self;
            let opened = Program::with(runtime, graph, values, shared, *kind, layout.clone(), *workers);
            release_freed_memory();
            opened.map(Arc::new).map_err(|error| error.to_string())
        });
        opened.clone().map_err(RuntimeError::Session)
    }

    /// Whether somebody asked for it.
    pub fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").field("kind", &self.kind).field("open", &self.is_open()).finish()
    }
}
