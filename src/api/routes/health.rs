//! `GET /livez`, `/readyz`, `/startupz` and `/health`: none waits for a model.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::{
    Door,
    life::Phase,
    problem::{Kind, Problem, ProblemBody},
};

/// A probe's good news.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`; bad news is a problem.
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Json<Health> = Json(Health { status: "ok" });

/// The process answers
#[utoipa::path(get, path = "/livez", tag = "probes", responses((status = 200, description = "Yes", body = Health)))]
pub async fn live() -> Json<Health> {
    OK
}

/// Work is accepted: no while models are being opened, and no from the signal to leave onwards
#[utoipa::path(get, path = "/readyz", tag = "probes", responses((status = 200, description = "Yes", body = Health),
    (status = 503, description = "Starting or leaving", body = ProblemBody, content_type = "application/problem+json",
        headers(("retry-after" = u64, description = "Seconds to wait")))))]
pub async fn ready(State(door): State<Door>) -> Result<Json<Health>, Problem> {
    match door.life.phase() {
        Phase::Ready => Ok(OK),
        Phase::Starting => Err(Problem::new(Kind::Starting, "models are being opened")),
        Phase::Leaving | Phase::Refusing => Err(Problem::new(Kind::Draining, "this instance is leaving")),
    }
}

/// Models are open
#[utoipa::path(get, path = "/startupz", tag = "probes", responses((status = 200, description = "Yes", body = Health),
    (status = 503, description = "Starting", body = ProblemBody, content_type = "application/problem+json",
        headers(("retry-after" = u64, description = "Seconds to wait")))))]
pub async fn started(State(door): State<Door>) -> Result<Json<Health>, Problem> {
    door.house().map(|_| OK)
}

/// The same as /readyz, under the name that many load balancers know
#[utoipa::path(get, path = "/health", tag = "probes", responses((status = 200, description = "Yes", body = Health),
    (status = 503, description = "Starting or leaving", body = ProblemBody, content_type = "application/problem+json",
        headers(("retry-after" = u64, description = "Seconds to wait")))))]
pub async fn health(door: State<Door>) -> Result<Json<Health>, Problem> {
    ready(door).await
}
