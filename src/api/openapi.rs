//! The contract: assembled from the routes, served as is, and used as the validator.

use axum::body::Bytes;
use serde_json::Value;
use utoipa::OpenApi;

use super::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "explaind",
        description = "Why did this text classifier say that?",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        routes::home::home,
        routes::problems::problem,
        routes::docs::openapi,
        routes::health::live,
        routes::health::ready,
        routes::health::started,
        routes::health::health,
        routes::metrics::metrics,
    ),
    tags(
        (name = "explain", description = "Why the model said it"),
        (name = "predict", description = "What the model says"),
        (name = "about", description = "What is served here"),
        (name = "probes", description = "For the platform; none waits for a model"),
    )
)]
struct Contract;

/// The document and the validators made of it.
pub struct Document {
    /// The document as it is served and committed.
    pub text: Bytes,
}

impl Document {
    /// The document of this build: routes, and every method of the registry.
    ///
    /// # Errors
    /// A schema that is no valid JSON Schema.
    pub fn build() -> Result<Self, String> {
        let value = document();
        let text = serde_json::to_string_pretty(&value).map_err(|error| error.to_string())? + "\n";
        Ok(Self { text: text.into() })
    }
}

/// The document as a value.
pub fn document() -> Value {
    serde_json::to_value(Contract::openapi()).expect("a document of plain values")
}
