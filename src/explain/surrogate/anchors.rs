//! Anchors: the features that hold the prediction whatever happens to the others.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::masked::{Masked, What, refuse, settle, text, with_errors};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Operation, Price, Removal, Subject,
        Typed,
        estimators::{self, Coalition, Interval, Rule},
    },
    model::{Need, Output},
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&ANCHORS;

static ANCHORS: Typed<Anchors> = Typed {
    about: About {
        slug: "anchors",
        family: Family::Surrogate,
        summary: "What a feature adds to the precision of the shortest rule \"if these words are present, the \
                  prediction holds\"; 0 for features outside of the rule.",
        reference: "Ribeiro, Singh and Guestrin (2018), Anchors: High-Precision Model-Agnostic Explanations",
        output: Output::Probability,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"samples": 1000}"#,
    },
    needs: |it| it.operation.needs(),
    price,
    run,
};

/// Parameters of anchors.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Anchors {
    /// The precision asked of the rule: the share of perturbed texts with these words that keep the prediction.
    #[schema(exclusive_minimum = 0.0, exclusive_maximum = 1.0, default = 0.95)]
    pub threshold: f64,
    /// The probability with which the search may take a wrong rule.
    #[schema(exclusive_minimum = 0.0, exclusive_maximum = 1.0, default = 0.1)]
    pub delta: f64,
    /// How far apart the precisions of two rules may be and count as equal.
    #[schema(exclusive_minimum = 0.0, exclusive_maximum = 1.0, default = 0.15)]
    pub epsilon: f64,
    /// Rules kept at each length.
    #[schema(minimum = 1, maximum = 32, default = 4)]
    pub beam: usize,
    /// Distinct perturbed texts at most, those that measure the rule found included.
    #[schema(minimum = 756, maximum = 200_000, default = 10_000)]
    pub samples: usize,
    /// How a feature is taken out.
    #[schema(default = "mask")]
    pub operation: Operation,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
    /// For `neighbors` and `mlm`: how many words may stand for a word.
    #[schema(minimum = 1, maximum = 100, default = 10)]
    pub k: usize,
    /// For `mlm`: fillers below this probability are left out, the most probable stays.
    #[schema(minimum = 0.0, maximum = 1.0, default = 0.0)]
    pub floor: f64,
    /// For `neighbors` and `mlm`: fillings drawn for each subset, whose scores are averaged. Absent: one, and up to
    /// 32 where all subsets are fewer than the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 64)]
    pub draws: Option<usize>,
    /// When the deadline passes, answer with the best rule seen by then, marked `partial`.
    #[schema(default = false)]
    pub partial: bool,
}

impl Default for Anchors {
    fn default() -> Self {
        Self {
            threshold: 0.95,
            delta: 0.1,
            epsilon: 0.15,
            beam: 4,
            samples: 10_000,
            operation: Operation::default(),
            replacements: None,
            k: 10,
            floor: 0.0,
            draws: None,
            partial: false,
        }
    }
}

impl Anchors {
    fn removal(&self, features: usize) -> Removal<'_> {
        let Self { operation, k, floor, .. } = *self;
        let draws = self.draws.unwrap_or_else(|| Removal::draws_for(features, self.samples));
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }
}

/// All samples for each target, or all subsets where there are fewer.
fn price(parameters: &Anchors, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let Effort { variants, once } =
        parameters.removal(subject.features.len()).effort(subject, subject.features)?;
    let subsets = 1u64.checked_shl(subject.features.len() as u32).unwrap_or(u64::MAX);
    let rows = subsets.min(parameters.samples as u64);
    Ok(Price { forward: rows * variants as u64 * subject.targets as u64 + once as u64, gradient: 0 })
}

fn run(parameters: &Anchors, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let Anchors { threshold, delta, epsilon, beam, samples, .. } = *parameters;
    let options = estimators::Anchors { threshold, delta, epsilon, beam, samples, seed: case.subject.seed };
    let masker = parameters.removal(case.subject.features.len()).masker(case, case.subject.features)?;
    let mut game = Masked::new(case, masker, What::Kept, parameters.partial);
    let full = case.scalars(&case.logits)?;
    full.into_iter()
        .enumerate()
        .map(|(target, value)| {
            let run = estimators::anchors(&mut game, target, &options)
                .map_err(|error| refuse(error, &case.subject))?;
            let mut evidence = settle(run.ended, run.evaluations, parameters.partial)?;
            evidence.insert("perturbed_rows".into(), game.shift()?);
            Ok(finding(case, &run.estimate, value, evidence))
        })
        .collect()
}

fn finding(case: &Case<'_>, rule: &Rule, value: f64, mut evidence: Map<String, Value>) -> Finding {
    let subject = &case.subject;
    evidence.insert("precision".into(), interval(&rule.precision));
    evidence.insert("coverage".into(), interval(&rule.coverage));
    evidence.insert("met".into(), json!(rule.met));
    let mut scores = vec![0.0; subject.features.len()];
    for pair in rule.prefixes.windows(2) {
        if let Some(&added) = pair[1].0.last() {
            scores[added] = pair[1].1.share - pair[0].1.share;
        }
    }
    let words = |features: &[usize]| -> Vec<Value> {
        features.iter().map(|&it| json!({ "feature": it, "text": text(subject, it) })).collect()
    };
    let prefixes: Vec<Value> = rule
        .prefixes
        .iter()
        .map(|(features, precision)| json!({ "rule": words(features), "precision": interval(precision) }))
        .collect();
    let examples =
        |rows: &[Coalition]| -> Vec<Value> { rows.iter().map(|row| example(subject, row)).collect() };
    let keep = estimators::ANCHORS_KEEP;
    Finding {
        value,
        base_value: None,
        attributions: with_errors(case, &scores, &[]),
        evidence,
        details: Some(json!({
            "rule": words(&rule.players),
            "prefixes": prefixes,
            "distribution": format!("each feature outside of the rule stays with probability {keep}"),
            "holds": examples(&rule.holds),
            "fails": examples(&rule.fails),
        })),
    }
}

fn interval(it: &Interval) -> Value {
    json!({
        "share": it.share, "low": it.low, "high": it.high, "samples": it.samples,
        "confidence": Interval::CONFIDENCE,
    })
}

/// A perturbed text: what is present, and the features in order with a gap for each that is not.
fn example(subject: &Subject<'_>, row: &Coalition) -> Value {
    let shown: Vec<&str> =
        (0..row.players()).map(|it| if row.contains(it) { text(subject, it) } else { "_" }).collect();
    json!({ "present": row.members().collect::<Vec<_>>(), "text": shown.join(" ") })
}
