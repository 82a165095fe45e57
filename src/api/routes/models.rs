//! `GET /models` and `GET /models/{model}`: what is served, and which methods work on it.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::{
        Door,
        problem::{Problem, ProblemBody},
    },
    explain::{ExplainError, Limits, registry::METHODS, works_by_default},
    model::{Activation, Entry, Model, Unavailable},
};

/// The models of this process.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// In the order of the settings; a request that names no model gets the first.
    models: Vec<ModelPage>,
}

/// One model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ModelPage {
    /// It is served.
    Ready(Box<ModelFacts>),
    /// It did not open, and the service was told to start without it.
    Failed {
        /// Its name.
        name: String,
        /// Why it did not open.
        reason: String,
    },
}

/// What there is to know of an open model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelFacts {
    /// The name that requests use.
    #[schema(example = "sst2")]
    name: String,
    /// SHA-256 of its graph and weights.
    digest: String,
    /// Its labels, in the order of the logits.
    #[schema(example = json!(["negative", "positive"]))]
    labels: Vec<String>,
    /// Whether the folder names the labels; otherwise they are asked for by index.
    labels_named: bool,
    /// How logits become scores.
    activation: Activation,
    /// What logits are divided by before that.
    temperature: f64,
    /// SHA-256 of its companion masked language model, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    fill_mask: Option<String>,
    /// Where it runs.
    #[schema(example = "cpu")]
    device: String,
    /// The element type of its logits.
    #[schema(example = "float32")]
    precision: &'static str,
    /// The hidden states that can be read and edited, the embeddings' output first; empty where the graph allows
    /// none.
    hidden_states: Vec<HiddenState>,
    /// Files of its folder that are used in place of derived graphs.
    #[schema(example = json!(["gradient.onnx"]))]
    own_graphs: Vec<String>,
    /// What one request may ask of it.
    limits: ModelLimits,
    /// Every method, and why some do not work on this model.
    methods: Vec<MethodOnModel>,
    /// What a caller should know beside the numbers.
    warnings: Vec<String>,
}

/// A hidden state.
#[derive(Debug, Serialize, ToSchema)]
pub struct HiddenState {
    /// The number that requests use.
    #[schema(example = 1)]
    layer: usize,
    /// Its axes: `tokens`, and the number of units.
    #[schema(value_type = Vec<Axis>, min_items = 2, max_items = 2, example = json!(["tokens", 384]))]
    shape: [Axis; 2],
}

/// An axis of a hidden state.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Axis {
    /// One whose length is the input's.
    Named(&'static str),
    /// One of a fixed length.
    Fixed(usize),
}

/// What one request may ask for.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelLimits {
    /// Tokens of one input, special tokens included; absent where the model has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_length: Option<usize>,
    /// Inputs in one request.
    max_inputs: usize,
    /// Code points in one text.
    max_text_chars: usize,
    /// Code points of one text without a place where a tokenizer may break.
    max_run_chars: usize,
    /// Forward and gradient passes of one request.
    max_passes: u64,
    /// Bytes of a request's body.
    max_body_bytes: u64,
    /// Milliseconds for a request that names none.
    default_timeout_ms: u64,
    /// The most milliseconds that a request may name.
    max_timeout_ms: u64,
}

/// One method on one model.
#[derive(Debug, Serialize, ToSchema)]
pub struct MethodOnModel {
    /// The method.
    #[schema(example = "leave-one-out")]
    method: &'static str,
    /// Whether it works with its default parameters.
    available: bool,
    /// Why it does not. With the code `parameters` it works with others than the defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    missing: Option<Unavailable>,
}

impl MethodOnModel {
    fn all(model: &Model) -> Vec<Self> {
        let one = |method: &&'static dyn crate::explain::Method| {
            let missing = works_by_default(*method, model).err();
            Self { method: method.about().slug, available: missing.is_none(), missing }
        };
        METHODS.iter().map(one).collect()
    }
}

fn hidden_states(model: &Model) -> Vec<HiddenState> {
    let widths = model.intervention().map_or(&[][..], |it| &it.widths);
    let state = |(layer, &width): (usize, &usize)| HiddenState {
        layer,
        shape: [Axis::Named("tokens"), Axis::Fixed(width)],
    };
    widths.iter().enumerate().map(state).collect()
}

impl ModelPage {
    fn of(door: &Door, limits: &Limits, name: &str, entry: &Entry) -> Self {
        match entry {
            Entry::Failed(reason) => Self::Failed { name: name.to_owned(), reason: reason.clone() },
            Entry::Ready(model) => Self::Ready(Box::new(ModelFacts::of(door, limits, name, model))),
        }
    }
}

impl ModelFacts {
    fn of(door: &Door, limits: &Limits, name: &str, model: &Model) -> Self {
        let (mut own_graphs, mut warnings) = (Vec::new(), model.warnings.clone());
        for it in model.own_graphs() {
            match it.unused {
                None => own_graphs.push(it.file),
                Some(reason) => warnings.push(format!("{} is not used: {reason}", it.file)),
            }
        }
        Self {
            name: name.to_owned(),
            digest: model.digest.clone(),
            labels: model.labels.names().to_vec(),
            labels_named: model.labels.are_named(),
            activation: model.labels.activation(),
            temperature: model.labels.temperature(),
            fill_mask: model.fill_mask.as_ref().ok().map(|it| it.digest.clone()),
            device: model.device.to_string(),
            precision: model.precision,
            hidden_states: hidden_states(model),
            own_graphs,
            limits: ModelLimits {
                max_length: model.max_length,
                max_inputs: limits.max_inputs,
                max_text_chars: limits.max_text_chars,
                max_run_chars: limits.max_run_chars,
                max_passes: limits.max_passes,
                max_body_bytes: door.settings.limits.max_body_bytes,
                default_timeout_ms: limits.default_timeout_ms,
                max_timeout_ms: limits.max_timeout_ms,
            },
            methods: MethodOnModel::all(model),
            warnings,
        }
    }
}

/// Every model with its labels, limits and methods
#[utoipa::path(get, path = "/models", tag = "about", responses(
    (status = 200, description = "The models, in the order of the settings", body = ModelList),
    (status = 503, description = "Starting", body = ProblemBody, content_type = "application/problem+json",
        headers(("retry-after" = u64, description = "Seconds to wait")))))]
pub async fn models(State(door): State<Door>) -> Result<Json<ModelList>, Problem> {
    let house = door.house()?;
    let page = |(name, entry): (&str, &Entry)| ModelPage::of(&door, &house.limits, name, entry);
    Ok(Json(ModelList { models: house.models.iter().map(page).collect() }))
}

/// One model with its labels, limits and methods
#[utoipa::path(get, path = "/models/{model}", tag = "about", params(("model" = String, Path, example = "sst2")),
    responses((status = 200, description = "The model, or why it did not open", body = ModelPage),
        (status = 404, description = "No such model", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Starting", body = ProblemBody, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds to wait")))))]
pub async fn model(State(door): State<Door>, Path(asked): Path<String>) -> Result<Json<ModelPage>, Problem> {
    let house = door.house()?;
    let found = house.models.iter().find(|(name, _)| *name == asked);
    let (name, entry) = found.ok_or(ExplainError::UnknownModel(asked.clone()))?;
    Ok(Json(ModelPage::of(&door, &house.limits, name, entry)))
}
