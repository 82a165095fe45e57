//! `GET /metrics`: the Prometheus text format.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use crate::api::Door;

/// Metrics in the Prometheus text format
#[utoipa::path(get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "Every series", content_type = "text/plain", body = String)))]
pub async fn metrics(State(door): State<Door>) -> Response {
    let text = door.metrics.text(door.reading());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
