//! `POST /predict`: scores only, in the shape of the Hugging Face pipeline and of text-embeddings-inference.

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::{
        Door,
        account::Work,
        body::JsonBody,
        problem::{Problem, ProblemBody},
    },
    explain::{self, Inputs, LabelOf, PredictRequest},
};

use super::record_texts;

/// Labels with their scores, best first: one list for one input, a list of lists for an array.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Scores {
    /// For one input.
    One(Vec<LabelOf>),
    /// For an array of inputs, in order.
    Many(Vec<Vec<LabelOf>>),
}

/// What the model says about each input
#[utoipa::path(post, path = "/predict", tag = "predict", request_body = PredictRequest,
    responses(
        (status = 200, description = "Labels with their scores, best first", body = Scores,
            headers(("server-timing" = String, description = "Milliseconds of tokenize, queue, forward, reduce"))),
        (status = 400, description = "No JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such model", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "Too many bytes", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not declared as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The schema, the model or a limit refuses it; every misfit is pointed at", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full", body = ProblemBody, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds to wait"))),
        (status = 500, description = "A defect, or scores that are not finite", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Starting or leaving", body = ProblemBody, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds to wait"))),
        (status = 504, description = "The deadline passed", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn predict(
    State(door): State<Door>,
    Extension(arrival): Extension<explain::Arrival>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let request: PredictRequest = door.document.predict.read(body)?;
    record_texts(&request.inputs);
    let alone = matches!(request.inputs, Inputs::One(_));
    let (scores, timing) = door.run(move |house| explain::predict(house, &request, &arrival)).await?;
    Ok((Extension(Work::of_timing(timing)), Json(shaped(scores, alone))).into_response())
}

fn shaped(mut scores: Vec<Vec<LabelOf>>, alone: bool) -> Scores {
    match scores.pop() {
        Some(only) if alone => Scores::One(only),
        last => Scores::Many(scores.into_iter().chain(last).collect()),
    }
}
