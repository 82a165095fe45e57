//! A refusal on its way to the client, as RFC 9457 tells it.

use std::time::Duration;

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::model::Unavailable;

pub use super::kind::Kind;

/// One misfit and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pointed {
    /// JSON pointer into the request's body; empty for the whole body.
    #[schema(example = "/parameters/operation")]
    pub pointer: String,
    /// What is wrong there.
    #[schema(example = "value is not one of \"delete\" or \"mask\"")]
    pub detail: String,
}

impl Pointed {
    /// A misfit at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: short(detail.into()) }
    }
}

/// A sentence for a client, cut where a quoted name makes it longer than anyone reads.
fn short(mut detail: String) -> String {
    if let Some((end, _)) = detail.char_indices().nth(MOST_CHARS) {
        detail.truncate(end);
        detail.push('…');
    }
    detail
}

/// When a service that starts, or the one that takes the place of this one, may be ready.
const SOON: Duration = Duration::from_secs(1);

/// Characters of a detail at the most.
const MOST_CHARS: usize = 1000;

/// A limit that was hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Limit {
    /// The setting, or the model's own limit.
    #[schema(example = "max_inputs")]
    pub name: String,
    /// Its value.
    #[schema(example = 32)]
    pub value: u64,
}

/// A refusal on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: String,
    more: Box<More>,
}

/// What only some refusals have.
#[derive(Debug, Clone, Default)]
struct More {
    errors: Vec<Pointed>,
    limit: Option<Limit>,
    missing: Option<Unavailable>,
    retry_after: Option<Duration>,
    cause: Option<String>,
}

impl Problem {
    /// A refusal of one kind, in words for the client.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let retry_after = matches!(kind, Kind::Starting | Kind::Draining).then_some(SOON);
        let more = More { retry_after, ..More::default() };
        Self { kind, detail: short(detail.into()), more: more.into() }
    }

    /// A refusal that points at one field, whose words are the detail.
    pub fn at(kind: Kind, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let pointed = vec![Pointed::new(pointer, detail.clone())];
        Self::new(kind, detail).pointing(pointed)
    }

    /// A defect: the cause goes to the log and not to the client.
    pub fn internal(cause: impl ToString) -> Self {
        let detail = "an internal error; the log holds its cause under this request_id";
        let mut problem = Self::new(Kind::Internal, detail);
        problem.more.cause = Some(cause.to_string());
        problem
    }

    /// The same, pointing at fields.
    pub fn pointing(mut self, errors: Vec<Pointed>) -> Self {
        self.more.errors = errors;
        self
    }

    /// The same, with the limit that was hit.
    pub fn limited(mut self, name: impl Into<String>, value: u64) -> Self {
        self.more.limit = Some(Limit { name: name.into(), value });
        self
    }

    /// The same, with what a method misses in the model.
    pub fn missing(mut self, missing: Unavailable) -> Self {
        self.more.missing = Some(missing);
        self
    }

    /// The same, with the time after which another attempt makes sense.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.more.retry_after = Some(wait);
        self
    }

    /// Which line of the table.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What only the log may say.
    pub fn cause(&self) -> Option<&str> {
        self.more.cause.as_deref()
    }

    /// The body that the client reads.
    pub fn body(&self, request_id: &str) -> ProblemBody {
        let row = self.kind.row();
        ProblemBody {
            kind: format!("/problems/{}", row.slug),
            title: row.title.to_owned(),
            status: row.status.as_u16(),
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
            errors: self.more.errors.clone(),
            limit: self.more.limit.clone(),
            missing: self.more.missing.clone(),
        }
    }

    /// `Retry-After` in whole seconds, at least one.
    pub fn retry_seconds(&self) -> Option<u64> {
        self.more.retry_after.map(|wait| wait.as_secs_f64().ceil().max(1.0) as u64)
    }
}

/// Why a request was refused (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// A reference that identifies the kind of problem and leads to its description.
    #[serde(rename = "type")]
    #[schema(example = "/problems/invalid-request")]
    pub kind: String,
    /// The kind in words, the same for every occurrence.
    #[schema(example = "The request does not fit the schema")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 422)]
    pub status: u16,
    /// This occurrence in words.
    #[schema(example = "1 field does not fit")]
    pub detail: String,
    /// The request's `x-request-id`, under which the service logs.
    #[schema(example = "019b0d6a-7c1e-7a52-9a6f-2f1d3c0b9e11")]
    pub request_id: String,
    /// Each misfit with its JSON pointer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<Pointed>,
    /// The limit that was hit, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub limit: Option<Limit>,
    /// What stands between the method and the model, with every unsupported operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub missing: Option<Unavailable>,
}

/// The answer without its body, which the layer that knows the request id writes
/// (`layers::render_problems`).
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.row().status.into_response();
        if let Some(seconds) = self.retry_seconds() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_of_a_part_of_a_second_is_told_as_one() {
        let problem = Problem::new(Kind::Overloaded, "full").retry_after(Duration::from_millis(20));
        assert_eq!(problem.retry_seconds(), Some(1));
    }

    #[test]
    fn the_cause_of_a_defect_stays_in_the_house() {
        let problem = Problem::internal("the hidden cause");
        let body = serde_json::to_string(&problem.body("r")).unwrap();
        assert!(!body.contains("hidden"));
        assert_eq!(problem.cause(), Some("the hidden cause"));
    }
}
