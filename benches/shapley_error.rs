//! This file is where the Shapley estimators' errors are measured against exact values and against shap's.
//!
//! `EXPLAIND_GAMES=FOLDER cargo bench --bench shapley_error`, FOLDER made by `benches/shapley_error.py`; without
//! it, the two games of `tests/fixtures/games`. A row is the mean over games of one output; the columns are the
//! mean squared error and its ratio to that of `shap.KernelExplainer(l1_reg=False)`.

use std::collections::BTreeMap;
use std::time::Instant;

use explaind::explain::estimators::kernel_shap::{KernelShap, Regression, kernel_shap};
use explaind::explain::estimators::permutation_shap::{PermutationShap, permutation_shap};
use explaind::explain::estimators::{Coalition, Game, Shapley, Stop};

#[derive(serde::Deserialize)]
struct Table {
    #[serde(default)]
    output: String,
    players: usize,
    exact: Vec<f64>,
    shap_mse: BTreeMap<usize, f64>,
    worth: Vec<f64>,
}

impl Game for &Table {
    fn players(&self) -> usize {
        self.players
    }

    fn outputs(&self) -> usize {
        1
    }

    fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
        let code = |coalition: &Coalition| coalition.members().map(|member| 1 << member).sum::<usize>();
        Ok(coalitions.iter().map(|coalition| vec![self.worth[code(coalition)]]).collect())
    }
}

const SEEDS: u64 = 10;

fn main() -> anyhow::Result<()> {
    let folder = std::env::var("EXPLAIND_GAMES").unwrap_or_else(|_| "tests/fixtures/games".into());
    let mut tables = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        tables.push(serde_json::from_slice::<Table>(&std::fs::read(entry?.path())?)?);
    }
    let kernel = |regression| {
        move |table: &Table, samples, seed| {
            let options = KernelShap { samples, tolerance: None, regression, seed };
            kernel_shap(&mut { table }, &options).map(|run| run.estimate)
        }
    };
    let permutation = |table: &Table, samples, seed| {
        let options = PermutationShap { samples, tolerance: None, seed };
        permutation_shap(&mut { table }, &options).map(|run| run.estimate)
    };
    type Estimator<'a, E> = &'a dyn Fn(&Table, usize, u64) -> Result<Shapley, E>;
    let estimators: [(&str, Estimator<_>); 3] = [
        ("kernel-shap", &kernel(Regression::Interactions)),
        ("kernel-shap, linear", &kernel(Regression::Linear)),
        ("permutation-shap", &permutation),
    ];
    println!(
        "{:<12} {:<20} {:>7} {:>11} {:>11} {:>6} {:>9} {:>6} {:>8}",
        "output", "estimator", "samples", "mse", "shap's mse", "ratio", "geo.ratio", "(e/se)²", "ms"
    );
    let outputs: std::collections::BTreeSet<_> = tables.iter().map(|table| &table.output).collect();
    for output in outputs {
        for (name, estimate) in estimators {
            for samples in [128, 256, 512, 1024] {
                let (mut ours, mut peers, mut logs, mut standardised) = (0.0, 0.0, 0.0, 0.0);
                let mut count = 0.0;
                let begun = Instant::now();
                // Where shap enumerates too, both errors are rounding.
                let sampled = |table: &&Table| samples < (1 << table.players) - 2;
                for table in tables.iter().filter(|table| table.output == *output).filter(sampled) {
                    let (mut squared, mut over) = (0.0, 0.0);
                    for seed in 0..SEEDS {
                        let found = estimate(table, samples, seed)?;
                        for player in 0..table.players {
                            let error = found.values[0][player] - table.exact[player];
                            squared += error * error;
                            over += (error / found.standard_errors[0][player]).powi(2);
                        }
                    }
                    let cells = (SEEDS as usize * table.players) as f64;
                    ours += squared / cells;
                    peers += table.shap_mse[&samples];
                    logs += (squared / cells / table.shap_mse[&samples]).ln();
                    standardised += over / cells;
                    count += 1.0;
                }
                let time = begun.elapsed().as_secs_f64() * 1e3 / (count * SEEDS as f64);
                println!(
                    "{output:<12} {name:<20} {samples:>7} {:>11.3e} {:>11.3e} {:>6.3} {:>9.3} {:>6.2} {time:>8.1}",
                    ours / count,
                    peers / count,
                    ours / peers,
                    f64::exp(logs / count),
                    standardised / count,
                );
            }
        }
    }
    Ok(())
}
