//! What each of the session settings is worth.

use explaind::{
    model::Model,
    runtime::{Optimise, Row, SessionSettings, granted_cores},
};

use crate::{
    bare::{Bare, encoded, masked, review},
    measure::{in_turn, median, ratio, row, table},
    numbers::engine,
};

/// Sessions, threads, spinning, arena, pattern and optimisation level, each beside the production settings.
pub fn sessions(model: &Model, rows: &[Row], rounds: usize) {
    let ours = SessionSettings::default();
    let cores = granted_cores();
    let threaded = SessionSettings { threads: cores, ..ours };
    let everything = Optimise::Everything;
    let candidates: Vec<(String, usize, SessionSettings, Optimise)> = vec![
        (format!("{cores} sessions of one thread (production)"), cores, ours, everything),
        (format!("one session of {cores} threads"), 1, threaded, everything),
        (
            format!("one session of {cores} threads, spinning"),
            1,
            SessionSettings { spinning: true, ..threaded },
            everything,
        ),
        ("production, with spinning".into(), cores, SessionSettings { spinning: true, ..ours }, everything),
        (
            "production, with memory pattern".into(),
            cores,
            SessionSettings { memory_pattern: true, ..ours },
            everything,
        ),
        ("production, with arena".into(), cores, SessionSettings { arena: true, ..ours }, everything),
        (
            "production, with arena and pattern".into(),
            cores,
            SessionSettings { arena: true, memory_pattern: true, ..ours },
            everything,
        ),
        ("production, optimisation `extended`".into(), cores, ours, Optimise::Extended),
        ("production, optimisation `basic`".into(), cores, ours, Optimise::Basic),
        ("production, optimisation off".into(), cores, ours, Optimise::Nothing),
    ];
    let mut bares: Vec<Bare> = candidates
        .iter()
        .map(|(_, sessions, settings, optimise)| {
            Bare::open(&model.forward.layout, *sessions, *settings, *optimise)
        })
        .collect();
    let mut runs: Vec<_> = bares.iter_mut().map(|bare| || bare.run(rows, 20)).collect();
    let mut runs: Vec<&mut dyn FnMut() -> _> = runs.iter_mut().map(|it| it as _).collect();
    let times = in_turn(rounds, &mut runs);
    table(&["setting", "ms", "by production"]);
    for ((name, ..), of) in candidates.iter().zip(&times) {
        row(&[name.clone(), format!("{:.0}", median(of)), format!("{:.3}", ratio(of, &times[0]))]);
    }
}

/// Tokens of a chunk, for short and for long rows.
pub fn chunks(model: &Model, rounds: usize) {
    let budgets = [128, 256, 512, 1024, 2048, 4096];
    let mut head = vec!["ms for `chunk_tokens`".to_owned()];
    head.extend(budgets.iter().map(ToString::to_string));
    table(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for (tokens, count) in [(25, 400), (128, 80)] {
        let text = review(model, 25).split(' ').cycle().take(tokens * 2).collect::<Vec<_>>().join(" ");
        let long = encoded(model, &text);
        let row_of = Row::of(long.ids[..tokens].to_vec(), None);
        let rows: Vec<Row> = (0..count).map(|n| masked(model, &row_of, |at| (at + n) % 3 == 0)).collect();
        let engines: Vec<_> = budgets.iter().map(|&budget| engine(budget)).collect();
        let mut runs: Vec<_> = engines
            .iter()
            .map(|(_, lane)| {
                || {
                    let rows = rows.clone();
                    crate::measure::timed(|| lane.evaluate(&model.forward, rows).expect("the rows run")).0
                }
            })
            .collect();
        let mut runs: Vec<&mut dyn FnMut() -> _> = runs.iter_mut().map(|it| it as _).collect();
        let times = in_turn(rounds, &mut runs);
        let mut cells = vec![format!("{count} rows of {tokens} tokens")];
        cells.extend(times.iter().map(|it| format!("{:.0}", median(it))));
        row(&cells);
    }
}
