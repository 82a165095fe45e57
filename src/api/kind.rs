//! The table of problem types: what can go wrong, its status, its name, and what a client can do.

use axum::http::StatusCode;

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
                "Send `Content-Type: application/json`, and no `Content-Encoding`.",
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
            // A path that is no UTF-8 once it is decoded.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Self::UnknownRoute,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            it if it.is_client_error() => Self::InvalidRequest,
            _ => Self::Internal,
        }
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
}
