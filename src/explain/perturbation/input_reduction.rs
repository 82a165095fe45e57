//! Input reduction: the shortest text that the model still says the same about.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::reduction::{Found, Guide, Reduced, Search};
use crate::{
    explain::{
        About, Case, ExplainError, Family, Finding, Method, Misfit, Operation, Price, Removal, Subject,
        Typed, attributions, distribution::Drift,
    },
    model::{
        Activation, Need, Output,
        text::{Encoded, Feature, Granularity, features},
    },
    runtime::Row,
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&INPUT_REDUCTION;

static INPUT_REDUCTION: Typed<InputReduction> = Typed {
    about: About {
        slug: "input-reduction",
        family: Family::Perturbation,
        summary: "What the score loses when a feature leaves the text at its turn, the least important first, while \
                  the prediction stays; for the features that remain, what the reduced text loses without each.",
        reference: "Feng, Wallace, Grissom, Iyyer, Rodriguez and Boyd-Graber (2018), Pathologies of Neural Models \
                    Make Interpretations Difficult, arXiv:1804.07781",
        output: Output::Probability,
        needs: &[Need::Forward],
        stops_early: true,
        example: r#"{"beam": 3}"#,
    },
    needs: |it| match it.importance {
        Importance::Gradient => vec![Need::Gradient],
        Importance::Auto | Importance::LeaveOneOut => Vec::new(),
    },
    price,
    run,
};

/// Parameters of input reduction.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InputReduction {
    /// What tells how important a feature is.
    #[schema(default = "auto")]
    pub importance: Importance,
    /// Texts kept at each length.
    #[schema(minimum = 1, maximum = 50, default = 5)]
    pub beam: usize,
    /// Words or phrases of the text that are never taken out, of at most 64 words each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub protected: Vec<String>,
    /// Which text of a pair is reduced; at least one feature of each stays.
    #[schema(default = "both")]
    pub side: Side,
}

/// What tells how important a feature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Importance {
    /// `gradient` where the model has a gradient graph, `leave_one_out` elsewhere.
    #[default]
    Auto,
    /// The magnitude of embedding times gradient of the predicted label's margin over the other labels.
    Gradient,
    /// The confidence that is lost without the feature; slower, and works on every model.
    LeaveOneOut,
}

/// Which text of a pair is reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Both; the only text, where there is no second.
    #[default]
    Both,
    /// The first.
    Text,
    /// The second.
    TextPair,
}

impl Default for InputReduction {
    fn default() -> Self {
        Self { importance: Importance::Auto, beam: 5, protected: Vec::new(), side: Side::Both }
    }
}

impl InputReduction {
    fn by_gradient(&self, subject: &Subject<'_>) -> bool {
        match self.importance {
            Importance::Auto => subject.model.gradient.is_ok(),
            Importance::Gradient => true,
            Importance::LeaveOneOut => false,
        }
    }

    /// Whether each feature is protected.
    fn locked(&self, subject: &Subject<'_>) -> Result<Vec<bool>, ExplainError> {
        let side = match self.side {
            Side::Both => None,
            Side::Text => Some(0),
            Side::TextPair if subject.encoded.texts.len() > 1 => Some(1),
            Side::TextPair => {
                return Err(Misfit::parameter("side", "is `text_pair`, and the input has one text").into());
            }
        };
        let mut locked: Vec<bool> =
            subject.features.iter().map(|it| side.is_some_and(|side| it.segment != side)).collect();
        if self.protected.is_empty() {
            return Ok(locked);
        }
        let words = features(subject.encoded, &Granularity::Word)
            .map_err(|error| ExplainError::Internal(error.to_string()))?;
        let (runs, found) = protected(subject.encoded, &words, &self.protected);
        if let Some(index) = self.protected.iter().position(|it| !found.contains(it.as_str())) {
            let detail = "is no word or phrase of the text, as it is written there";
            return Err(Misfit::new(format!("/parameters/protected/{index}"), detail).into());
        }
        for (feature, locked) in subject.features.iter().zip(&mut locked) {
            // The last run that begins before the feature's end reaches furthest.
            let before = runs.partition_point(|it| (it.segment, it.start) < (feature.segment, feature.end));
            let run = before.checked_sub(1).map(|it| &runs[it]);
            *locked |= run.is_some_and(|it| it.segment == feature.segment && feature.start < it.end);
        }
        Ok(locked)
    }
}

/// A stretch of one text.
struct Stretch {
    segment: u8,
    start: usize,
    end: usize,
}

/// Where the phrases stand, in order and apart, and those that were found. Each run of words is looked up once, however
/// many phrases there are.
fn protected<'a>(
    encoded: &Encoded,
    words: &[Feature],
    phrases: &'a [String],
) -> (Vec<Stretch>, HashSet<&'a str>) {
    let known: HashSet<&str> = phrases.iter().map(String::as_str).collect();
    let lengths: HashSet<usize> = known.iter().map(|it| it.chars().count()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let (mut runs, mut found): (Vec<Stretch>, HashSet<&str>) = (Vec::new(), HashSet::new());
    for (first, from) in words.iter().enumerate() {
        let ends = words[first..]
            .iter()
            .take(MOST_WORDS)
            .map_while(|it| (it.segment == from.segment && it.end - from.start <= longest).then_some(it.end));
        for end in ends.filter(|end| lengths.contains(&(end - from.start))) {
            let Some(phrase) = known.get(encoded.slice(from.segment, from.start, end)) else { continue };
            found.insert(*phrase);
            match runs.last_mut().filter(|it| it.segment == from.segment && from.start <= it.end) {
                Some(run) => run.end = run.end.max(end),
                None => runs.push(Stretch { segment: from.segment, start: from.start, end }),
            }
        }
    }
    (runs, found)
}

/// Words of a protected phrase at the most.
const MOST_WORDS: usize = 64;

/// At each length, for each text of the beam, one row for each candidate: as many candidates as the beam is wide by
/// gradient, one for each feature by leaving out; in the end one row for each feature that remains.
fn price(parameters: &InputReduction, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    if subject.model.labels.activation() == Activation::Identity {
        let detail = "is a regression: it makes no decision that could stay";
        return Err(Misfit::new("/model", detail).into());
    }
    let locked = parameters.locked(subject)?;
    let features = locked.len() as u64;
    let free = locked.iter().filter(|it| !**it).count() as u64;
    let beam = parameters.beam as u64;
    let by_gradient = parameters.by_gradient(subject);
    let rows = (0..free).fold(0u64, |rows, step| {
        let texts = if step == 0 { 1 } else { beam };
        let each = if by_gradient { beam.min(free - step) } else { free - step };
        rows.saturating_add(texts.saturating_mul(each))
    });
    Ok(match by_gradient {
        true => Price { forward: features, gradient: rows + 1 },
        false => Price { forward: rows.saturating_add(features), gradient: 0 },
    })
}

fn run(parameters: &InputReduction, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let subject = &case.subject;
    let by_gradient = parameters.by_gradient(subject);
    let guide = match by_gradient {
        true => Guide::Gradient(subject.model.gradient()?),
        false => Guide::LeaveOneOut,
    };
    let masker = Removal::plain(Operation::Delete, None).masker(case, subject.features)?;
    let locked = parameters.locked(subject)?;
    let protected = locked.iter().filter(|it| **it).count();
    let search = Search { case, masker, guide, beam: parameters.beam, locked };
    let found = search.run()?;
    let best = found.texts.first().ok_or_else(|| ExplainError::Internal("an empty beam".to_owned()))?;

    let mut evidence = evidence(&search, &found)?;
    evidence.insert("importance".into(), json!(if by_gradient { "gradient" } else { "leave_one_out" }));
    evidence.insert("protected".into(), json!(protected));
    let beams = found.texts.iter().map(|it| shown(&search, it)).collect::<Result<Vec<Value>, _>>()?;
    let details = json!({ "beams": beams });

    let losses = losses(&search, &found, best)?;
    let values = case.scalars(&found.logits)?;
    let finding = |(target, value): (usize, f64)| {
        let scores: Vec<f64> = losses.iter().map(|it| it[target]).collect();
        Finding {
            value,
            base_value: None,
            attributions: attributions(subject.encoded, subject.features, &scores),
            evidence: evidence.clone(),
            details: Some(details.clone()),
        }
    };
    Ok(values.into_iter().enumerate().map(finding).collect())
}

/// What every target loses with each feature: `[feature][target]`.
fn losses(search: &Search<'_>, found: &Found, best: &Reduced) -> Result<Vec<Vec<f64>>, ExplainError> {
    let case = search.case;
    let mut losses = vec![Vec::new(); best.kept.len()];
    let lost = |before: &[f64], after: Vec<f64>| before.iter().zip(after).map(|(b, a)| b - a).collect();
    let mut before = case.scalars(&found.logits)?;
    for (feature, logits) in &best.removed {
        let after = case.scalars(logits)?;
        losses[*feature] = lost(&before, after.clone());
        before = after;
    }
    let left: Vec<usize> = (0..best.kept.len()).filter(|&it| best.kept[it]).collect();
    let row = |gone: &usize| {
        let kept: Vec<bool> = best.kept.iter().enumerate().map(|(at, kept)| *kept && at != *gone).collect();
        search.row(&kept)
    };
    let rows: Vec<Row> = left.iter().map(row).collect();
    for (feature, after) in left.into_iter().zip(case.scores(rows)?) {
        losses[feature] = lost(&before, after);
    }
    Ok(losses)
}

/// How far the text was reduced, what the model makes of what is left, and what finding it took.
fn evidence(search: &Search<'_>, found: &Found) -> Result<Map<String, Value>, ExplainError> {
    let labels = &search.case.subject.model.labels;
    let input = search.confidence(&search.case.logits)?;
    let reduced: Vec<f64> =
        found.texts.iter().map(|it| search.confidence(&it.logits)).collect::<Result<_, _>>()?;
    let mut drift = Drift::default();
    for text in &found.texts {
        drift.add(labels, &text.logits, 1.0)?;
    }
    let best = reduced.first().copied().unwrap_or(input);
    let mut evidence = Map::new();
    evidence.insert("length".into(), json!(search.masker.len()));
    evidence.insert("reduced_length".into(), json!(search.masker.len() - found.steps));
    evidence.insert("confidence_of_input".into(), json!(input));
    evidence.insert("confidence_of_reduced".into(), json!(best));
    evidence.insert("confidence_rose".into(), json!(best > input));
    evidence.insert("beams".into(), json!(reduced.len()));
    evidence.insert("beams_that_rose".into(), json!(reduced.iter().filter(|it| **it > input).count()));
    evidence.insert("temperature".into(), json!(labels.temperature()));
    evidence.insert("perturbed_rows".into(), json!(drift.against(labels, &search.case.logits)?));
    evidence.insert("steps".into(), json!(found.steps));
    evidence.insert("rows".into(), json!(found.rows));
    evidence.insert("rows_per_run".into(), json!(found.rows as f64 / found.batches.max(1) as f64));
    Ok(evidence)
}

/// One final text: what is left, and what left it in which order.
fn shown(search: &Search<'_>, text: &Reduced) -> Result<Value, ExplainError> {
    let subject = &search.case.subject;
    let slice = |at: usize| {
        let it = &subject.features[at];
        subject.encoded.slice(it.segment, it.start, it.end)
    };
    let left: Vec<usize> = (0..text.kept.len()).filter(|&it| text.kept[it]).collect();
    let words: Vec<&str> = left.iter().map(|&it| slice(it)).collect();
    let step = |(feature, logits): &(usize, std::sync::Arc<[f32]>)| {
        let confidence = search.confidence(logits)?;
        Ok(json!({ "feature": feature, "text": slice(*feature), "confidence": confidence }))
    };
    let removed = text.removed.iter().map(step).collect::<Result<Vec<Value>, ExplainError>>()?;
    Ok(json!({
        "text": words.join(" "), "features": left, "confidence": search.confidence(&text.logits)?,
        "removed": removed,
    }))
}
