//! The engine and the service beside bare ONNX Runtime, each with its target.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use explaind::{
    explain::random,
    model::{Model, OpenSettings},
    runtime::{
        Cancel, Device, Optimise, Row, Runtime, Scheduler, SchedulerSettings, SessionSettings, granted_cores,
    },
};
use rand_chacha::rand_core::Rng;
use serde_json::{Value, json};

use crate::{
    bare::{Bare, deleted, encoded, folder, masked, review},
    host::{Client, Host},
    measure::{in_turn, line, median, percentile, ratio, timed},
};

/// Tokens of the review that most benches explain.
pub const TOKENS: usize = 25;

/// The bundled model as the service opens it.
pub fn model() -> Model {
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    Model::open("sst2", folder(), &OpenSettings { runtime, workers: granted_cores() }).expect("it opens")
}

/// The engine as the service starts it, and a way through it that never ends.
pub fn engine(chunk_tokens: usize) -> (Scheduler, explaind::runtime::Lane) {
    let settings = SchedulerSettings { workers: granted_cores(), chunk_tokens, budget: u64::MAX / 2 };
    let scheduler = Scheduler::start(settings).expect("workers");
    let end = Instant::now() + Duration::from_secs(3600);
    let lane = scheduler.admit(1, end, Cancel::default()).expect("there is room");
    (scheduler, lane)
}

/// Rows of the review with a random half of the tokens masked.
pub fn masked_rows(model: &Model, count: u64) -> Vec<Row> {
    let row = encoded(model, &review(model, TOKENS));
    let one = |number| {
        let bits = random::stream(0, number).next_u64();
        masked(model, &row, |at| bits >> (at % 64) & 1 == 1)
    };
    (0..count).map(one).collect()
}

/// 1,000 masked rows through scheduler, lane and program, beside bare sessions at their best batch size: of the
/// graph that the service runs, and of the model's file.
pub fn throughput(model: &Model, rounds: usize) {
    let rows = masked_rows(model, 1000);
    let layout = &model.forward.layout;
    let mut bare = Bare::lean(layout, granted_cores(), SessionSettings::default());
    let mut file = Bare::open(layout, granted_cores(), SessionSettings::default(), Optimise::Everything);
    let sizes = [4, 8, 10, 16, 20, 25, 32, 50, 100];
    let best = {
        let mut times: Vec<(f64, usize)> = Vec::new();
        for size in sizes {
            let times_of_size: Vec<f64> = (0..3).map(|_| bare.run(&rows, size).as_secs_f64() * 1e3).collect();
            times.push((times_of_size.iter().copied().fold(f64::MAX, f64::min), size));
        }
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        times[0].1
    };
    let (_scheduler, lane) = engine(512);
    let mut ours = || {
        let rows = rows.clone();
        timed(|| lane.evaluate(&model.forward, rows).expect("the rows run")).0
    };
    let times =
        in_turn(rounds, &mut [&mut ours, &mut || bare.run(&rows, best), &mut || file.run(&rows, best)]);
    for (of, times_of) in [("the same graph", &times[1]), ("the model's file", &times[2])] {
        let share = ratio(times_of, &times[0]);
        let measured = format!(
            "{share:.3} ({:.0} against {:.0} rows/s; bare at its best batch, {best} rows)",
            1e6 / median(&times[0]),
            1e6 / median(times_of)
        );
        let what =
            format!("1,000 masked rows of 25 tokens through the engine: by the rows/s of {of}, run bare");
        line(&what, measured, "≥ 0.90", share >= 0.9);
    }
}

/// Rows of random lengths, as deleting random words leaves them: how much of the computing is padding.
pub fn padding(model: &Model) {
    let review = encoded(model, &review(model, TOKENS));
    let one = |number| {
        let mut generator = random::stream(1, number);
        // As LIME draws: first how many go, then which.
        let gone = 1 + generator.next_u64() as usize % (review.len() - 2);
        let mut places: Vec<usize> = (1..review.len() - 1).collect();
        (0..gone).for_each(|at| {
            let other = at + generator.next_u64() as usize % (places.len() - at);
            places.swap(at, other);
        });
        deleted(&review, |at| places[..gone].contains(&at))
    };
    for count in [100, 1000] {
        let rows: Vec<Row> = (0..count).map(one).collect();
        let (scheduler, lane) = engine(512);
        lane.evaluate(&model.forward, rows).expect("the rows run");
        let gauges = scheduler.gauges();
        let share = gauges.padding as f64 / gauges.tokens as f64;
        let what =
            format!("{count} rows with random words deleted: share of computed tokens that is padding");
        line(&what, format!("{:.1} %", share * 100.0), "< 5 %", share < 0.05);
    }
}

/// Leave-one-out over HTTP beside the bare calls for the same rows.
pub fn leave_one_out(model: &Model, host: &Host, rounds: usize) {
    let text = review(model, TOKENS);
    let body = json!({ "inputs": text, "parameters": { "operation": "mask" } });
    let mut client = host.client();
    let passes = client.post("/explain/leave-one-out", &body)["usage"]["forward_passes"].as_u64();
    let rows = masked_rows(model, passes.expect("usage tells"));
    let layout = &model.forward.layout;
    let cores = granted_cores();
    let mut spread = Bare::lean(layout, cores, SessionSettings::default());
    let threaded = SessionSettings { threads: cores, ..SessionSettings::default() };
    let mut one = Bare::lean(layout, 1, threaded);
    let body = body.to_string();
    let mut ours = || timed(|| client.exchange("/explain/leave-one-out", &body)).0;
    let times = in_turn(
        rounds,
        &mut [&mut ours, &mut || spread.run_spread(&rows), &mut || one.run(&rows, rows.len())],
    );
    let best = if median(&times[1]) <= median(&times[2]) { 1 } else { 2 };
    let over = ratio(&times[0], &times[best]);
    let measured = format!(
        "{over:.3} ({:.2} ms; {} rows bare: {:.2} ms on {cores} one-thread sessions, {:.2} ms on one of {cores} threads)",
        median(&times[0]),
        rows.len(),
        median(&times[1]),
        median(&times[2]),
    );
    line(
        "Leave-one-out of 25 tokens over HTTP: time by that of the bare calls",
        measured,
        "≤ 1.25",
        over <= 1.25,
    );
}

/// `/predict` with as many clients as cores, beside as many threads that call a session, of the model's file and of the
/// graph that the service runs.
pub fn predict(model: &Model, host: &Host, rounds: usize) {
    let text = review(model, TOKENS);
    let row = encoded(model, &text);
    let cores = granted_cores();
    let layout = &model.forward.layout;
    let mut lean = Bare::lean(layout, cores, SessionSettings::default());
    let mut file = Bare::open(layout, cores, SessionSettings::default(), Optimise::Everything);
    let body = json!({ "inputs": text }).to_string();
    let mut clients: Vec<Client> = (0..cores).map(|_| host.client()).collect();
    const CALLS: usize = 50;
    let mut times: [Vec<f64>; 3] = Default::default();
    for round in 0..=rounds {
        let over = calls(&mut clients, "/predict", &body, CALLS);
        let under = [lean.single_calls(&row, CALLS), file.single_calls(&row, CALLS)];
        if round > 0 {
            times.iter_mut().zip([over].into_iter().chain(under)).for_each(|(all, it)| all.extend(it));
        }
    }
    let [ours, lean, file] = times.each_ref().map(|it| median(it));
    for (of, bare) in [("sessions of the model's file", file), ("sessions of the same graph", lean)] {
        let more = ours - bare;
        let measured = format!("{more:+.3} ms ({ours:.3} against {bare:.3} ms)");
        let what =
            format!("`/predict`, {cores} clients at once: p50 above that of {cores} threads calling {of}");
        line(&what, measured, "≤ 0.3 ms", more <= 0.3);
    }
}

fn calls(clients: &mut [Client], path: &str, body: &str, calls: usize) -> Vec<f64> {
    std::thread::scope(|scope| {
        let many = |client: &mut Client| -> Vec<f64> {
            let one = |_| timed(|| client.exchange(path, body)).0.as_secs_f64() * 1e3;
            (0..calls).map(one).collect()
        };
        let running: Vec<_> = clients.iter_mut().map(|it| scope.spawn(move || many(it))).collect();
        running.into_iter().flat_map(|it| it.join().expect("the thread ends")).collect()
    })
}

/// Small requests beside a large one.
pub fn fairness(model: &Model, host: &Host, rounds: usize) {
    // 18 single words are 20 rows: the text itself, each word gone, all of them gone.
    let words: Vec<&str> =
        "the film is long and loud but it has some great songs in it and a very good".split(' ').collect();
    let small = json!({ "inputs": words.join(" "), "parameters": { "operation": "mask" } });
    let mut client = host.client();
    let answer = client.post("/explain/leave-one-out", &small);
    assert_eq!(answer["usage"]["forward_passes"], 20, "{}", answer["usage"]);
    let large = large(model, &mut client);
    let small = small.to_string();
    let ask = |client: &mut Client| {
        timed(|| client.exchange("/explain/leave-one-out", &small)).0.as_secs_f64() * 1e3
    };
    let unloaded: Vec<f64> = (0..rounds).map(|_| ask(&mut client)).collect();

    let stop = Arc::new(AtomicBool::new(false));
    let (mut loaded, mut rows) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let (mut client, mut rows) = (host.client(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let answer = client.post("/explain/leave-one-out", &large);
                rows.push(answer["usage"]["forward_passes"].as_f64().expect("usage tells"));
            }
            rows
        });
        std::thread::sleep(Duration::from_millis(300));
        loaded = (0..rounds).map(|_| ask(&mut client)).collect();
        stop.store(true, Ordering::Relaxed);
        rows = busy.join().expect("the large requests end");
    });
    let [before, beside] = [percentile(&unloaded, 0.95), percentile(&loaded, 0.95)];
    let measured = format!(
        "{:.2} (p95 {beside:.2} against {before:.2} ms; p50 {:.2} against {:.2} ms; large requests of {:.0} rows)",
        beside / before,
        median(&loaded),
        median(&unloaded),
        median(&rows),
    );
    line(
        "p95 of 20-row requests beside a 5,000-row request, by their unloaded p95",
        measured,
        "≤ 3",
        beside <= 3.0 * before,
    );
}

/// Leave-one-out with so many replacements for each word that it asks for 5,000 rows.
fn large(model: &Model, client: &mut Client) -> Value {
    let text = review(model, TOKENS);
    let answer = client.post("/explain/leave-one-out", &json!({ "inputs": text }));
    let words = answer["results"][0]["explanations"][0]["attributions"].as_array().map_or(0, Vec::len);
    let mut whole_words: Vec<String> = (0..model.tokenizer.vocabulary() as u32)
        .map(|id| model.token_name(id))
        .filter(|it| it.len() > 2 && it.bytes().all(|it| it.is_ascii_lowercase()))
        .collect();
    whole_words.truncate(5000 / (words + 1) + 1);
    let replacements = vec![&whole_words; words];
    let parameters = json!({ "operation": "replace", "replacements": replacements });
    json!({ "inputs": text, "timeout_ms": 600_000, "parameters": parameters })
}
