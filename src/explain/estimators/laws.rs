//! This file is where every Shapley estimator meets the axioms, on random games.

use proptest::prelude::*;

use super::exact_shap::exact_shap;
use super::game::{Coalition, Drawn, Function, Game};
use super::golden::Groups;
use super::hierarchy::Hierarchy;
use super::kernel_shap::{KernelShap, Regression, kernel_shap};
use super::partition_shap::partition_shap;
use super::permutation_shap::{PermutationShap, permutation_shap};
use super::shapley::Shapley;

const PLAYERS: usize = 6;
const COALITIONS: usize = 1 << PLAYERS;

fn code(coalition: &Coalition) -> usize {
    coalition.members().map(|member| 1 << member).sum()
}

/// Neighbours joined from the left: (((0 1) 2) 3) ...
fn chain(players: usize) -> Hierarchy {
    let merges = (1..players).map(|k| [if k == 1 { 0 } else { players + k - 2 }, k]).collect();
    Hierarchy::new(players, merges).unwrap()
}

/// How much each estimator may spend: too little to see all coalitions, or enough.
#[derive(Clone, Copy, PartialEq)]
enum Budget {
    Sampled,
    Whole,
}

const ESTIMATORS: [&str; 5] = ["exact", "kernel", "kernel, linear", "permutation", "partition"];

fn estimate(name: &str, budget: Budget, worth: &[f64]) -> Shapley {
    let mut game = Function::new(PLAYERS, |coalition: &Coalition| worth[code(coalition)]);
    let samples = if budget == Budget::Whole { COALITIONS - 2 } else { 34 };
    let kernel = |regression| KernelShap { samples, tolerance: None, regression, seed: 3 };
    match name {
        "exact" => exact_shap(&mut game).unwrap().estimate,
        "kernel" => kernel_shap(&mut game, &kernel(Regression::Interactions)).unwrap().estimate,
        "kernel, linear" => kernel_shap(&mut game, &kernel(Regression::Linear)).unwrap().estimate,
        "permutation" => {
            let options = PermutationShap { samples, tolerance: None, seed: 3 };
            permutation_shap(&mut game, &options).unwrap().estimate
        }
        _ => {
            let samples = if budget == Budget::Whole { 10_000 } else { 34 };
            partition_shap(&mut game, &chain(PLAYERS), samples).unwrap().estimate.shapley
        }
    }
}

/// Root mean squared error and standard error over seeds and players.
fn scatter(exact: &[f64], estimate: impl Fn(u64) -> Shapley) -> (f64, f64) {
    const SEEDS: u64 = 24;
    let (mut error, mut standard) = (0.0, 0.0);
    for seed in 0..SEEDS {
        let found = estimate(seed);
        error += found.values[0].iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        standard += found.standard_errors[0].iter().map(|it| it * it).sum::<f64>();
    }
    let count = (SEEDS as usize * exact.len()) as f64;
    ((error / count).sqrt(), (standard / count).sqrt())
}

#[test]
fn drawn_worths_scatter_as_the_standard_errors_say() {
    let players = 8;
    let [words, ..] = Groups::several(players);
    let (exact, order) = (words.exact(), chain(players));
    let owen = partition_shap(&mut Function::new(players, |c: &Coalition| words.worth(c)), &order, 10_000);
    let owen = owen.unwrap().estimate.shapley.values.remove(0);
    let drawn = |seed| Drawn::new(players, 4, seed, |c: &Coalition| words.worth(c));
    let by_kernel = |samples, regression| {
        scatter(&exact, |seed| {
            let options = KernelShap { samples, tolerance: None, regression, seed };
            kernel_shap(&mut drawn(seed), &options).unwrap().estimate
        })
    };
    let walks = |seed| {
        let options = PermutationShap { samples: 200, tolerance: None, seed };
        permutation_shap(&mut drawn(seed), &options).unwrap().estimate
    };
    for (name, (error, standard)) in [
        ("exact", scatter(&exact, |seed| exact_shap(&mut drawn(seed)).unwrap().estimate)),
        ("kernel, all", by_kernel(254, Regression::Interactions)),
        ("kernel", by_kernel(120, Regression::Interactions)),
        ("kernel, linear", by_kernel(120, Regression::Linear)),
        ("permutation", scatter(&exact, walks)),
        (
            "partition",
            scatter(&owen, |seed| partition_shap(&mut drawn(seed), &order, 10_000).unwrap().estimate.shapley),
        ),
    ] {
        let ratio = error / standard;
        assert!((1.0 / 1.5..1.5).contains(&ratio), "{name}: {error:.4} / {standard:.4} = {ratio:.2}");
    }
}

#[test]
fn one_draw_a_coalition_leaves_the_standard_errors_unknown() {
    let mut game = Drawn::new(6, 1, 0, |c: &Coalition| c.len() as f64);
    assert!(game.spread(&Coalition::empty(6)).is_some());
    assert!(exact_shap(&mut game).unwrap().estimate.largest_standard_error().is_nan());
}

fn game() -> impl Strategy<Value = Vec<f64>> {
    proptest::collection::vec(-10.0..10.0f64, COALITIONS)
}

/// The game in which `a` and `b` may change places.
fn symmetric(worth: &[f64], a: usize, b: usize) -> Vec<f64> {
    let swapped = |code: usize| {
        let (has_a, has_b) = (code >> a & 1, code >> b & 1);
        code & !(1 << a) & !(1 << b) | has_a << b | has_b << a
    };
    (0..COALITIONS).map(|code| (worth[code] + worth[swapped(code)]) / 2.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn values_sum_to_the_difference_of_the_ends(worth in game()) {
        for name in ESTIMATORS {
            for budget in [Budget::Sampled, Budget::Whole] {
                let gap = estimate(name, budget, &worth).efficiency_gap(0);
                prop_assert!(gap.abs() < 1e-9, "{name} {gap}");
            }
        }
    }

    #[test]
    fn players_that_may_change_places_have_equal_values(worth in game(), a in 0..PLAYERS, b in 0..PLAYERS) {
        let worth = symmetric(&worth, a, b);
        for name in ESTIMATORS.into_iter().filter(|name| *name != "partition") {
            let values = &estimate(name, Budget::Whole, &worth).values[0];
            prop_assert!((values[a] - values[b]).abs() < 1e-9, "{name} {values:?}");
        }
        // An Owen value is symmetric between the two parts of a node.
        let values = &estimate("partition", Budget::Whole, &symmetric(&worth, 0, 1)).values[0];
        prop_assert!((values[0] - values[1]).abs() < 1e-9, "{values:?}");
    }

    #[test]
    fn a_player_that_changes_nothing_has_value_zero(worth in game(), dummy in 0..PLAYERS) {
        let worth: Vec<f64> = (0..COALITIONS).map(|code| worth[code & !(1 << dummy)]).collect();
        for name in ESTIMATORS {
            let value = estimate(name, Budget::Whole, &worth).values[0][dummy];
            prop_assert!(value.abs() < 1e-9, "{name} {value}");
        }
        let value = estimate("permutation", Budget::Sampled, &worth).values[0][dummy];
        prop_assert!(value.abs() < 1e-12, "{value}");
    }

    #[test]
    fn values_of_a_sum_are_sums_of_values(one in game(), other in game()) {
        let sum: Vec<f64> = one.iter().zip(&other).map(|(a, b)| a + b).collect();
        let check = |name, budget| {
            let [one, other, sum] = [&one, &other, &sum].map(|worth| estimate(name, budget, worth).values.remove(0));
            let gap = (0..PLAYERS).map(|k| (one[k] + other[k] - sum[k]).abs()).fold(0.0, f64::max);
            prop_assert!(gap < 1e-9, "{name} {gap}");
            Ok(())
        };
        for name in ESTIMATORS {
            check(name, Budget::Whole)?;
        }
        // Linear in the game already while it samples.
        for name in ["kernel, linear", "permutation"] {
            check(name, Budget::Sampled)?;
        }
    }

    #[test]
    fn kernel_and_permutation_end_at_the_exact_values(worth in game()) {
        let exact = estimate("exact", Budget::Whole, &worth);
        for name in ["kernel", "kernel, linear", "permutation"] {
            let values = &estimate(name, Budget::Whole, &worth).values[0];
            for (value, exact) in values.iter().zip(&exact.values[0]) {
                prop_assert!((value - exact).abs() < 1e-9, "{name}");
            }
        }
    }
}
