//! `POST /explain/{method}`: the main job.

use axum::{
    Extension, Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};

use crate::{
    api::{
        Door,
        account::Work,
        body::JsonBody,
        problem::{Problem, ProblemBody},
    },
    explain::{self, ExplainAnswer, ExplainRequest},
};

use super::record_texts;

/// Explains what the model says about each input
#[utoipa::path(post, path = "/explain/{method}", tag = "explain", request_body = ExplainRequest,
    responses(
        (status = 200, description = "One result for each input, in order", body = ExplainAnswer,
            headers(("server-timing" = String, description = "Milliseconds of tokenize, queue, forward, reduce"))),
        (status = 400, description = "No JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such model", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "Too many bytes", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not declared as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The schema, the model or a limit refuses it; every misfit is pointed at", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full", body = ProblemBody, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds to wait"))),
        (status = 500, description = "A defect, or scores that are not finite", body = ProblemBody, content_type = "application/problem+json"),
        (status = 501, description = "The model's graph does not allow the method", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Starting or leaving", body = ProblemBody, content_type = "application/problem+json",
            headers(("retry-after" = u64, description = "Seconds to wait"))),
        (status = 504, description = "The deadline passed", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn explain(
    State(door): State<Door>,
    Path(slug): Path<String>,
    Extension(arrival): Extension<explain::Arrival>,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (method, schema) = door.document.method(&slug)?;
    let request: ExplainRequest = schema.read(body)?;
    record_texts(&request.inputs);
    let answer = door.run(move |house| explain::explain(house, method, &request, &arrival)).await?;
    Ok((Extension(Work::of_answer(&answer)), Json(answer)).into_response())
}
