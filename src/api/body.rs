//! The JSON body whose refusals are problems, read through the published schema.

use std::{fmt, time::Duration};

use axum::{
    body::{Bytes, HttpBody},
    extract::{FromRequest, Request},
    http::header,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jsonschema::{
    ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind as Misfit},
};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::{
    Door,
    problem::{Kind, Pointed, Problem},
};

/// A body that is JSON in UTF-8 within the byte limit, every key of every object once.
#[derive(Debug)]
pub struct JsonBody(pub Value);

impl FromRequest<Door> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, door: &Door) -> Result<Self, Problem> {
        refuse_other_media_types(&request)?;
        refuse_packed_bodies(&request)?;
        let limits = &door.settings.limits;
        let patience = Duration::from_millis(limits.max_timeout_ms);
        let bytes = tokio::time::timeout(patience, bytes(request, limits.max_body_bytes))
            .await
            .map_err(|_| Problem::new(Kind::BodyTimeout, format!("no whole body within {patience:?}")))??;
        parse(&bytes).map(Self)
    }
}

fn refuse_other_media_types(request: &Request) -> Result<(), Problem> {
    let declared = request.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or("");
    let essence = declared.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let found = if declared.is_empty() { "none".to_owned() } else { format!("`{essence}`") };
    Err(Problem::new(
        Kind::UnsupportedMediaType,
        format!("expected Content-Type: application/json, found {found}"),
    ))
}

fn refuse_packed_bodies(request: &Request) -> Result<(), Problem> {
    match request.headers().get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(Problem::new(
            Kind::UnsupportedMediaType,
            "bodies are read without Content-Encoding; send the JSON as it is",
        )),
        _ => Ok(()),
    }
}

async fn bytes(request: Request, limit: u64) -> Result<Bytes, Problem> {
    let too_large = || {
        Problem::new(Kind::BodyTooLarge, format!("the body has more than {limit} bytes"))
            .limited("max_body_bytes", limit)
    };
    let body = request.into_body();
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Problem::new(Kind::MalformedJson, format!("the body broke off: {error}"))),
    }
}

/// Reads JSON, refusing what is no UTF-8, no JSON, or an object with a key twice.
pub fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Problem::new(Kind::InvalidUtf8, format!("byte {} does not belong to UTF-8", error.valid_up_to()))
    })?;
    let malformed = |error: serde_json::Error| Problem::new(Kind::MalformedJson, error.to_string());
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut json).map_err(malformed)?;
    json.end().map_err(malformed)?;
    Ok(value)
}

/// A published schema that refuses what it does not describe.
#[derive(Debug)]
pub struct Schema(Validator);

impl Schema {
    /// The schema `name` among `components`, the `components` object of an OpenAPI document.
    ///
    /// # Errors
    /// The document is no valid JSON Schema.
    pub fn of_component(name: &str, components: &Value) -> Result<Self, String> {
        let root = serde_json::json!({
            "$ref": format!("#/components/schemas/{name}"),
            "components": components,
        });
        jsonschema::draft202012::new(&root).map(Self).map_err(|error| format!("schema {name}: {error}"))
    }

    /// Every misfit of `value`, in the order of the document.
    pub fn misfits(&self, value: &Value) -> Vec<Pointed> {
        let mut found = Vec::new();
        // Saying no takes much longer than saying yes.
        if self.0.is_valid(value) {
            return found;
        }
        for error in self.0.iter_errors(value) {
            point(&error, value, &mut found);
        }
        found.dedup();
        found
    }

    /// Reads `value` as `T`, refusing whatever the published schema refuses.
    ///
    /// # Errors
    /// 422 with every misfit.
    pub fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, Problem> {
        let misfits = self.misfits(&value);
        if !misfits.is_empty() {
            return Err(refusal(misfits));
        }
        // An integer of JSON Schema has any size, so a value may still pass the schema and not fit its field.
        serde_path_to_error::deserialize(value).map_err(|error| {
            let pointer = error.path().iter().fold(String::new(), |at, step| match step {
                Segment::Seq { index } => format!("{at}/{index}"),
                Segment::Map { key } => below(&at, key),
                Segment::Enum { .. } | Segment::Unknown => at,
            });
            refusal(vec![Pointed::new(pointer, "holds a number that is out of the range of its field, or a large one that is not written in digits")])
        })
    }
}

/// Misfits that are told at the most: an answer must not outgrow the request that it refuses.
const TOLD: usize = 100;

fn refusal(mut misfits: Vec<Pointed>) -> Problem {
    let count = misfits.len();
    misfits.truncate(TOLD);
    let detail = match misfits.as_slice() {
        _ if count > TOLD => format!("{count} fields do not fit; the first {TOLD} are listed"),
        [one] if one.pointer.is_empty() => one.detail.clone(),
        [one] => format!("{}: {}", one.pointer, one.detail),
        _ => format!("{count} fields do not fit"),
    };
    Problem::new(Kind::InvalidRequest, detail).pointing(misfits)
}

/// Adds what `error` says of a part of `root`, one entry for each field that a client would have to change. The words
/// never repeat the value, which may be a text.
fn point(error: &ValidationError<'_>, root: &Value, found: &mut Vec<Pointed>) {
    let at = error.instance_path().as_str();
    match error.kind() {
        Misfit::AdditionalProperties { unexpected } | Misfit::UnevaluatedProperties { unexpected } => {
            let unknown = |name: &String| Pointed::new(below(at, name), "is not a known field");
            found.extend(unexpected.iter().map(unknown));
        }
        // An object without properties refuses any field by the schema `false`, and names none.
        Misfit::FalseSchema => match root.pointer(at).and_then(Value::as_object) {
            Some(object) => {
                let unknown = |name: &String| Pointed::new(below(at, name), "is not a known field");
                found.extend(object.keys().map(unknown));
            }
            None => found.push(Pointed::new(at, words(error))),
        },
        Misfit::Required { property } => {
            found.push(Pointed::new(below(at, property.as_str().unwrap_or_default()), "is required"));
        }
        Misfit::AnyOf { context } | Misfit::OneOfNotValid { context } => {
            match context.iter().filter(|it| !refuses_kind(it, at)).min_by_key(|it| it.len()) {
                Some(nearest) => nearest.iter().for_each(|it| point(it, root, found)),
                None => found.push(Pointed::new(at, forms(context).join(" and "))),
            }
        }
        _ => found.push(Pointed::new(at, words(error))),
    }
}

fn words(error: &ValidationError<'_>) -> String {
    match error.kind() {
        Misfit::Enum { options } => format!("is not one of {options}"),
        Misfit::Type { kind: TypeKind::Single(kind) } => format!("is not of type {kind}"),
        Misfit::Pattern { pattern } => format!("does not match {pattern}"),
        _ => error.masked().to_string(),
    }
}

/// Whether an alternative is about another kind of value altogether, so that its misfits are no help.
fn refuses_kind(alternative: &[ValidationError<'_>], at: &str) -> bool {
    alternative.iter().filter(|it| it.instance_path().as_str() == at).any(|error| match error.kind() {
        Misfit::Type { .. } | Misfit::Enum { .. } | Misfit::Constant { .. } => true,
        Misfit::AnyOf { context } | Misfit::OneOfNotValid { context } => {
            context.iter().all(|it| refuses_kind(it, at))
        }
        _ => false,
    })
}

/// Why no alternative accepts the value.
fn forms(context: &[Vec<ValidationError<'static>>]) -> Vec<String> {
    let mut accepted: Vec<String> = Vec::new();
    for error in context.iter().flatten() {
        match error.kind() {
            Misfit::AnyOf { context } | Misfit::OneOfNotValid { context } => accepted.extend(forms(context)),
            _ => accepted.push(words(error)),
        }
    }
    let mut seen = Vec::new();
    accepted.retain(|it| {
        let new = !seen.contains(it);
        seen.push(it.clone());
        new
    });
    accepted
}

fn below(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Below this every integer has a double of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Builds a [`Value`], refusing a key that stands twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, it: bool) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_i64<E>(self, it: i64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_u64<E>(self, it: u64) -> Result<Value, E> {
        Ok(it.into())
    }

    /// A number without a fraction is an integer to JSON Schema, however it is written.
    fn visit_f64<E>(self, it: f64) -> Result<Value, E> {
        let exact = it.fract() == 0.0 && it.abs() <= EXACT && !(it == 0.0 && it.is_sign_negative());
        Ok(if exact { (it as i64).into() } else { it.into() })
    }

    fn visit_str<E>(self, it: &str) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_string<E>(self, it: String) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice in one object")));
            }
            object.insert(key, entries.next_value_seed(Strict)?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        let components = json!({ "schemas": {
            "Request": {
                "type": "object", "required": ["inputs"], "additionalProperties": false,
                "properties": {
                    "inputs": { "oneOf": [
                        { "$ref": "#/components/schemas/Input" },
                        { "type": "array", "minItems": 1, "items": { "$ref": "#/components/schemas/Input" } }
                    ] },
                    "seed": { "type": "integer", "minimum": 0 },
                    "level": { "type": "string", "enum": ["token", "word"] }
                }
            },
            "Input": { "oneOf": [
                { "type": "string" },
                { "type": "object", "required": ["text"], "additionalProperties": false,
                  "properties": { "text": { "type": "string" } } }
            ] }
        } });
        Schema::of_component("Request", &components).unwrap()
    }

    fn misfits(value: Value) -> Vec<String> {
        schema().misfits(&value).iter().map(|it| format!("{} {}", it.pointer, it.detail)).collect()
    }

    #[test]
    fn all_misfits_come_at_once() {
        let found = misfits(json!({ "seed": -1, "level": "sentence", "speed": 3 }));
        assert_eq!(found.len(), 4, "{found:#?}");
        for pointer in ["/inputs is required", "/speed is not a known field", "/seed ", "/level "] {
            assert!(found.iter().any(|it| it.starts_with(pointer)), "{pointer}: {found:#?}");
        }
    }

    #[test]
    fn an_alternative_of_the_right_kind_is_looked_into() {
        assert_eq!(misfits(json!({ "inputs": [{ "txt": "a" }] })).len(), 2);
        assert_eq!(misfits(json!({ "inputs": { "text": 3 } })), ["/inputs/text is not of type string"]);
        assert_eq!(misfits(json!({ "inputs": [] })).len(), 1);
    }

    #[test]
    fn a_value_of_no_accepted_kind_hears_the_kinds() {
        let found = misfits(json!({ "inputs": 3 }));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("string") && found[0].contains("array"), "{found:#?}");
    }

    #[test]
    fn words_do_not_repeat_the_value() {
        let found = misfits(json!({ "inputs": "a", "seed": "a private text", "level": "a private text" }));
        assert_eq!(found.len(), 2);
        assert!(!found.concat().contains("private"));
    }

    #[test]
    fn an_object_without_properties_names_each_field_that_it_does_not_know() {
        let components = json!({ "schemas": { "Bare": {
            "type": "object", "required": ["parameters"], "properties": {
                "parameters": { "type": "object", "additionalProperties": false }
            }
        } } });
        let schema = Schema::of_component("Bare", &components).unwrap();
        let found = schema.misfits(&json!({ "parameters": { "steps": 3, "a/b": {} } }));
        let pointers: Vec<&str> = found.iter().map(|it| it.pointer.as_str()).collect();
        assert_eq!(pointers, ["/parameters/steps", "/parameters/a~1b"]);
        assert!(found.iter().all(|it| it.detail == "is not a known field"), "{found:?}");
        assert!(schema.misfits(&json!({ "parameters": {} })).is_empty());
    }

    #[test]
    fn a_key_that_stands_twice_is_malformed() {
        let problem = parse(br#"{"a": {"b": 1, "b": 2}}"#).unwrap_err();
        assert_eq!(problem.kind(), Kind::MalformedJson);
        assert!(problem.body("").detail.contains("\"b\" stands twice"));
    }

    #[test]
    fn numbers_texts_and_nesting_survive() {
        let text = r#"{"a":[1,-2,3.5,true,null,"é\u0000"],"b":{"c":18446744073709551615}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn what_is_no_utf8_or_trails_is_refused() {
        assert_eq!(parse(b"\"\xff\"").unwrap_err().kind(), Kind::InvalidUtf8);
        assert_eq!(parse(b"{} {}").unwrap_err().kind(), Kind::MalformedJson);
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).unwrap_err().kind(), Kind::MalformedJson);
    }
}
