//! `GET /`: what this is and where things are.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::ROUTES;

/// What answers here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Home {
    /// The program.
    #[schema(example = "explaind")]
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// What it does.
    description: &'static str,
    /// Where a person can try it.
    #[schema(example = "/docs")]
    docs: &'static str,
    /// Every route, as verb and path.
    routes: Vec<String>,
}

/// Name, version and routes
#[utoipa::path(get, path = "/", tag = "about", responses((status = 200, description = "What answers here", body = Home)))]
pub async fn home() -> Json<Home> {
    Json(Home {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        description: env!("CARGO_PKG_DESCRIPTION"),
        docs: "/docs",
        routes: ROUTES.iter().map(|(path, verb)| format!("{verb} {path}")).collect(),
    })
}
