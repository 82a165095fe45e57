//! `GET /problems/{slug}`: what a problem type means.

use axum::{Json, extract::Path};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::problem::{Kind, Problem, ProblemBody};

/// The page that a problem's `type` leads to.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemPage {
    /// The `type`.
    #[serde(rename = "type")]
    #[schema(example = "/problems/overloaded")]
    kind: String,
    /// The `title`.
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 429)]
    status: u16,
    /// What a client can do.
    advice: &'static str,
}

/// What a problem type means and what a client can do
#[utoipa::path(get, path = "/problems/{slug}", tag = "about", params(("slug" = String, Path, example = "overloaded")),
    responses((status = 200, description = "The problem type", body = ProblemPage),
        (status = 404, description = "No such problem type", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn problem(Path(slug): Path<String>) -> Result<Json<ProblemPage>, Problem> {
    let kind = Kind::ALL.into_iter().find(|it| it.row().slug == slug);
    let row = kind.ok_or_else(|| Problem::new(Kind::UnknownRoute, "no problem type has this name"))?.row();
    let kind = format!("/problems/{}", row.slug);
    Ok(Json(ProblemPage { kind, title: row.title, status: row.status.as_u16(), advice: row.advice }))
}
