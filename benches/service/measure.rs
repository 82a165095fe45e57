//! What the benches share: taking turns, medians, percentiles, and rows of a Markdown table.

use std::{
    fs,
    time::{Duration, Instant},
};

/// Runs every candidate once a round, in turn, and gives each one's times in milliseconds. The first round
/// warms up and is not kept.
pub fn in_turn(rounds: usize, candidates: &mut [&mut dyn FnMut() -> Duration]) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(rounds); candidates.len()];
    for round in 0..=rounds {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            let time = candidate();
            if round > 0 {
                times.push(time.as_secs_f64() * 1e3);
            }
        }
    }
    times
}

/// The time that `work` takes.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let done = work();
    (started.elapsed(), done)
}

/// The middle of `values`.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which `share` of `values` lie.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The median over rounds of one candidate's time by another's: what slows a whole round cancels out.
pub fn ratio(of: &[f64], by: &[f64]) -> f64 {
    median(&of.iter().zip(by).map(|(of, by)| of / by).collect::<Vec<_>>())
}

/// A Markdown table that is printed row by row.
pub fn table(head: &[&str]) {
    println!("| {} |", head.join(" | "));
    println!("|{}", "---|".repeat(head.len()));
}

/// One row of a table.
pub fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// A row of a table whose columns are what, measured, target and met.
pub fn line(what: &str, measured: String, target: &str, met: bool) {
    row(&[what.to_owned(), measured, target.to_owned(), if met { "yes" } else { "**no**" }.to_owned()]);
}

/// The machine, in a line.
pub fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} ({} cores granted), {} of memory; load before the run {}.",
        field("/proc/cpuinfo", "model name"),
        explaind::runtime::granted_cores(),
        field("/proc/meminfo", "MemTotal"),
        load.split(' ').next().unwrap_or_default(),
    )
}

/// A field of a process's status in MiB, such as `VmRSS` or `RssAnon`.
pub fn memory(process: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with(field)).expect("Linux tells");
    let kilobytes: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number");
    kilobytes / 1024.0
}

/// Forgets the process's peak of resident memory, `VmHWM`.
pub fn reset_peak(process: u32) {
    fs::write(format!("/proc/{process}/clear_refs"), "5").expect("Linux lets the parent");
}
