//! The contract: assembled from the routes and the registry, served as is, and used as the validator.

use std::collections::HashMap;

use axum::body::Bytes;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::explain::{ExplainError, ExplainRequest, MAX_TARGETS, Method, registry::METHODS};

use super::{
    body::Schema,
    problem::{Kind, Problem},
    routes,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "explaind",
        description = "Why did this text classifier say that? Scores are raw and signed; offsets are Unicode \
                       code points into the original text; refusals are RFC 9457 problems.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        routes::explain::explain,
        routes::predict::predict,
        routes::methods::methods,
        routes::methods::method,
        routes::models::models,
        routes::models::model,
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
        (name = "explain", description = "Why the model said it: one route a method"),
        (name = "predict", description = "What the model says"),
        (name = "about", description = "What is served here"),
        (name = "probes", description = "For the platform; none waits for a model"),
    ),
    security((), ("key" = [])),
    modifiers(&Key)
)]
struct Contract;

/// `Authorization: Bearer KEY`, where the service asks for keys.
struct Key;

impl utoipa::Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let key = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Needed only where the service was started with keys."))
            .build();
        document
            .components
            .get_or_insert_default()
            .security_schemes
            .insert("key".to_owned(), SecurityScheme::Http(key).into());
    }
}

/// A review that the bundled model reads in no time, and whose decisive word nobody doubts.
pub const EXAMPLE: &str = "Despite a slow start, this is a wonderful film.";

/// The document and the validators made of it.
pub struct Document {
    /// The document as it is served and committed.
    pub text: Bytes,
    /// The body of `POST /predict`.
    pub predict: Schema,
    value: Value,
    requests: HashMap<&'static str, (&'static dyn Method, Schema)>,
}

impl Document {
    /// The document of this build: routes, and every method of the registry.
    ///
    /// # Errors
    /// A schema that is no valid JSON Schema, or two that differ under one name.
    pub fn build() -> Result<Self, String> {
        let value = document()?;
        let components = &value["components"];
        let request = |method: &&'static dyn Method| {
            let schema = Schema::of_component(&request_name(*method), components)?;
            Ok((method.about().slug, (*method, schema)))
        };
        let text = serde_json::to_string_pretty(&value).map_err(|error| error.to_string())? + "\n";
        Ok(Self {
            text: text.into(),
            predict: Schema::of_component("PredictRequest", components)?,
            requests: METHODS.iter().map(request).collect::<Result<_, String>>()?,
            value,
        })
    }

    /// A method and the validator of its request.
    ///
    /// # Errors
    /// No method has this name.
    pub fn method(&self, slug: &str) -> Result<(&'static dyn Method, &Schema), Problem> {
        let found = self.requests.get(slug);
        let (method, schema) = found.ok_or_else(|| ExplainError::UnknownMethod(slug.to_owned()))?;
        Ok((*method, schema))
    }

    /// The parameters' JSON Schema on its own, what it refers to under `$defs`.
    pub fn parameters(&self, method: &dyn Method) -> Value {
        let mut names: Vec<String> = method.schemas().into_iter().map(|(name, _)| name).collect();
        names.dedup();
        let schema = |name: &String| detached(self.value["components"]["schemas"][name].clone());
        let mut whole = names.first().map_or(Value::Null, schema);
        let definitions: Map<String, Value> =
            names.iter().skip(1).map(|name| (name.clone(), schema(name))).collect();
        if let (Some(object), false) = (whole.as_object_mut(), definitions.is_empty()) {
            object.insert("$defs".to_owned(), definitions.into());
        }
        whole
    }

    /// A request body that answers within a second on the bundled model.
    pub fn example(&self, method: &dyn Method) -> Value {
        example(method)
    }
}

fn example(method: &dyn Method) -> Value {
    let mut body = json!({ "inputs": EXAMPLE });
    let parameters: Value = serde_json::from_str(method.about().example).unwrap_or_default();
    if parameters.as_object().is_some_and(|it| !it.is_empty()) {
        body["parameters"] = parameters;
    }
    body
}

/// References into an OpenAPI document as references into the schema itself.
fn detached(schema: Value) -> Value {
    match schema {
        Value::Object(object) => {
            let entry = |(key, value): (String, Value)| match (key.as_str(), value) {
                ("$ref", Value::String(target)) => {
                    (key, target.replace("#/components/schemas/", "#/$defs/").into())
                }
                (_, value) => (key, detached(value)),
            };
            object.into_iter().map(entry).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(detached).collect(),
        other => other,
    }
}

/// The document as a value: `POST /explain/{method}` is told once for each method, with its parameters.
fn document() -> Result<Value, String> {
    let mut value = serde_json::to_value(Contract::openapi()).map_err(|error| error.to_string())?;
    let template = value["paths"]
        .as_object_mut()
        .and_then(|it| it.shift_remove("/explain/{method}"))
        .ok_or("the route of explanations is not in the document")?;
    for method in METHODS {
        add_schemas(&mut value, *method)?;
        add_path(&mut value, *method, template.clone());
    }
    value["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"] =
        json!({ "inputs": [EXAMPLE, "Dull and far too long."], "parameters": { "top_k": 1 } });
    // An untagged enum cannot say this of its array.
    value["components"]["schemas"]["Inputs"]["oneOf"][0]["minItems"] = 1.into();
    value["components"]["schemas"]["TargetSpec"]["oneOf"][0]["minItems"] = 1.into();
    value["components"]["schemas"]["TargetSpec"]["oneOf"][0]["maxItems"] = MAX_TARGETS.into();
    add_refusals(&mut value);
    in_order(&mut value);
    Ok(without_null_defaults(value))
}

/// An optional field that is absent by default is described as one whose default is `null`, which its own
/// schema refuses: absent is what is meant.
fn without_null_defaults(schema: Value) -> Value {
    match schema {
        Value::Object(object) => {
            let kept = object.into_iter().filter(|(key, value)| key != "default" || !value.is_null());
            kept.map(|(key, value)| (key, without_null_defaults(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(without_null_defaults).collect(),
        other => other,
    }
}

fn request_name(method: &dyn Method) -> String {
    format!("{}Request", parameters_name(method))
}

fn parameters_name(method: &dyn Method) -> String {
    method.schemas().into_iter().next().map_or_else(String::new, |(name, _)| name)
}

fn add_schemas(document: &mut Value, method: &dyn Method) -> Result<(), String> {
    let mut request = document["components"]["schemas"][schema_name::<ExplainRequest>()].clone();
    let parameters = parameters_name(method);
    request["properties"]["parameters"] = json!({
        "$ref": format!("#/components/schemas/{parameters}"),
        "description": "The method's own parameters.",
        "default": {},
    });
    let schemas = document["components"]["schemas"].as_object_mut().ok_or("no schemas")?;
    schemas.insert(request_name(method), request);
    for (name, schema) in method.schemas() {
        let schema = serde_json::to_value(schema).map_err(|error| error.to_string())?;
        match schemas.get(&name) {
            Some(other) if *other != schema => return Err(format!("two schemas are named {name}")),
            Some(_) => {}
            None => {
                schemas.insert(name, schema);
            }
        }
    }
    Ok(())
}

fn schema_name<T: utoipa::ToSchema>() -> String {
    T::name().into_owned()
}

fn add_path(document: &mut Value, method: &dyn Method, mut path: Value) {
    let about = method.about();
    let post = &mut path["post"];
    post["operationId"] = format!("explain_{}", about.slug.replace('-', "_")).into();
    post["summary"] = about.summary.into();
    post["description"] = about.reference.into();
    if let Some(operation) = post.as_object_mut() {
        operation.shift_remove("parameters");
    }
    post["requestBody"]["content"]["application/json"] = json!({
        "schema": { "$ref": format!("#/components/schemas/{}", request_name(method)) },
        "example": example(method),
    });
    document["paths"][format!("/explain/{}", about.slug)] = path;
}

/// What every route refuses, whichever handler it has: a wrong verb, where work is done a missing key, where a
/// body is read one that does not come.
fn add_refusals(document: &mut Value) {
    let refusal = |kind: Kind, header: Option<(&str, &str)>| {
        let mut response = json!({
            "description": kind.row().title,
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
        });
        if let Some((name, description)) = header {
            response["headers"][name] = json!({ "schema": { "type": "string" }, "description": description });
        }
        (kind.row().status.as_str().to_owned(), response)
    };
    for (path, verbs) in document["paths"].as_object_mut().into_iter().flatten() {
        let locked = LOCKED.iter().any(|it| path.starts_with(it));
        for (verb, operation) in verbs.as_object_mut().into_iter().flatten() {
            let Some(responses) = operation["responses"].as_object_mut() else { continue };
            responses.extend([refusal(Kind::MethodNotAllowed, Some(("allow", "The verbs of the path")))]);
            if locked {
                let challenge =
                    ("www-authenticate", "`Bearer`; only where the service was started with keys");
                responses.extend([refusal(Kind::Unauthorized, Some(challenge))]);
            }
            if verb == "post" {
                responses.extend([refusal(Kind::BodyTimeout, None)]);
            }
            responses.sort_keys();
        }
    }
}

/// Where the paths begin that ask for a key, if there are keys.
const LOCKED: [&str; 4] = ["/explain", "/predict", "/methods", "/models"];

/// Explanations first, then what the routes declare; schemas by name, so that a change shows as a small diff.
fn in_order(document: &mut Value) {
    if let Some(paths) = document["paths"].as_object_mut() {
        let all = std::mem::take(paths);
        let (explain, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(path, _)| path.starts_with("/explain/"));
        paths.extend(explain.into_iter().chain(others));
    }
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.shift_remove(&schema_name::<ExplainRequest>());
        schemas.sort_keys();
    }
}
