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
    model::{Activation, Need, Output},
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
        needs: &[Need::Forward, Need::Decision],
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
    /// Sets of absent features evaluated at most for a target, those that measure the rule found included. Each is
    /// evaluated once, with `neighbors` and `mlm` as often as it is drawn.
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
    /// For `neighbors` and `mlm`: fillings drawn at each evaluation, each of which is a text that keeps the prediction
    /// or does not.
    #[schema(minimum = 1, maximum = 64, default = 1)]
    pub draws: usize,
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
            draws: 1,
            partial: false,
        }
    }
}

impl Anchors {
    fn removal(&self) -> Removal<'_> {
        let Self { operation, k, floor, draws, .. } = *self;
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws }
    }

    fn draws_fillers(&self) -> bool {
        matches!(self.operation, Operation::Neighbors | Operation::Mlm)
    }
}

/// All samples for each target, or all subsets where these are fewer. Where one of two labels is true, what keeps the
/// decision on the one keeps that on the other.
fn price(parameters: &Anchors, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let Effort { variants, once } = parameters.removal().effort(subject, subject.features)?;
    let labels = &subject.model.labels;
    let one_decision = labels.activation() == Activation::Softmax && labels.len() <= 2;
    let rows = (parameters.samples * if one_decision { 1 } else { subject.targets }) as u64;
    let subsets = 1u64.checked_shl(subject.features.len() as u32).unwrap_or(u64::MAX);
    let rows = if parameters.draws_fillers() { rows } else { rows.min(subsets) };
    Ok(Price { forward: rows * variants as u64 + once as u64, gradient: 0 })
}

fn run(parameters: &Anchors, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let Anchors { threshold, delta, epsilon, beam, samples, .. } = *parameters;
    let (drawn, seed) = (parameters.draws_fillers(), case.subject.seed);
    let options = estimators::Anchors { threshold, delta, epsilon, beam, samples, drawn, seed };
    let masker = parameters.removal().masker(case, case.subject.features)?;
    let mut game = Masked::new(case, masker, What::Kept, parameters.partial);
    let runs = estimators::anchors(&mut game, &options).map_err(|error| refuse(error, &case.subject))?;
    let full = case.scalars(&case.logits)?;
    runs.into_iter()
        .zip(full)
        .map(|(run, value)| {
            let mut evidence = settle(run.ended, run.evaluations, parameters.partial)?;
            evidence.insert("perturbed_rows".into(), game.shift_over(&run.estimate.asked)?);
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
        |rows: &[(Coalition, f64)]| -> Vec<Value> { rows.iter().map(|it| example(subject, it)).collect() };
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
        "confidence": it.confidence,
    })
}

/// A perturbed text: what is present, the features in order with a gap for each that is not, and the share of ways to
/// fill the gaps that keeps the prediction.
fn example(subject: &Subject<'_>, (row, kept): &(Coalition, f64)) -> Value {
    let shown: Vec<&str> =
        (0..row.players()).map(|it| if row.contains(it) { text(subject, it) } else { "_" }).collect();
    json!({ "present": row.members().collect::<Vec<_>>(), "text": shown.join(" "), "kept": kept })
}
