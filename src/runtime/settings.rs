//! Where ONNX Runtime's settings that cost or save memory and time are named, with what production takes.

/// How every session is made. The default is what serves requests; `benches/README.md` holds the numbers
/// behind each value, and the benches are the only place that takes other ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSettings {
    /// Threads within one operator. Two one-thread sessions on small chunks beat one two-thread session, so
    /// this is 1 unless a caller wants one row answered soonest.
    pub threads: usize,
    /// Whether idle threads of a session spin, which takes the cores from whatever runs beside it.
    pub spinning: bool,
    /// Whether a plan of the memory is kept for every shape that was ever run.
    pub memory_pattern: bool,
    /// Whether memory comes from an arena that grows to the largest run and never shrinks.
    pub arena: bool,
    /// Whether the time of every operator is written to a file; see [`super::Session::end_profiling`].
    pub profile: bool,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { threads: 1, spinning: false, memory_pattern: false, arena: false, profile: false }
    }
}
