//! Where one request meets the queue: its deadline, its cancellation, its counters.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use super::{
    Program, ProgramKind, Row, RowOut, batch,
    chunk::{Chunk, Served},
    scheduler::Shared,
};

/// Says that nobody waits for the answer any more. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels; work stops before its next chunk.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why evaluations ended without their answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The request's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The caller went away, or the service is stopping.
    #[error("cancelled")]
    Cancelled,
    /// A row has fewer tokens than the graph takes.
    #[error("a row has {tokens} tokens; the model's least is {least}")]
    TooShort {
        /// How many it has.
        tokens: usize,
        /// How many it needs.
        least: usize,
    },
    /// A run failed; the text is for the log, not for the caller.
    #[error("a run failed: {0}")]
    Failed(String),
}

/// What a request has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Rows that ran forward only.
    pub forward_passes: u64,
    /// Rows that ran forward and backward.
    pub gradient_passes: u64,
    /// Computed tokens, padding included.
    pub tokens: u64,
    /// Time from handing rows over to the start of the first of them.
    pub queued: Duration,
    /// Time that workers spent on this request's chunks.
    pub computed: Duration,
}

/// One admitted request's way through the scheduler. Dropping it gives its cost back.
pub struct Lane {
    shared: Arc<Shared>,
    id: u64,
    deadline: Instant,
    cancel: Cancel,
    spent: Mutex<Spent>,
}

/// How often a waiting request looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

/// Chunks for each worker that a stream keeps in the queue.
const AHEAD: usize = 2;

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, id: u64, deadline: Instant, cancel: Cancel) -> Self {
        Self { shared, id, deadline, cancel, spent: Mutex::default() }
    }

    /// Runs every row and returns the answers in the rows' order.
    ///
    /// # Errors
    /// [`Stop`]; rows that still wait are forgotten.
    pub fn evaluate(&self, program: &Arc<Program>, rows: Vec<Row>) -> Result<Vec<RowOut>, Stop> {
        let mut answers: Vec<Option<RowOut>> = rows.iter().map(|_| None).collect();
        let batch = self.submit(program, rows)?;
        self.collect(program, batch, |place, out| answers[place] = Some(moved(out)))?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Runs rows as they come, and hands each answer to `sink` with its row's number, in no certain order.
    /// Only a few chunks' rows exist at once, so memory is bounded by the chunk, not by the number of rows.
    ///
    /// # Errors
    /// [`Stop`]; rows that still wait are forgotten, answers that came before were handed over.
    pub fn stream(
        &self,
        program: &Arc<Program>,
        rows: impl IntoIterator<Item = Row>,
        mut sink: impl FnMut(usize, RowOut),
    ) -> Result<(), Stop> {
        let batching = self.shared.batching();
        let window = batching.chunk_tokens * batching.workers.max(1) * AHEAD;
        let mut rows = rows.into_iter().peekable();
        let mut first = 0;
        let mut pending: Option<(usize, Batch)> = None;
        loop {
            let (mut held, mut tokens) = (Vec::new(), 0);
            while let Some(row) = rows.next_if(|row| tokens == 0 || tokens + row.len() <= window) {
                tokens += row.len();
                held.push(row);
            }
            let count = held.len();
            let next = if count > 0 { Some((first, self.submit(program, held)?)) } else { None };
            first += count;
            if let Some((start, batch)) = pending.take() {
                self.collect(program, batch, |place, out| sink(start + place, out))?;
            }
            pending = next;
            if pending.is_none() {
                return Ok(());
            }
        }
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// What was used so far.
    pub fn spent(&self) -> Spent {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the request must be answered.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// [`Stop`] once the deadline has passed or the caller is gone: for long work outside of `evaluate`.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] and [`Stop::Deadline`].
    pub fn check(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        if Instant::now() >= self.deadline { Err(Stop::Deadline) } else { Ok(()) }
    }

    fn submit(&self, program: &Arc<Program>, rows: Vec<Row>) -> Result<Batch, Stop> {
        let count = rows.len();
        let least = program.layout.least;
        if let Some(tokens) = rows.iter().map(Row::len).find(|&it| it < least) {
            self.shared.abandon(self.id);
            return Err(Stop::TooShort { tokens, least });
        }
        let plan = batch::plan_rows(&rows, &program.layout, self.shared.batching());
        let (reply, answers) = channel();
        let submitted = Instant::now();
        let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
        let chunks: Vec<Chunk> = plan
            .into_iter()
            .map(|places| Chunk {
                program: program.clone(),
                rows: places.iter().filter_map(|&place| rows[place].take()).collect(),
                places,
                cancel: self.cancel.clone(),
                deadline: self.deadline,
                submitted,
                reply: reply.clone(),
            })
            .collect();
        self.shared.submit(self.id, chunks);
        Ok(Batch { answers, rows: count })
    }

    fn collect(
        &self,
        program: &Program,
        batch: Batch,
        mut sink: impl FnMut(usize, RowOut),
    ) -> Result<(), Stop> {
        let mut first_wait = None;
        let mut missing = batch.rows;
        while missing > 0 {
            let served = match self.wait(&batch.answers) {
                Ok(served) => served,
                Err(stop) => {
                    self.shared.abandon(self.id);
                    return Err(stop);
                }
            };
            let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
            spent.computed += served.computed;
            spent.tokens += served.tokens;
            if first_wait.is_none_or(|so_far| served.waited < so_far) {
                spent.queued = spent.queued + served.waited - first_wait.unwrap_or_default();
                first_wait = Some(served.waited);
            }
            missing -= served.places.len();
            let outs = match served.outcome {
                Ok(outs) => outs,
                Err(stop) => {
                    drop(spent);
                    self.shared.abandon(self.id);
                    return Err(stop);
                }
            };
            match program.kind {
                ProgramKind::Forward => spent.forward_passes += outs.len() as u64,
                ProgramKind::Gradient => spent.gradient_passes += outs.len() as u64,
            }
            drop(spent);
            for (place, out) in served.places.into_iter().zip(outs) {
                sink(place, out);
            }
        }
        Ok(())
    }

    fn wait(&self, answers: &Receiver<Served>) -> Result<Served, Stop> {
        loop {
            self.check()?;
            let left = self.deadline.saturating_duration_since(Instant::now());
            match answers.recv_timeout(left.min(LOOK)) {
                Ok(served) => return Ok(served),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // A sibling thread of this request may have been the first to see it end.
                    self.check()?;
                    return Err(Stop::Failed("the workers have stopped".to_owned()));
                }
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.release(self.id, self.check().is_ok());
    }
}

/// The answer in memory of the calling thread, if it is small. A worker's memory is one of large tensors that come and
/// go; a few bytes that stay in the place of one leave a gap that the next does not fit into, and with thousands of
/// rows the gaps add up to gigabytes.
fn moved(out: RowOut) -> RowOut {
    const SMALL: usize = 4096;
    if out.values.iter().map(Vec::len).sum::<usize>() > SMALL { out } else { out.clone() }
}

/// Rows that were handed over together.
struct Batch {
    answers: Receiver<Served>,
    rows: usize,
}
