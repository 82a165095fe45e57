//! Where leave-one-out works on vectors instead of tokens: word embeddings, and the hidden states of a layer.

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::edit::{Edit, Editor, How, Part, mean_vector};
use crate::{
    explain::{Case, ExplainError, Finding, Misfit, Subject, attributions, distribution::Drift},
    model::text::Feature,
    runtime::{Extra, Program, Row},
};

/// What is taken out of a hidden state beside the positions of each feature.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Units {
    /// By kind.
    Kind(UnitKind),
    /// Groups of units by number, each group at once.
    Groups(Vec<Vec<usize>>),
}

/// Kinds of parts of a hidden state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// The positions of each feature alone.
    Token,
    /// Each unit of the layer, at all positions.
    Unit,
    /// The whole state.
    Layer,
}

/// An edit of one input's vectors, whatever the level.
pub struct Request<'a> {
    /// What is done.
    pub edit: Edit,
    /// How often random edits are drawn.
    pub draws: usize,
    /// Relative standard deviation of noise.
    pub noise: f64,
    /// The layer, its units and how many of them are told; `None` on the embedding level.
    pub hidden: Option<Hidden<'a>>,
}

/// What a request asks of a hidden state.
#[derive(Clone, Copy)]
pub struct Hidden<'a> {
    /// Which hidden state; 0 is the embeddings' output.
    pub layer: usize,
    /// Which other state is swapped in.
    pub swap_with: Option<usize>,
    /// What is taken out.
    pub unit: &'a Units,
    /// Units that are told, largest scores first.
    pub top: usize,
}

impl Request<'_> {
    /// Refuses what does not fit the model.
    ///
    /// # Errors
    /// Misfits of `layer`, `unit`, `swap_with`, `noise` and `operation`.
    pub fn check(&self, subject: &Subject<'_>) -> Result<(), ExplainError> {
        let refuse = |name: &str, detail: String| Err(Misfit::parameter(name, detail).into());
        if !self.noise.is_finite() || self.noise < 0.0 {
            return refuse("noise", "must be a finite number of at least 0".to_owned());
        }
        let Some(hidden) = self.hidden else {
            return match self.edit {
                Edit::Zero | Edit::Mean | Edit::Random | Edit::Noise => Ok(()),
                Edit::Shuffle | Edit::Swap => refuse(
                    "operation",
                    "goes with `level: \"hidden\"`; embeddings take zero, mean, random or noise".to_owned(),
                ),
            };
        };
        if self.edit == Edit::Random {
            return refuse(
                "operation",
                "goes with `level: \"embedding\"`; hidden states take zero, mean, noise, shuffle or swap"
                    .to_owned(),
            );
        }
        let widths = &subject.model.intervention()?.widths;
        let last = widths.len().saturating_sub(1);
        let missing = |layer: usize| format!("there is no hidden state {layer}; the model has 0 to {last}");
        let Some(&width) = widths.get(hidden.layer) else { return refuse("layer", missing(hidden.layer)) };
        match (self.edit, hidden.swap_with) {
            (Edit::Swap, None) => {
                return refuse("swap_with", "is required by `operation: \"swap\"`".to_owned());
            }
            (Edit::Swap, Some(other)) => match widths.get(other) {
                None => return refuse("swap_with", missing(other)),
                Some(&found) if found != width => {
                    let detail = format!(
                        "hidden state {other} has {found} units and state {} has {width}",
                        hidden.layer
                    );
                    return refuse("swap_with", detail);
                }
                Some(_) => {}
            },
            (_, Some(_)) => return refuse("swap_with", "goes with `operation: \"swap\"`".to_owned()),
            (_, None) => {}
        }
        let Units::Groups(groups) = hidden.unit else { return Ok(()) };
        if groups.is_empty() {
            return refuse("unit", "holds no group of units".to_owned());
        }
        for (group, units) in groups.iter().enumerate() {
            if units.is_empty() {
                return refuse(&format!("unit/{group}"), "holds no unit".to_owned());
            }
            if let Some(place) = units.iter().position(|&it| it >= width) {
                let detail = format!(
                    "there is no unit {}; hidden state {} has 0 to {}",
                    units[place],
                    hidden.layer,
                    width - 1
                );
                return refuse(&format!("unit/{group}/{place}"), detail);
            }
            let mut seen = HashSet::new();
            if let Some(place) = units.iter().position(|it| !seen.insert(it)) {
                let detail = format!("the group holds unit {} twice", units[place]);
                return refuse(&format!("unit/{group}/{place}"), detail);
            }
        }
        Ok(())
    }

    /// Rows that are evaluated for one input of this many features, the unedited one included.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn rows(&self, subject: &Subject<'_>, features: usize) -> Result<u64, ExplainError> {
        self.check(subject)?;
        let parts = features + 1 + self.unit_parts(subject)?.len();
        Ok((parts * self.draws + 1) as u64)
    }

    /// The parts beside the features: units or groups of them, and the whole state behind them.
    fn unit_parts(&self, subject: &Subject<'_>) -> Result<Vec<Part>, ExplainError> {
        let Some(Hidden { layer, unit, .. }) = self.hidden else { return Ok(Vec::new()) };
        let mut parts: Vec<Part> = match unit {
            Units::Kind(UnitKind::Token) => return Ok(Vec::new()),
            Units::Kind(UnitKind::Layer) => Vec::new(),
            Units::Kind(UnitKind::Unit) => {
                let width = subject.model.intervention()?.widths[layer];
                (0..width).map(|it| Part::Units(vec![it])).collect()
            }
            Units::Groups(groups) => groups.iter().cloned().map(Part::Units).collect(),
        };
        parts.push(Part::Whole);
        Ok(parts)
    }

    /// `score(part) = v(x) − v(x with the part edited)`.
    ///
    /// # Errors
    /// As [`Request::check`]; deadline, cancellation, a failed run.
    pub fn run(&self, case: &Case<'_>, features: &[Feature]) -> Result<Vec<Finding>, ExplainError> {
        let units = self.unit_parts(&case.subject)?;
        let mut parts: Vec<Part> = features.iter().map(|it| Part::Tokens(it.tokens.clone())).collect();
        parts.push(Part::Tokens(features.iter().flat_map(|it| it.tokens.iter().copied()).collect()));
        parts.extend(units.iter().cloned());
        let Stage { editor, program, beside, full } = self.stage(case)?;
        let row = |extra: Extra| {
            let extras = std::iter::once(extra).chain(beside.clone()).collect();
            Row { extras, ..case.row.clone() }
        };
        let draws = self.draws;
        let rows =
            (0..parts.len() * draws).map(|at| row(editor.edited(parts[at / draws].clone(), at as u64)));
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); parts.len() * draws];
        case.lane.stream(&program, rows, |place, out| {
            logits[place] = out.values.into_iter().next().unwrap_or_default();
        })?;
        let scalars = logits.iter().map(|it| case.scalars(it)).collect::<Result<Vec<_>, _>>()?;
        let values = case.scalars(&full)?;
        let labels = &case.subject.model.labels;
        let mut drift = Drift::default();
        for row in &logits[..features.len() * draws] {
            drift.add(labels, row, 1.0 / draws as f64)?;
        }
        let shift = drift.against(labels, &case.logits)?;
        let finding = |target: usize| {
            let drawn = |part: usize| Drawn::of(&scalars[part * draws..(part + 1) * draws], target);
            let value = values[target];
            let told: Vec<Drawn> = (0..features.len()).map(drawn).collect();
            let scores: Vec<f64> = told.iter().map(|it| value - it.mean).collect();
            let Drawn { mean: base, standard_error: base_error } = drawn(features.len());
            let mut attributions = attributions(case.subject.encoded, features, &scores);
            for (it, drawn) in attributions.iter_mut().zip(&told) {
                it.standard_error = drawn.standard_error;
            }
            let mut evidence = Map::new();
            let residual = scores.iter().sum::<f64>() - (value - base);
            evidence.insert("interaction_residual".into(), json!(residual));
            let raises: Vec<usize> = (0..scores.len()).filter(|&it| scores[it] < 0.0).collect();
            evidence.insert("raises_score".into(), json!(raises));
            if let Some(error) = base_error {
                evidence.insert("base_standard_error".into(), json!(error));
            }
            evidence.insert("perturbed_rows".into(), json!(shift));
            let behind = |at: usize| drawn(features.len() + 1 + at);
            let details = self.hidden.filter(|_| !units.is_empty()).map(|hidden| {
                let scored: Vec<(f64, Option<f64>)> =
                    (0..units.len()).map(behind).map(|it| (value - it.mean, it.standard_error)).collect();
                details(hidden, &units, &scored)
            });
            Finding { value, base_value: Some(base), attributions, evidence, details }
        };
        Ok((0..case.targets.len()).map(finding).collect())
    }

    /// The input's vectors, ready to be edited, and the graph that reads them.
    fn stage(&self, case: &Case<'_>) -> Result<Stage, ExplainError> {
        let graph = case.subject.model.intervention()?;
        let words = &graph.embedded.words;
        let x: Arc<[f32]> = case.row.ids.iter().flat_map(|&id| words.row(id)).copied().collect();
        let embedded = Row { extras: vec![Extra::Values(x.clone())], ..case.row.clone() };
        let seed = case.subject.seed;
        let (program, asked) = match self.hidden {
            None => (graph.embedded.program.clone(), graph.embedded.program.clone()),
            Some(_) => (graph.states()?, graph.states()?),
        };
        let mut out = case.run(&asked, vec![embedded])?.remove(0).values;
        let full = out.remove(0);
        let Some(hidden) = self.hidden else {
            let how = match self.edit {
                Edit::Mean => How::Vector(words.mean().into()),
                Edit::Random => How::Random(words.clone()),
                Edit::Noise => How::Noise(self.noise),
                Edit::Zero | Edit::Shuffle | Edit::Swap => How::Zero,
            };
            let editor = Editor { state: x, width: words.hidden, how, seed };
            return Ok(Stage { editor, program, beside: None, full });
        };
        let restart = graph.from_state(hidden.layer)?;
        let width = graph.widths[hidden.layer];
        let state: Arc<[f32]> = out[hidden.layer].as_slice().into();
        let how = match self.edit {
            Edit::Mean => How::Vector(mean_vector(&state, width).into()),
            Edit::Noise => How::Noise(self.noise),
            Edit::Shuffle => How::Shuffle,
            Edit::Swap => How::State(out[hidden.swap_with.unwrap_or(hidden.layer)].as_slice().into()),
            Edit::Zero | Edit::Random => How::Zero,
        };
        let beside = restart.reads_embeddings.then(|| Extra::Values(x));
        Ok(Stage { editor: Editor { state, width, how, seed }, program: restart.program, beside, full })
    }
}

struct Stage {
    editor: Editor,
    program: Arc<Program>,
    /// A second extra of every row.
    beside: Option<Extra>,
    /// The logits of the unedited input.
    full: Vec<f32>,
}

/// The scalar of one part over its draws.
struct Drawn {
    mean: f64,
    /// `None` where there is one draw.
    standard_error: Option<f64>,
}

impl Drawn {
    fn of(draws: &[Vec<f64>], target: usize) -> Self {
        let count = draws.len() as f64;
        let mean = draws.iter().map(|it| it[target]).sum::<f64>() / count;
        let squares: f64 = draws.iter().map(|it| (it[target] - mean).powi(2)).sum();
        let standard_error = (draws.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
        Self { mean, standard_error }
    }
}

/// What is told of units: the whole state, and the units or groups with the largest scores by size.
fn details(hidden: Hidden<'_>, parts: &[Part], scored: &[(f64, Option<f64>)]) -> Value {
    let entry = |(score, standard_error): (f64, Option<f64>)| {
        let mut entry = Map::from_iter([("score".to_owned(), json!(score))]);
        if let Some(error) = standard_error {
            entry.insert("standard_error".to_owned(), json!(error));
        }
        entry
    };
    let count = parts.len() - 1;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| scored[b].0.abs().total_cmp(&scored[a].0.abs()).then(a.cmp(&b)));
    let told = |&at: &usize| {
        let units = match &parts[at] {
            Part::Units(units) => units.clone(),
            Part::Tokens(_) | Part::Whole => Vec::new(),
        };
        let mut told = Map::from_iter([("units".to_owned(), json!(units))]);
        told.extend(entry(scored[at]));
        told
    };
    let top: Vec<_> = order.iter().take(hidden.top).map(told).collect();
    json!({
        "layer": hidden.layer,
        "whole": entry(scored[count]),
        "units": top,
        "units_scored": count,
        // The sum of nothing is negative zero.
        "units_sum": scored[..count].iter().map(|it| it.0).sum::<f64>() + 0.0,
    })
}
