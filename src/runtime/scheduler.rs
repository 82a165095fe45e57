//! Where the only queue and the worker threads live.

use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::Sender,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    Batching, Cancel, Lane, Program, ProgramKind, Row, RowOut, Stop,
    queue::{Gauges, Queue},
};

/// How many threads work, on how much at once, and how much may wait.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerSettings {
    /// Threads that run sessions.
    pub workers: usize,
    /// See [`Batching::chunk_tokens`].
    pub chunk_tokens: usize,
    /// The most cost that is admitted and not run yet, in token passes. A request that alone costs more is admitted
    /// when nothing else is.
    pub budget: u64,
}

/// The queue's cost is full.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Busy {
    /// When there should be room again, by the measured rate.
    pub retry_after: Duration,
}

/// The only owner of queues and the threads that own sessions.
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    pub(super) settings: SchedulerSettings,
}

struct State {
    /// Set under the lock, so that no worker goes to sleep between looking at it and being woken.
    stopping: bool,
    queue: Queue<Chunk>,
    admitted: HashMap<u64, Admitted>,
    next_lane: u64,
    gauges: Gauges,
}

/// What a lane still holds of the budget.
struct Admitted {
    /// Falls as its rows are run; what is left when the lane ends is given back then.
    cost: u64,
    /// When the lane ends at the latest.
    deadline: Instant,
}

/// Rows of one lane that are run together.
pub(super) struct Chunk {
    pub(super) program: Arc<Program>,
    pub(super) rows: Vec<Row>,
    /// The rows' places in the caller's list.
    pub(super) places: Vec<usize>,
    pub(super) cancel: Cancel,
    pub(super) deadline: Instant,
    pub(super) submitted: Instant,
    pub(super) reply: Sender<Served>,
}

/// What became of a chunk.
pub(super) struct Served {
    pub(super) places: Vec<usize>,
    pub(super) outcome: Result<Vec<RowOut>, Stop>,
    pub(super) waited: Duration,
    pub(super) computed: Duration,
    pub(super) tokens: u64,
}

/// A backward pass costs about as much again as the forward pass that it follows, and its memory traffic
/// more: one gradient row is priced as this many forward rows.
const GRADIENT_COST: u64 = 3;

/// How long a scheduler that is dropped waits for the passes that have begun.
const PATIENCE: Duration = Duration::from_secs(1);

/// While several requests are inside, a chunk is cut to this part of its budget: who comes next waits for
/// chunks that have begun, and long ones would make a short request many times slower.
const SHARED_GRAIN: usize = 4;

impl ProgramKind {
    /// Cost of one row of this kind, in forward rows.
    pub const fn cost(self) -> u64 {
        match self {
            Self::Forward => 1,
            Self::Gradient => GRADIENT_COST,
        }
    }
}

impl Scheduler {
    /// Starts the workers.
    ///
    /// # Errors
    /// The system refuses a thread; those that had begun are stopped.
    pub fn start(settings: SchedulerSettings) -> io::Result<Self> {
        Self::start_by(settings, |number, shared| {
            let name = format!("worker-{number}");
            std::thread::Builder::new().name(name).spawn(move || work(&shared, number))
        })
    }

    fn start_by(
        settings: SchedulerSettings,
        spawn: impl Fn(usize, Arc<Shared>) -> io::Result<JoinHandle<()>>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                stopping: false,
                queue: Queue::new(),
                admitted: HashMap::new(),
                next_lane: 0,
                gauges: Gauges { budget: settings.budget, ..Gauges::default() },
            }),
            wake: Condvar::new(),
            settings,
        });
        let mut scheduler = Self { shared, threads: Vec::new() };
        for number in 0..settings.workers.max(1) {
            scheduler.threads.push(spawn(number, scheduler.shared.clone())?);
        }
        Ok(scheduler)
    }

    /// Admits a request of the given cost (see [`ProgramKind::cost`] times tokens), or says when to come
    /// back.
    ///
    /// # Errors
    /// [`Busy`] when the admitted cost would pass the budget.
    pub fn admit(&self, cost: u64, deadline: Instant, cancel: Cancel) -> Result<Lane, Busy> {
        let mut state = self.shared.lock();
        let taken = state.gauges.cost;
        if taken > 0 && taken + cost > self.shared.settings.budget {
            let over = (taken + cost - self.shared.settings.budget).min(taken);
            return Err(Busy { retry_after: state.time_for(over) });
        }
        let lane = state.next_lane;
        state.next_lane += 1;
        state.gauges.cost += cost;
        state.admitted.insert(lane, Admitted { cost, deadline });
        Ok(Lane::new(self.shared.clone(), lane, deadline, cancel))
    }

    /// The state of the queue and the counters since the start.
    pub fn gauges(&self) -> Gauges {
        let state = self.shared.lock();
        Gauges { depth: state.queue.depth(), lanes: state.admitted.len(), ..state.gauges }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_all();
        part(&self.threads, PATIENCE);
    }
}

/// Waits for threads to end. One that is inside a pass cannot be interrupted and is left to itself.
fn part(threads: &[JoinHandle<()>], patience: Duration) {
    let until = Instant::now() + patience;
    while !threads.iter().all(JoinHandle::is_finished) {
        if Instant::now() >= until {
            warn!("a worker is still inside a pass, and is left behind");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl State {
    /// How long `cost` takes at the measured rate, or until every lane has ended; between 1 and 60 seconds.
    fn time_for(&self, cost: u64) -> Duration {
        let rate = self.gauges.rate;
        let seconds = if rate > 0.0 { cost as f64 / rate } else { 1.0 };
        let last = self.admitted.values().map(|it| it.deadline).max();
        let left = last.map_or(0.0, |it| it.saturating_duration_since(Instant::now()).as_secs_f64());
        Duration::from_secs_f64(seconds.min(left).clamp(1.0, 60.0))
    }

    /// Gives back what rows of a lane have held.
    fn give_back(&mut self, lane: u64, cost: u64) {
        // A lane whose rows cost more than it was admitted with has nothing left to give.
        if let Some(admitted) = self.admitted.get_mut(&lane) {
            let cost = cost.min(admitted.cost);
            admitted.cost -= cost;
            self.gauges.cost -= cost;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is only ever changed by whole steps that do not panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn batching(&self) -> Batching {
        Batching { chunk_tokens: self.settings.chunk_tokens, workers: self.settings.workers }
    }

    pub(super) fn submit(&self, lane: u64, chunks: Vec<Chunk>) {
        let mut state = self.lock();
        for chunk in chunks {
            state.queue.push(lane, chunk.cost(), chunk);
        }
        drop(state);
        self.wake.notify_all();
    }

    /// Forgets what a lane still has waiting.
    pub(super) fn abandon(&self, lane: u64) {
        let waiting = self.lock().queue.remove(lane);
        drop(waiting);
    }

    /// Ends a lane: its admitted cost is free again.
    pub(super) fn release(&self, lane: u64) {
        let mut state = self.lock();
        let waiting = state.queue.remove(lane);
        state.give_back(lane, u64::MAX);
        state.admitted.remove(&lane);
        drop(state);
        drop(waiting);
    }

    fn next(&self) -> Option<(u64, Chunk)> {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some((lane, mut chunk)) = state.queue.pop() {
                if state.admitted.len() > 1
                    && let Some(rest) = chunk.split(self.settings.chunk_tokens / SHARED_GRAIN)
                {
                    state.queue.put_back(lane, rest.cost(), rest);
                }
                return Some((lane, chunk));
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn count(&self, lane: u64, chunk: &Chunk, computed: Duration, failed: bool) {
        let mut state = self.lock();
        state.give_back(lane, chunk.own_tokens() * chunk.program.kind.cost());
        let workers = self.settings.workers as f64;
        let gauges = &mut state.gauges;
        if failed {
            gauges.failures += 1;
            return;
        }
        let rows = chunk.rows.len() as u64;
        gauges.rows += rows;
        if chunk.program.kind == ProgramKind::Gradient {
            gauges.gradient_rows += rows;
        }
        gauges.tokens += chunk.tokens();
        gauges.padding += chunk.tokens() - chunk.own_tokens();
        let rate = workers * chunk.cost() as f64 / computed.as_secs_f64().max(1e-6);
        gauges.rate = if gauges.rate == 0.0 { rate } else { 0.9 * gauges.rate + 0.1 * rate };
    }
}

impl Chunk {
    /// Keeps the first rows that fit into `tokens`, at least one, and gives the rest, if there is one.
    fn split(&mut self, tokens: usize) -> Option<Self> {
        let longest = self.rows.iter().map(Row::len).max().unwrap_or(0);
        let keep = (tokens / longest.max(1)).max(1);
        if keep >= self.rows.len() {
            return None;
        }
        Some(Self {
            program: self.program.clone(),
            rows: self.rows.split_off(keep),
            places: self.places.split_off(keep),
            cancel: self.cancel.clone(),
            deadline: self.deadline,
            submitted: self.submitted,
            reply: self.reply.clone(),
        })
    }

    /// Computed tokens, padding included.
    fn tokens(&self) -> u64 {
        let longest = self.rows.iter().map(Row::len).max().unwrap_or(0);
        (longest * self.rows.len()) as u64
    }

    /// Tokens of the rows themselves, which is what the lane was admitted for.
    fn own_tokens(&self) -> u64 {
        self.rows.iter().map(|it| it.len() as u64).sum()
    }

    fn cost(&self) -> u64 {
        self.tokens() * self.program.kind.cost()
    }
}

fn work(shared: &Shared, number: usize) {
    while let Some((lane, chunk)) = shared.next() {
        let started = Instant::now();
        let waited = started - chunk.submitted;
        let outcome = if chunk.cancel.is_cancelled() {
            Err(Stop::Cancelled)
        } else if started >= chunk.deadline {
            Err(Stop::Deadline)
        } else {
            let run = || chunk.program.run(number, &chunk.rows);
            let outcome = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(outcome) => outcome.map_err(|error| Stop::Failed(error.to_string())),
                Err(_) => Err(Stop::Failed("a worker panicked".to_owned())),
            };
            shared.count(lane, &chunk, started.elapsed(), outcome.is_err());
            outcome
        };
        let tokens = if outcome.is_ok() { chunk.tokens() } else { 0 };
        let Chunk { places, reply, .. } = chunk;
        // The lane may have gone: then nobody wants the answer.
        let _ = reply.send(Served { places, outcome, waited, computed: started.elapsed(), tokens });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SETTINGS: SchedulerSettings = SchedulerSettings { workers: 2, chunk_tokens: 10, budget: 1_000_000 };

    #[test]
    fn a_scheduler_that_is_dropped_at_once_ends_at_once() {
        for _ in 0..200 {
            let scheduler = Scheduler::start(SETTINGS).expect("workers");
            let dropped = Instant::now();
            drop(scheduler);
            assert!(dropped.elapsed() < PATIENCE, "a worker slept through its end");
        }
    }

    #[test]
    fn a_worker_that_does_not_come_back_keeps_nobody() {
        let (release, held) = channel::<()>();
        let stuck = std::thread::spawn(move || {
            // An error says that the other end is gone, which is as good.
            let _ = held.recv();
        });
        part(&[stuck], Duration::from_millis(20));
        drop(release);
    }

    #[test]
    fn a_thread_that_is_refused_is_an_error() {
        let started = Scheduler::start_by(SETTINGS, |number, shared| match number {
            0 => Ok(std::thread::spawn(move || work(&shared, number))),
            _ => Err(io::Error::from(io::ErrorKind::WouldBlock)),
        });
        assert!(started.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    }
}
