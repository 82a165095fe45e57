//! `GET /methods` and `GET /methods/{method}`: the registry.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    api::{
        Door,
        problem::{Problem, ProblemBody},
    },
    explain::{Family, Method},
    model::{Need, Output},
};

/// The methods of this build.
#[derive(Debug, Serialize, ToSchema)]
pub struct MethodList {
    /// In the order of the registry, family by family.
    methods: Vec<MethodPage>,
}

/// One method.
#[derive(Debug, Serialize, ToSchema)]
pub struct MethodPage {
    /// The path segment of `POST /explain/{method}`.
    #[schema(example = "leave-one-out")]
    method: &'static str,
    /// The family it belongs to.
    family: Family,
    /// What the score of a feature is.
    summary: &'static str,
    /// The paper or book.
    reference: &'static str,
    /// Which scalar it explains unless the request says otherwise.
    output: Output,
    /// Which graphs of the model it runs.
    needs: &'static [Need],
    /// JSON Schema of `parameters`, with defaults and bounds.
    #[schema(value_type = Object)]
    parameters: Value,
    /// A request body to try.
    #[schema(value_type = Object)]
    example: Value,
}

impl MethodPage {
    fn of(door: &Door, method: &'static dyn Method) -> Self {
        let about = method.about();
        Self {
            method: about.slug,
            family: about.family,
            summary: about.summary,
            reference: about.reference,
            output: about.output,
            needs: about.needs,
            parameters: door.document.parameters(method),
            example: door.document.example(method),
        }
    }
}

/// Every method with its parameters
#[utoipa::path(get, path = "/methods", tag = "about", 
    responses((status = 200, description = "The methods, family by family", body = MethodList)))]
pub async fn methods(State(door): State<Door>) -> Json<MethodList> {
    let page = |method: &&'static dyn Method| MethodPage::of(&door, *method);
    Json(MethodList { methods: crate::explain::registry::METHODS.iter().map(page).collect() })
}

/// One method with its parameters
#[utoipa::path(get, path = "/methods/{method}", tag = "about",
    params(("method" = String, Path, example = "leave-one-out")),
    responses((status = 200, description = "The method", body = MethodPage),
        (status = 404, description = "No such method", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn method(State(door): State<Door>, Path(slug): Path<String>) -> Result<Json<MethodPage>, Problem> {
    let (method, _) = door.document.method(&slug)?;
    Ok(Json(MethodPage::of(&door, method)))
}
