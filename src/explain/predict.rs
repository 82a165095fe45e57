//! Where `POST /predict` is answered: scores only, of every label or of the best.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Arrival, ExplainError, House, Inputs, LabelScore, Misfit, Prediction, Timing, error::Gathered,
    reading::read_text,
};
use crate::{
    model::{Activation, Labels, Output},
    runtime::{Program, ProgramKind, Row},
};

/// What to score.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PredictRequest {
    /// One text, one text pair, or an array of them.
    pub inputs: Inputs,
    /// Name of the model. Absent: the only model, or the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub model: Option<String>,
    /// What is returned.
    #[serde(default)]
    pub parameters: PredictParameters,
    /// Milliseconds from the request's arrival, queueing included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub timeout_ms: Option<u64>,
    /// Cut a text that is longer than the model reads. Otherwise it is refused.
    #[serde(default)]
    #[schema(default = false)]
    pub truncate: bool,
}

/// What is returned.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PredictParameters {
    /// Only the labels with the highest scores. Absent: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub top_k: Option<usize>,
    /// How logits become scores. Absent: what the model's `problem_type` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub function_to_apply: Option<FunctionToApply>,
}

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FunctionToApply {
    /// One label is true.
    Softmax,
    /// Each label is true or not.
    Sigmoid,
    /// The logits themselves.
    None,
}

/// One label with its score.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LabelOf {
    /// The label.
    pub label: String,
    /// Its score.
    pub score: f64,
}

/// Scores every input of `request`. Blocks until the answer stands.
///
/// # Errors
/// Everything in [`ExplainError`] that does not concern methods.
pub fn predict(
    house: &House,
    request: &PredictRequest,
    arrival: &Arrival,
) -> Result<(Vec<Vec<LabelOf>>, Timing), ExplainError> {
    let model = house.models.find(request.model.as_deref())?;
    let list = request.inputs.list();
    house.limits.check_inputs(list.len())?;
    let rows: Vec<Row> = Gathered::all(list.iter().enumerate().map(|(index, input)| {
        let pointer = request.inputs.pointer(index);
        Ok(read_text(&model, input.texts(), request.truncate, &house.limits, &pointer)?.row())
    }))?;
    let tokenize = arrival.at.elapsed();
    let cost = rows.iter().map(|row| row.len() as u64).sum::<u64>() * ProgramKind::Forward.cost();
    let deadline = arrival.at + house.limits.timeout(request.timeout_ms)?;
    let lane = house
        .scheduler
        .admit(cost, deadline, arrival.cancel.clone())
        .map_err(|busy| ExplainError::Overloaded { retry_after: busy.retry_after })?;
    let program: &Arc<Program> = &model.forward;
    let started = Instant::now();
    let outs = lane.evaluate(program, rows)?;
    let queue = lane.spent().queued;
    let forward = started.elapsed().saturating_sub(queue);
    let labels = relabelled(&model.labels, request.parameters.function_to_apply);
    let answers = outs
        .iter()
        .map(|out| ranked(&labels, out.values.first().map_or(&[][..], Vec::as_slice), &request.parameters))
        .collect::<Result<_, _>>()?;
    let reduce = arrival.at.elapsed().saturating_sub(tokenize + queue + forward);
    Ok((answers, Timing { tokenize, queue, forward, reduce }))
}

fn relabelled(labels: &Labels, function: Option<FunctionToApply>) -> Labels {
    let activation = match function {
        None => labels.activation(),
        Some(FunctionToApply::Softmax) => Activation::Softmax,
        Some(FunctionToApply::Sigmoid) => Activation::Sigmoid,
        Some(FunctionToApply::None) => Activation::Identity,
    };
    Labels::named(labels.names().to_vec(), activation, labels.temperature())
}

fn ranked(
    labels: &Labels,
    logits: &[f32],
    parameters: &PredictParameters,
) -> Result<Vec<LabelOf>, ExplainError> {
    if parameters.top_k == Some(0) {
        return Err(Misfit::parameter("top_k", "must be at least 1").into());
    }
    let scores = labels.scores(logits)?;
    let mut all: Vec<LabelOf> = labels
        .names()
        .iter()
        .zip(scores)
        .map(|(label, score)| LabelOf { label: label.clone(), score })
        .collect();
    all.sort_by(|a, b| b.score.total_cmp(&a.score));
    all.truncate(parameters.top_k.unwrap_or(all.len()));
    Ok(all)
}

/// What the model said, with every label's score and logit.
///
/// # Errors
/// Logits that are not finite.
pub(super) fn prediction(labels: &Labels, logits: &[f32]) -> Result<Prediction, ExplainError> {
    let scores = labels.scores(logits)?;
    let logits_as_read = labels.values(Output::Logit, logits)?;
    Ok(Prediction {
        label: labels.names()[labels.predicted(logits)?].clone(),
        scores: labels
            .names()
            .iter()
            .zip(scores.iter().zip(logits_as_read))
            .map(|(label, (&score, logit))| LabelScore { label: label.clone(), score, logit })
            .collect(),
        temperature: labels.temperature(),
    })
}
