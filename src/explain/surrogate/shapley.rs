//! Where Shapley values become findings, alike for every estimator of them.

use serde_json::{Map, Value, json};

use super::masked::{Masked, settle, with_errors};
use crate::explain::{
    Case, ExplainError, Finding, Misfit,
    estimators::{Ended, Run, Shapley, largest_standard_error},
};

/// One finding a target. `spent` is added to the evidence: what the budget came to for this input.
///
/// # Errors
/// What stopped the estimator, unless `partial` was asked for.
pub(super) fn findings(
    case: &Case<'_>,
    run: Run<Shapley>,
    game: &Masked<'_>,
    partial: bool,
    spent: &[(&str, usize)],
    details: &dyn Fn() -> Option<Value>,
) -> Result<Vec<Finding>, ExplainError> {
    let exact = matches!(run.ended, Ended::Exhausted) && !game.drawn();
    let mut ended = settle(run.ended, run.evaluations, partial)?;
    ended.insert("perturbed_rows".into(), game.shift()?);
    ended.extend(spent.iter().map(|(name, count)| ((*name).to_owned(), json!(count))));
    Ok((0..case.targets.len())
        .map(|target| finding(case, &run.estimate, target, exact, &ended, details()))
        .collect())
}

fn finding(
    case: &Case<'_>,
    estimate: &Shapley,
    target: usize,
    exact: bool,
    ended: &Map<String, Value>,
    details: Option<Value>,
) -> Finding {
    let errors = &estimate.standard_errors[target];
    let mut evidence = ended.clone();
    evidence.insert("efficiency_gap".into(), json!(estimate.efficiency_gap(target)));
    evidence.insert("exact".into(), json!(exact));
    // Null where nothing is known of the spread.
    evidence.insert("largest_standard_error".into(), json!(largest_standard_error(errors)));
    Finding {
        value: estimate.full[target],
        base_value: Some(estimate.base[target]),
        attributions: with_errors(case, &estimate.values[target], if exact { &[] } else { errors }),
        evidence,
        details,
    }
}

/// What a budget came to: `own` counts, and the draws for each subset where worths are drawn.
pub(super) fn spent<'a>(game: &Masked<'_>, draws: usize, own: &[(&'a str, usize)]) -> Vec<(&'a str, usize)> {
    let drawn = game.drawn().then_some(("draws", draws));
    own.iter().copied().chain(drawn).collect()
}

/// The samples of a regression over pairs of coalitions when the caller names none: three pairs a feature, of which
/// two are beyond size one. Long texts are given less than that, lest the price become the obstacle.
pub(super) fn paired_samples(features: usize) -> usize {
    (6 * features).clamp(1024, 10_000).max(2 * features)
}

/// The coalitions that a regression over `samples` in pairs evaluates: both ends, and as many pairs as the samples
/// allow or as there are.
///
/// # Errors
/// Samples fewer than twice the features, which no regression determines.
pub(super) fn paired_rows(features: usize, samples: usize) -> Result<u64, ExplainError> {
    let least = 2 * features;
    if samples < least {
        let detail = format!("is {samples}; at least {least} are needed, twice the number of features");
        return Err(Misfit::over("/parameters/samples", detail, "samples", least as u64).into());
    }
    Ok(all_within(features, samples).unwrap_or(2 * (samples as u64 / 2) + 2))
}

/// How many coalitions there are to evaluate when all of them fit into `samples`.
pub(super) fn all_within(features: usize, samples: usize) -> Option<u64> {
    (features < 63 && (1u64 << features) - 2 <= samples as u64).then(|| 1 << features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_grow_with_the_text() {
        let samples = [12, 170, 300, 505, 3_000, 8_192].map(paired_samples);
        assert_eq!(samples, [1_024, 1_024, 1_800, 3_030, 10_000, 16_384]);
    }
}
