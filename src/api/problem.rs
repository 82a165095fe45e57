//! The table of problem types: what can go wrong, as RFC 9457 tells it to a client.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::model::Unavailable;

/// Everything that a client may be told went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The body is no JSON.
    MalformedJson,
    /// The body is no UTF-8.
    InvalidUtf8,
    /// A key is asked for, and none or a wrong one was given.
    Unauthorized,
    /// The path is not ours.
    UnknownRoute,
    /// A model nobody opened.
    UnknownModel,
    /// A method nobody wrote.
    UnknownMethod,
    /// The path is ours, the verb is not.
    MethodNotAllowed,
    /// The body stopped coming.
    BodyTimeout,
    /// Too many bytes.
    BodyTooLarge,
    /// Something else than JSON.
    UnsupportedMediaType,
    /// The published schema refuses the body.
    InvalidRequest,
    /// The schema is content, the model or the method is not.
    InvalidInput,
    /// A text is longer than the model can read.
    InputTooLong,
    /// More than one request may ask for.
    LimitExceeded,
    /// The queue's cost is full.
    Overloaded,
    /// A defect of ours.
    Internal,
    /// The model gave NaN or infinity.
    NonFiniteScores,
    /// The method needs a graph that this model does not give.
    MethodUnavailable,
    /// Models are still being opened.
    Starting,
    /// The service leaves.
    Draining,
    /// A model that did not open.
    ModelFailed,
    /// The deadline passed.
    DeadlineExceeded,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The HTTP status.
    pub status: StatusCode,
    /// The last segment of the `type`.
    pub slug: &'static str,
    /// The `title`.
    pub title: &'static str,
    /// What a client can do, for the page of the problem.
    pub advice: &'static str,
}

const fn row(status: StatusCode, slug: &'static str, title: &'static str, advice: &'static str) -> Row {
    Row { status, slug, title, advice }
}

impl Kind {
    /// Every kind, in the order of their statuses.
    pub const ALL: [Self; 22] = [
        Self::MalformedJson,
        Self::InvalidUtf8,
        Self::Unauthorized,
        Self::UnknownRoute,
        Self::UnknownModel,
        Self::UnknownMethod,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidRequest,
        Self::InvalidInput,
        Self::InputTooLong,
        Self::LimitExceeded,
        Self::Overloaded,
        Self::Internal,
        Self::NonFiniteScores,
        Self::MethodUnavailable,
        Self::Starting,
        Self::Draining,
        Self::ModelFailed,
        Self::DeadlineExceeded,
    ];

    /// Status, slug, title and advice.
    pub const fn row(self) -> Row {
        use StatusCode as S;
        match self {
            Self::MalformedJson => row(
                S::BAD_REQUEST,
                "malformed-json",
                "The body is not JSON",
                "`detail` names line and column. A key that stands twice in one object counts as malformed.",
            ),
            Self::InvalidUtf8 => row(
                S::BAD_REQUEST,
                "invalid-utf8",
                "The body is not UTF-8",
                "Encode the body as UTF-8; `detail` names the first offending byte.",
            ),
            Self::Unauthorized => row(
                S::UNAUTHORIZED,
                "unauthorized",
                "A valid key is needed",
                "Send `Authorization: Bearer KEY`.",
            ),
            Self::UnknownRoute => {
                row(S::NOT_FOUND, "unknown-route", "Nothing is served here", "`GET /` lists the routes.")
            }
            Self::UnknownModel => row(
                S::NOT_FOUND,
                "unknown-model",
                "No model has this name",
                "`GET /models` lists the models.",
            ),
            Self::UnknownMethod => row(
                S::NOT_FOUND,
                "unknown-method",
                "No method has this name",
                "`GET /methods` lists the methods.",
            ),
            Self::MethodNotAllowed => row(
                S::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The route does not know this verb",
                "The `Allow` header names the verbs.",
            ),
            Self::BodyTimeout => row(
                S::REQUEST_TIMEOUT,
                "body-timeout",
                "The body did not arrive in time",
                "Send the whole body at once.",
            ),
            Self::BodyTooLarge => row(
                S::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body has too many bytes",
                "`limit` names the limit and its value; split the request.",
            ),
            Self::UnsupportedMediaType => row(
                S::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The body is not declared as JSON",
                "Send `Content-Type: application/json`.",
            ),
            Self::InvalidRequest => row(
                S::UNPROCESSABLE_ENTITY,
                "invalid-request",
                "The request does not fit the schema",
                "`errors` points at every misfit at once; `/openapi.json` holds the schema.",
            ),
            Self::InvalidInput => row(
                S::UNPROCESSABLE_ENTITY,
                "invalid-input",
                "The model or the method refuses the input",
                "`errors` points at the field; `GET /models/{model}` tells labels and limits.",
            ),
            Self::InputTooLong => row(
                S::UNPROCESSABLE_ENTITY,
                "input-too-long",
                "A text is longer than the model can read",
                "Shorten the text, or set `truncate` to explain its beginning; `limit` holds the length.",
            ),
            Self::LimitExceeded => row(
                S::UNPROCESSABLE_ENTITY,
                "limit-exceeded",
                "The request asks for more than one request may",
                "`limit` names the limit and its value; ask for less, or split the request.",
            ),
            Self::Overloaded => row(
                S::TOO_MANY_REQUESTS,
                "overloaded",
                "The queue is full",
                "Nothing was computed. Try again after `Retry-After` seconds.",
            ),
            Self::Internal => row(
                S::INTERNAL_SERVER_ERROR,
                "internal",
                "The service failed",
                "A defect; report it with the `request_id`, under which the cause is logged.",
            ),
            Self::NonFiniteScores => row(
                S::INTERNAL_SERVER_ERROR,
                "non-finite-scores",
                "The model's scores are not finite",
                "The model gave NaN or infinity for this input; there is nothing to explain.",
            ),
            Self::MethodUnavailable => row(
                S::NOT_IMPLEMENTED,
                "method-unavailable",
                "The method does not work on this model",
                "`detail` names what is missing; `GET /models/{model}` lists the methods that work.",
            ),
            Self::Starting => row(
                S::SERVICE_UNAVAILABLE,
                "starting",
                "The service is opening its models",
                "Try again after `Retry-After` seconds; `GET /readyz` says when.",
            ),
            Self::Draining => row(
                S::SERVICE_UNAVAILABLE,
                "draining",
                "The service is leaving",
                "Try again; the next attempt will reach another instance.",
            ),
            Self::ModelFailed => row(
                S::SERVICE_UNAVAILABLE,
                "model-failed",
                "The model could not be opened",
                "The service was told to start without it; `GET /models` tells why it did not open.",
            ),
            Self::DeadlineExceeded => row(
                S::GATEWAY_TIMEOUT,
                "deadline-exceeded",
                "The deadline passed before the answer",
                "The work was stopped. Ask for fewer passes, or set a longer `timeout_ms`.",
            ),
        }
    }

    /// The kind that a bare status stands for, for refusals that a library makes.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::UnknownRoute,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            it if it.is_client_error() => Self::InvalidRequest,
            _ => Self::Internal,
        }
    }
}

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
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

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
    errors: Vec<Pointed>,
    limit: Option<Limit>,
    missing: Option<Unavailable>,
    retry_after: Option<Duration>,
    cause: Option<String>,
}

impl Problem {
    /// A refusal of one kind, in words for the client.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            limit: None,
            missing: None,
            retry_after: None,
            cause: None,
        }
    }

    /// A refusal that points at one field, whose words are the detail.
    pub fn at(kind: Kind, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { errors: vec![Pointed::new(pointer, detail.clone())], ..Self::new(kind, detail) }
    }

    /// A defect: the cause goes to the log and not to the client.
    pub fn internal(cause: impl ToString) -> Self {
        let detail = "an internal error; the log holds its cause under this request_id";
        Self { cause: Some(cause.to_string()), ..Self::new(Kind::Internal, detail) }
    }

    /// The same, pointing at fields.
    pub fn pointing(mut self, errors: Vec<Pointed>) -> Self {
        self.errors = errors;
        self
    }

    /// The same, with the limit that was hit.
    pub fn limited(mut self, name: impl Into<String>, value: u64) -> Self {
        self.limit = Some(Limit { name: name.into(), value });
        self
    }

    /// The same, with what a method misses in the model.
    pub fn missing(mut self, missing: Unavailable) -> Self {
        self.missing = Some(missing);
        self
    }

    /// The same, with the time after which another attempt makes sense.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Which line of the table.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What only the log may say.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
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
            errors: self.errors.clone(),
            limit: self.limit.clone(),
            missing: self.missing.clone(),
        }
    }

    /// `Retry-After` in whole seconds, at least one.
    pub fn retry_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs_f64().ceil().max(1.0) as u64)
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn slugs_are_distinct_and_kebab_case() {
        let slugs: HashSet<&str> = Kind::ALL.iter().map(|it| it.row().slug).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
        assert!(
            slugs
                .iter()
                .all(|it| it.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
    }

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
