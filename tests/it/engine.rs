//! The engine: work that nobody waits for any more stops within a chunk.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use explaind::{
    model::Model,
    runtime::{Cancel, Row, Scheduler, SchedulerSettings, Stop},
};

use crate::support::{WORKERS, bundled, open_settings};

const TOKENS: usize = 25;
const CHUNK: usize = 512;

/// Rows that were evaluated when the work was stopped, and when everything had become quiet.
struct Rows {
    at_the_stop: u64,
    in_the_end: u64,
}

/// Evaluates 5,000 rows until `stop` ends it, and says how far it got.
fn stopped(deadline: Duration, stop: impl Fn(&Cancel) + Sync) -> (Stop, Rows) {
    let model = bundled().models.find(None).expect("the bundled model is there");
    let scheduler =
        Scheduler::start(SchedulerSettings { workers: WORKERS, chunk_tokens: CHUNK, budget: u64::MAX })
            .expect("workers");
    let cancel = Cancel::default();
    let deadline = Instant::now() + deadline;
    let lane = scheduler.admit(1, deadline, cancel.clone()).expect("nothing else was admitted");
    let rows = |scheduler: &Scheduler| scheduler.gauges().rows;
    let (ended, at_the_stop) = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| {
            while rows(&scheduler) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            stop(&cancel);
            while !cancel.is_cancelled() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            rows(&scheduler)
        });
        let many = (0..5000).map(|number| Row::of(vec![1000 + number % 50; TOKENS], None)).collect();
        (lane.evaluate(&model.forward, many), stopping.join().expect("the watcher ends"))
    });
    let mut in_the_end = rows(&scheduler);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = rows(&scheduler);
        if now == in_the_end {
            break;
        }
        in_the_end = now;
    }
    (ended.expect_err("5,000 rows take longer"), Rows { at_the_stop, in_the_end })
}

/// Every worker may end the chunk that it has begun.
const MOST: u64 = (WORKERS * CHUNK / TOKENS) as u64;

#[test]
fn after_a_cancellation_no_worker_begins_another_chunk() {
    let (stop, rows) = stopped(Duration::from_secs(60), Cancel::cancel);
    assert_eq!(stop, Stop::Cancelled);
    assert!(rows.in_the_end - rows.at_the_stop <= MOST, "{} then {}", rows.at_the_stop, rows.in_the_end);
}

#[test]
fn after_the_deadline_no_worker_begins_another_chunk() {
    let (stop, rows) = stopped(Duration::from_millis(400), |_| {});
    assert_eq!(stop, Stop::Deadline);
    assert!(rows.in_the_end - rows.at_the_stop <= MOST, "{} then {}", rows.at_the_stop, rows.in_the_end);
}

fn rows(count: u32) -> Vec<Row> {
    (0..count).map(|number| Row::of(vec![1000 + number; TOKENS], None)).collect()
}

/// A scheduler of its own with room for `budget`.
fn scheduler(budget: u64) -> Scheduler {
    Scheduler::start(SchedulerSettings { workers: WORKERS, chunk_tokens: CHUNK, budget }).expect("workers")
}

#[test]
fn the_budget_is_given_back_as_rows_are_run_and_wholly_in_the_end() {
    let model = bundled().models.find(None).expect("the bundled model is there");
    let scheduler = scheduler(1000);
    let until = Instant::now() + Duration::from_secs(60);
    let lane = scheduler.admit(1000, until, Cancel::default()).expect("nothing else was admitted");
    lane.evaluate(&model.forward, rows(16)).expect("logits");
    assert_eq!(scheduler.gauges().cost, 600);
    let other = scheduler.admit(400, until, Cancel::default()).expect("there is room");
    other.evaluate(&model.forward, rows(20)).expect("logits");
    assert_eq!(scheduler.gauges().cost, 600, "no more is given back than was taken");
    drop(lane);
    assert_eq!(scheduler.gauges().cost, 0);
    drop(other);
    assert_eq!((scheduler.gauges().cost, scheduler.gauges().lanes), (0, 0));
}

#[test]
fn nobody_waits_longer_than_the_last_deadline() {
    let model = bundled().models.find(None).expect("the bundled model is there");
    let scheduler = scheduler(100);
    let until = |seconds| Instant::now() + Duration::from_secs(seconds);
    let lane = scheduler.admit(1, until(60), Cancel::default()).expect("nothing else was admitted");
    // From here on there is a rate.
    lane.evaluate(&model.forward, rows(1)).expect("logits");
    drop(lane);
    let _endless = scheduler.admit(u64::MAX / 4, until(3), Cancel::default()).expect("it is alone");
    let Err(busy) = scheduler.admit(u64::MAX / 4, until(60), Cancel::default()) else {
        panic!("there is no room");
    };
    assert!((1..=3).contains(&busy.retry_after.as_secs()), "{busy:?}");
}

#[test]
fn a_program_strays_from_one_of_other_weights_and_from_none_of_its_own() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public");
    let open = |name| Model::open(name, &zoo.join(name), &open_settings()).expect("a model of the zoo");
    let [first, same, other] = ["bert-legacy17", "bert-dynamo18", "roberta-legacy17"].map(open);
    let row = Row::of(vec![2, 7, 5, 3], None);
    let strays = |from: &Model| first.forward.strays_from(&from.forward, &row, 1..=3).expect("rows that run");
    assert_eq!(strays(&same), None);
    let (rows, gap) = strays(&other).expect("other weights");
    assert!(rows == 1 && gap > 0.0, "{rows} rows, {gap}");
}
