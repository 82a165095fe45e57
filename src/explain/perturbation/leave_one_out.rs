//! Leave one out: the score that is lost when a feature is taken out.

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use utoipa::ToSchema;

use super::levels::{Hidden, Request};
use super::{Edit, UnitKind, Units};
use crate::{
    explain::{
        About, Case, Effort, ExplainError, Family, Finding, Method, Misfit, Operation, Price, Removal,
        Subject, Typed, attributions, distribution::Drift, estimators::mean_and_variance,
    },
    model::{
        Need, Output,
        text::{Feature, windows},
    },
};

/// The row of the registry.
pub static METHOD: &dyn Method = &&LEAVE_ONE_OUT;

static LEAVE_ONE_OUT: Typed<LeaveOneOut> = Typed {
    about: About {
        slug: "leave-one-out",
        family: Family::Perturbation,
        summary: "The score that is lost when a feature is taken out of the text.",
        reference: "Li, Monroe and Jurafsky (2016), Understanding Neural Networks through Representation \
                    Erasure, arXiv:1612.08220",
        output: Output::Logit,
        needs: &[Need::Forward],
        stops_early: false,
        example: r#"{"operation": "mask"}"#,
    },
    needs: |parameters| match parameters.level {
        Level::Token => match parameters.operation {
            How::Tokens(operation) => operation.needs(),
            How::Vectors(_) => Vec::new(),
        },
        Level::Embedding => vec![Need::Embeddings],
        Level::Hidden => vec![Need::HiddenStates],
    },
    price,
    run,
};

/// Parameters of leave-one-out.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, from = "Asked")]
pub struct LeaveOneOut {
    /// What is changed: the feature's tokens, their word embeddings, or a hidden state.
    #[schema(default = "token", required = false)]
    pub level: Level,
    /// How a feature is taken out: `mask` by default for tokens; embeddings and hidden states take `zero` (their
    /// default), `mean` and `noise`, embeddings also `random`, hidden states also `shuffle` and `swap`.
    #[schema(default = "mask", required = false)]
    pub operation: How,
    /// For `replace`: a list of texts for each feature, in the order of the features.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replacements: Option<Vec<Vec<String>>>,
    /// For `neighbors` and `mlm`: how many words may stand for a word. A feature of one word gets all of them, a
    /// feature of several as many joint fillings.
    #[schema(minimum = 1, maximum = 100, default = 10, required = false)]
    pub k: usize,
    /// For `mlm`: fillers below this probability are left out, the most probable stays.
    #[schema(minimum = 0.0, maximum = 1.0, default = 0.0, required = false)]
    pub floor: f64,
    /// Take out windows of consecutive words instead of the request's granularity; windows may overlap, and
    /// each gets a score of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub window: Option<Window>,
    /// Which hidden state, for `level: "hidden"`: 0 is the embeddings' output, the last is what the classifier
    /// reads. `GET /models/{model}` lists them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub layer: Option<usize>,
    /// What is taken out of the hidden state: the positions of each feature (`token`, by default), and beside them
    /// each `unit` at all positions, groups of units by number, or the whole `layer`. Scores of units are in the
    /// details.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub unit: Option<Units>,
    /// For `swap`: the hidden state whose components are put in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub swap_with: Option<usize>,
    /// For `noise`: its standard deviation in parts of that of the token's own vector; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0.0, maximum = 10.0)]
    pub noise: Option<f64>,
    /// How often `random`, `noise` and `shuffle` are drawn; scores are means with standard errors. 8 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 1024)]
    pub draws: Option<usize>,
    /// How many units are told, those with the largest scores first; 10 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 65536)]
    pub top: Option<usize>,
}

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The feature's tokens.
    #[default]
    Token,
    /// The word embeddings of the feature's tokens; positions and segments stay.
    Embedding,
    /// A hidden state: the vectors at the feature's tokens, and units.
    Hidden,
}

/// How something is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum How {
    /// Out of the tokens.
    Tokens(Operation),
    /// Out of vectors.
    Vectors(Edit),
}

/// The parameters as they are asked for; defaults depend on one another.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    level: Level,
    operation: Option<How>,
    replacements: Option<Vec<Vec<String>>>,
    k: Option<usize>,
    floor: Option<f64>,
    window: Option<Window>,
    layer: Option<usize>,
    unit: Option<Units>,
    swap_with: Option<usize>,
    noise: Option<f64>,
    draws: Option<usize>,
    top: Option<usize>,
}

impl From<Asked> for LeaveOneOut {
    fn from(asked: Asked) -> Self {
        let Asked { level, replacements, window, layer, swap_with, .. } = asked;
        let operation = asked.operation.unwrap_or(match level {
            Level::Token => How::Tokens(Operation::default()),
            Level::Embedding | Level::Hidden => How::Vectors(Edit::Zero),
        });
        // A default is filled in only where its field has a meaning: what is there elsewhere was sent.
        let vectors = level != Level::Token;
        let random = vectors && matches!(operation, How::Vectors(it) if it.is_random());
        let noisy = vectors && operation == How::Vectors(Edit::Noise);
        let hidden = level == Level::Hidden;
        let unit = asked.unit.or(hidden.then_some(Units::Kind(UnitKind::Token)));
        let told = hidden && unit.as_ref().is_some_and(|it| *it != Units::Kind(UnitKind::Token));
        Self {
            level,
            operation,
            replacements,
            k: asked.k.unwrap_or(10),
            floor: asked.floor.unwrap_or(0.0),
            window,
            layer,
            unit,
            swap_with,
            noise: asked.noise.or(noisy.then_some(1.0)),
            draws: asked.draws.or(random.then_some(8)),
            top: asked.top.or(told.then_some(10)),
        }
    }
}

/// One way to take features out.
enum Taking<'a> {
    Tokens(Removal<'a>),
    Vectors(Request<'a>),
}

/// Windows of consecutive words.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Words in a window.
    #[schema(minimum = 1)]
    pub window: usize,
    /// Words from the start of one window to the start of the next.
    #[serde(default = "one")]
    #[schema(minimum = 1, default = 1)]
    pub stride: usize,
}

fn one() -> usize {
    1
}

impl LeaveOneOut {
    fn features(&self, subject: &Subject<'_>) -> Result<Vec<Feature>, ExplainError> {
        match self.window {
            None => Ok(subject.features.to_vec()),
            Some(it) => windows(subject.encoded, it.window, it.stride)
                .map_err(|error| Misfit::parameter("window", error.to_string()).into()),
        }
    }

    fn removal(&self, operation: Operation) -> Removal<'_> {
        let Self { k, floor, .. } = *self;
        Removal { operation, replacements: self.replacements.as_deref(), k, floor, draws: k }
    }

    /// Which way, once the parameters are known to fit one another.
    fn taking(&self) -> Result<Taking<'_>, ExplainError> {
        let vectors = self.level != Level::Token;
        let hidden = self.level == Level::Hidden;
        let whole = self.unit == Some(Units::Kind(UnitKind::Token));
        let random = matches!(self.operation, How::Vectors(it) if it.is_random());
        let noisy = self.operation == How::Vectors(Edit::Noise);
        let of_vectors = matches!(self.operation, How::Vectors(_));
        let to_hidden = "goes with `level: \"hidden\"`";
        let misplaced = [
            ("operation", of_vectors && !vectors, "goes with `level: \"embedding\"` or `level: \"hidden\"`"),
            (
                "operation",
                !of_vectors && vectors,
                "goes with `level: \"token\"`; vectors take zero, mean, random, noise, shuffle or swap",
            ),
            ("replacements", self.replacements.is_some() && vectors, "goes with `level: \"token\"`"),
            ("layer", self.layer.is_some() && !hidden, to_hidden),
            ("unit", self.unit.is_some() && !hidden, to_hidden),
            ("swap_with", self.swap_with.is_some() && !hidden, to_hidden),
            ("top", self.top.is_some() && !hidden, to_hidden),
            ("top", self.top.is_some() && whole, "goes with a `unit` other than `token`"),
            ("noise", self.noise.is_some() && !noisy, "goes with `operation: \"noise\"`"),
            ("draws", self.draws.is_some() && !random, "goes with the operations random, noise and shuffle"),
            ("layer", self.layer.is_none() && hidden, "is required by `level: \"hidden\"`"),
        ];
        let misfits: Vec<Misfit> = misplaced
            .into_iter()
            .filter(|it| it.1)
            .map(|(name, _, detail)| Misfit::parameter(name, detail))
            .collect();
        if !misfits.is_empty() {
            return Err(ExplainError::Misfits(misfits));
        }
        let edit = match self.operation {
            How::Tokens(operation) => return Ok(Taking::Tokens(self.removal(operation))),
            How::Vectors(edit) => edit,
        };
        let hidden = self.layer.zip(self.unit.as_ref()).map(|(layer, unit)| Hidden {
            layer,
            unit,
            swap_with: self.swap_with,
            top: self.top.unwrap_or(0),
        });
        let draws = self.draws.unwrap_or(1).max(1);
        Ok(Taking::Vectors(Request { edit, draws, noise: self.noise.unwrap_or(0.0), hidden }))
    }
}

/// One row for each feature and one with all of them gone, as often as there are replacements; with `mlm` one row
/// of the companion for each feature, and fewer replacements where the vocabulary or the floor leaves fewer. Vectors
/// need the unedited row too, and a row for each unit.
fn price(parameters: &LeaveOneOut, subject: &Subject<'_>) -> Result<Price, ExplainError> {
    let features = parameters.features(subject)?;
    let forward = match parameters.taking()? {
        Taking::Vectors(request) => request.rows(subject, features.len())?,
        Taking::Tokens(removal) => {
            let Effort { variants, once } = removal.effort(subject, &features)?;
            ((features.len() + 1) * variants + once) as u64
        }
    };
    Ok(Price { forward, gradient: 0 })
}

/// `score(f) = v(x) − v(x without f)`.
fn run(parameters: &LeaveOneOut, case: &Case<'_>) -> Result<Vec<Finding>, ExplainError> {
    let features = parameters.features(&case.subject)?;
    let removal = match parameters.taking()? {
        Taking::Vectors(request) => return request.run(case, &features),
        Taking::Tokens(removal) => removal,
    };
    let masker = removal.masker(case, &features)?;
    let mut groups: Vec<_> = (0..features.len()).map(|gone| masker.without(gone)).collect();
    let empty = masker.rows(|_| true, 0);
    let share = 1.0 / empty.len() as f64;
    groups.push(empty.into_iter().map(|row| (row, share)).collect());

    let logits = case.forward(groups.iter().flatten().map(|(row, _)| row.clone()).collect())?;
    let full = case.scalars(&case.logits)?;
    let labels = &case.subject.model.labels;
    let mut drift = Drift::default();
    let mut means = vec![vec![0.0; full.len()]; groups.len()];
    let mut draws: Vec<Vec<Vec<f64>>> = vec![Vec::new(); groups.len()];
    let mut answers = logits.iter();
    for (group, (rows, mean)) in groups.iter().zip(&mut means).enumerate() {
        for ((_, weight), logits) in rows.iter().zip(&mut answers) {
            let scalars = case.scalars(logits)?;
            mean.iter_mut().zip(&scalars).for_each(|(mean, it)| *mean += weight * it);
            draws[group].push(scalars);
            if group < features.len() {
                drift.add(labels, logits, *weight)?;
            }
        }
    }
    let shift = drift.against(labels, &case.logits)?;
    let fillers = masker.fillers(case.subject.model).map(|it| json!({ "fillers": it }));

    let finding = |target: usize| {
        let mean = |group: usize| means[group][target];
        let value = full[target];
        let scores: Vec<f64> = (0..features.len()).map(|gone| value - mean(gone)).collect();
        let base = mean(features.len());
        let error = |group: usize| {
            let draws: Vec<f64> = draws[group].iter().map(|it| it[target]).collect();
            Some(mean_and_variance(&draws).1.sqrt()).filter(|it| it.is_finite())
        };
        let mut evidence = Map::new();
        evidence.insert("interaction_residual".into(), json!(scores.iter().sum::<f64>() - (value - base)));
        evidence.insert("raises_score".into(), json!(indices(&scores, |score| score < 0.0)));
        evidence.insert("perturbed_rows".into(), json!(shift));
        if let Some(error) = error(features.len()).filter(|_| removal.operation.fills()) {
            evidence.insert("base_standard_error".into(), json!(error));
        }
        let mut attributions = attributions(case.subject.encoded, &features, &scores);
        for (feature, it) in attributions.iter_mut().enumerate() {
            it.standard_error = if masker.draws_without(feature) { error(feature) } else { None };
        }
        Finding { value, base_value: Some(base), attributions, evidence, details: fillers.clone() }
    };
    Ok((0..case.targets.len()).map(finding).collect())
}

fn indices(scores: &[f64], which: impl Fn(f64) -> bool) -> Vec<usize> {
    (0..scores.len()).filter(|&at| which(scores[at])).collect()
}
