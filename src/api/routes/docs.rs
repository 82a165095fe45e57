//! `GET /openapi.json` and `/docs`: the contract, and a page to try it on.

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::api::Door;

/// The OpenAPI 3.1 document
#[utoipa::path(get, path = "/openapi.json", tag = "about", responses((status = 200, description = "The document", body = Object)))]
pub async fn openapi(State(door): State<Door>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], door.document.text.clone()).into_response()
}

/// Swagger UI at `/docs`, its assets inside the binary.
pub fn swagger() -> Router<Door> {
    let config = Config::new(["/openapi.json"])
        .try_it_out_enabled(true)
        .display_request_duration(true)
        .default_models_expand_depth(0);
    SwaggerUi::new("/docs").config(config).into()
}
