//! Where the only queue and the worker threads live.

use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    Batching, Cancel, Lane, ProgramKind, Stop,
    chunk::{Chunk, Served},
    forecast::{Claim, Forecast},
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

/// There is no room beside those who are inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Busy {
    /// When there should be room, by the measured rate.
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
    pace: Pace,
    /// What lanes of a kind take of their price.
    shares: HashMap<&'static str, f64>,
}

/// What a lane still holds of the budget.
struct Admitted {
    /// Falls as its rows are run; what is left when the lane ends is given back then.
    cost: u64,
    /// What it was admitted with.
    price: u64,
    /// What its price is a bound of, where it is one.
    kind: Option<&'static str>,
    /// When the lane ends at the latest.
    deadline: Instant,
}

/// Cost and time of the chunks of late.
#[derive(Default)]
struct Pace {
    cost: f64,
    seconds: f64,
}

/// How long a scheduler that is dropped waits for the passes that have begun.
const PATIENCE: Duration = Duration::from_secs(1);

/// Seconds of a worker after which a chunk's part in the rate has faded to a third.
const MEMORY: f64 = 5.0;

/// How much a lane that took less than its kind's share pulls the share down. One that took more raises it at once.
const FORGETTING: f64 = 0.3;

/// While several requests are inside, a chunk is cut to this part of its budget: who comes next waits for
/// chunks that have begun, and long ones would make a short request many times slower.
const SHARED_GRAIN: usize = 4;

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
                pace: Pace::default(),
                shares: HashMap::new(),
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
    /// back: what is admitted should end in time. Who is alone is always tried.
    ///
    /// # Errors
    /// [`Busy`] when the admitted cost would pass the budget, or when at the measured rate the request would pass its
    /// deadline because of those inside, or one of those because of the request.
    pub fn admit(&self, cost: u64, deadline: Instant, cancel: Cancel) -> Result<Lane, Busy> {
        self.admit_kind(None, cost, deadline, cancel)
    }

    /// Admits a request that takes this cost at the most. What others of its `kind` took of theirs says how much
    /// it is likely to be.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_bound(
        &self,
        kind: &'static str,
        cost: u64,
        deadline: Instant,
        cancel: Cancel,
    ) -> Result<Lane, Busy> {
        self.admit_kind(Some(kind), cost, deadline, cancel)
    }

    fn admit_kind(
        &self,
        kind: Option<&'static str>,
        price: u64,
        deadline: Instant,
        cancel: Cancel,
    ) -> Result<Lane, Busy> {
        let mut state = self.shared.lock();
        let newcomer = Admitted { cost: price, price, kind, deadline };
        if let Some(retry_after) = state.wait_for(&newcomer, self.shared.settings) {
            return Err(Busy { retry_after });
        }
        let lane = state.next_lane;
        state.next_lane += 1;
        state.gauges.cost += price;
        state.admitted.insert(lane, newcomer);
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
    /// How long a newcomer has to wait until it can be let in; `None` if it need not.
    fn wait_for(&self, newcomer: &Admitted, settings: SchedulerSettings) -> Option<Duration> {
        let (taken, now) = (self.gauges.cost, Instant::now());
        let over = (taken + newcomer.cost).saturating_sub(settings.budget).min(taken);
        let for_budget = (over > 0).then(|| self.time_for(over, now));
        // Before anything was measured there is nothing to foresee.
        if self.gauges.rate == 0.0 {
            return for_budget;
        }
        let claims = self.admitted.values().map(|it| self.claim(it, now)).collect();
        let forecast = Forecast::new(self.gauges.rate, settings.chunk_tokens as f64, claims);
        let newcomer = self.claim(newcomer, now);
        let for_time =
            (!forecast.has_room(newcomer)).then(|| Duration::from_secs(forecast.room_in(newcomer)));
        for_budget.max(for_time)
    }

    /// How long `cost` takes at the measured rate, or until every lane has ended; between 1 and 60 seconds.
    fn time_for(&self, cost: u64, now: Instant) -> Duration {
        let rate = self.gauges.rate;
        let seconds = if rate > 0.0 { cost as f64 / rate } else { 1.0 };
        let last = self.admitted.values().map(|it| it.deadline).max();
        let left = last.map_or(0.0, |it| it.saturating_duration_since(now).as_secs_f64());
        Duration::from_secs_f64(seconds.min(left).clamp(1.0, 60.0))
    }

    /// What a lane is expected to take yet: the share of its price that its kind takes, or, beyond that, the price.
    fn claim(&self, lane: &Admitted, now: Instant) -> Claim {
        let share = lane.kind.and_then(|it| self.shares.get(it)).copied().unwrap_or(1.0);
        let rest = share * lane.price as f64 - (lane.price - lane.cost) as f64;
        let work = if rest > 0.0 { rest } else { lane.cost as f64 };
        Claim { work, left: lane.deadline.saturating_duration_since(now).as_secs_f64() }
    }

    /// Learns what a lane has taken of its price. One that was stopped might have taken more.
    fn learn(&mut self, lane: &Admitted, finished: bool) {
        let Some(kind) = lane.kind.filter(|_| lane.price > lane.cost) else { return };
        let taken = (lane.price - lane.cost) as f64 / lane.price as f64;
        let share = self.shares.entry(kind).or_insert(1.0);
        if taken >= *share {
            *share = taken;
        } else if finished {
            *share += FORGETTING * (taken - *share);
        }
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
    pub(super) fn release(&self, lane: u64, finished: bool) {
        let mut state = self.lock();
        let waiting = state.queue.remove(lane);
        if let Some(admitted) = state.admitted.remove(&lane) {
            state.gauges.cost -= admitted.cost;
            state.learn(&admitted, finished);
        }
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
        if failed {
            state.gauges.failures += 1;
            return;
        }
        let pace = state.pace.after(chunk.own_tokens() * chunk.program.kind.cost(), computed);
        let gauges = &mut state.gauges;
        gauges.rate = self.settings.workers as f64 * pace;
        let rows = chunk.rows.len() as u64;
        gauges.rows += rows;
        if chunk.program.kind == ProgramKind::Gradient {
            gauges.gradient_rows += rows;
        }
        gauges.tokens += chunk.tokens();
        gauges.padding += chunk.tokens() - chunk.own_tokens();
    }
}

impl Pace {
    /// Cost a second of one worker, with another chunk.
    fn after(&mut self, cost: u64, computed: Duration) -> f64 {
        let seconds = computed.as_secs_f64().max(1e-6);
        let kept = (-seconds / MEMORY).exp();
        self.cost = kept * self.cost + cost as f64;
        self.seconds = kept * self.seconds + seconds;
        self.cost / self.seconds
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

    /// A scheduler that has measured a rate, 100 a second, and runs nothing.
    fn measured() -> Scheduler {
        let scheduler = Scheduler::start(SETTINGS).expect("workers");
        scheduler.shared.lock().gauges.rate = 100.0;
        scheduler
    }

    fn within(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    /// How many requests of this cost are let in side by side, and what the next one hears.
    fn let_in(scheduler: &Scheduler, admit: impl Fn() -> Result<Lane, Busy>) -> (usize, Busy) {
        let mut lanes = Vec::new();
        loop {
            match admit() {
                Ok(lane) => lanes.push(lane),
                Err(busy) => return (scheduler.gauges().lanes, busy),
            }
            assert!(lanes.len() < 1000, "everybody is let in");
        }
    }

    #[test]
    fn as_many_are_let_in_as_end_in_time() {
        let scheduler = measured();
        let (inside, busy) = let_in(&scheduler, || scheduler.admit(100, within(10), Cancel::default()));
        // 100 a second for the planned 8 of 10 seconds, less the moments that the test itself takes.
        assert!((7..=8).contains(&inside), "{inside}");
        assert!((1..=5).contains(&busy.retry_after.as_secs()), "{busy:?}");
        assert_eq!(scheduler.gauges().lanes, 0);
    }

    #[test]
    fn before_anything_was_measured_the_budget_alone_decides() {
        let scheduler = Scheduler::start(SETTINGS).expect("workers");
        let (inside, _) = let_in(&scheduler, || scheduler.admit(10_000, within(1), Cancel::default()));
        assert_eq!(inside, 100);
    }

    #[test]
    fn a_bound_is_weighed_by_what_others_of_its_kind_took() {
        let scheduler = measured();
        let admit = || scheduler.admit_bound("anchors", 900, within(10), Cancel::default());
        assert_eq!(let_in(&scheduler, admit).0, 1, "alone; two would take 18 seconds");
        for _ in 0..20 {
            let lane = admit().expect("it is alone");
            scheduler.shared.lock().give_back(lane.id(), 90);
        }
        assert!((6..=8).contains(&let_in(&scheduler, admit).0), "each is likely to take a tenth");
        let lane = admit().expect("it is alone");
        scheduler.shared.lock().give_back(lane.id(), 810);
        drop(lane);
        assert_eq!(let_in(&scheduler, admit).0, 1, "one that took more is believed at once");
    }

    #[test]
    fn the_rate_is_cost_over_time_whatever_the_size_of_chunks() {
        let mut pace = Pace::default();
        pace.after(100, Duration::from_millis(100));
        let rate = (0..5).map(|_| pace.after(1, Duration::from_millis(2))).last().expect("five");
        assert!((900.0..1000.0).contains(&rate), "{rate}");
    }

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
