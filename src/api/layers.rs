//! What happens to every request alike: identity, log line, metrics, keys, panics and problems' bodies.

use std::{any::Any, sync::Arc, time::Instant};

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::{Instrument, error, info, info_span, warn};
use uuid::Uuid;

use super::{
    Door,
    life::Phase,
    problem::{Kind, Problem},
};

/// The header that names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// When a request came: deadlines count from here.
#[derive(Debug, Clone, Copy)]
pub struct Arrival(pub Instant);

/// A request's name.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Accepts a sane `x-request-id` or makes one, and echoes it.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let id: Arc<str> = match request.headers().get(REQUEST_ID).and_then(|it| it.to_str().ok()) {
        Some(given) if is_sane(given) => given.into(),
        _ => Uuid::now_v7().to_string().into(),
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(Arrival(Instant::now()));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn is_sane(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|it| it.is_ascii_alphanumeric() || b"._-:/+=".contains(&it))
}

/// Tells a client of a process that is leaving to connect anew.
pub async fn part(State(door): State<Door>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if door.life.phase() >= Phase::Leaving {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// One span, one log line and two metrics for each request. Probes and scrapes are not worth a line.
pub async fn observe(State(door): State<Door>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |it| it.as_str().to_owned());
    let verb = verb(request.method());
    let id = request.extensions().get::<RequestId>().map_or("", |it| &it.0).to_owned();
    let span = info_span!(
        "request",
        request_id = id,
        inputs = tracing::field::Empty,
        chars = tracing::field::Empty,
        text_hash = tracing::field::Empty
    );
    let started = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    let (status, seconds) = (response.status(), started.elapsed().as_secs_f64());
    door.metrics.http_requests.with_label_values(&[route.as_str(), verb, status.as_str()]).inc();
    door.metrics.http_duration.with_label_values(&[route.as_str()]).observe(seconds);
    if !is_probe(&route) {
        let (status, ms) = (status.as_u16(), (seconds * 1e6).round() / 1e3);
        span.in_scope(|| info!(verb, route, status, ms, "answered"));
    }
    response
}

/// Probes and scrapes come every few seconds, whatever they are told.
fn is_probe(route: &str) -> bool {
    matches!(route, "/livez" | "/readyz" | "/startupz" | "/health" | "/metrics")
}

/// Verbs as a closed set.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// Gives every refusal, ours or a library's, its `application/problem+json` body.
pub async fn render_problems(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map_or_else(|| Arc::from(""), |it| it.0.clone());
    let asked = request.uri().path().to_owned();
    let probed = request.extensions().get::<MatchedPath>().is_some_and(|it| is_probe(it.as_str()));
    let mut response = next.run(request).await;
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if response.status().is_client_error() || response.status().is_server_error() => {
            let kind = Kind::of_status(response.status());
            let detail = match kind {
                Kind::UnknownRoute => format!("no route {asked}"),
                _ => kind.row().title.to_owned(),
            };
            Problem::new(kind, detail)
        }
        None => return response,
    };
    if let Some(cause) = problem.cause() {
        error!(cause, "a defect");
    } else if !probed {
        info!(problem = problem.kind().row().slug, "refused");
    }
    let mut body = Json(problem.body(&id)).into_response();
    body.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    let (mut parts, _) = response.into_parts();
    for (name, value) in body.headers() {
        parts.headers.insert(name, value.clone());
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.status = problem.kind().row().status;
    Response::from_parts(parts, body.into_body())
}

/// Asks for a key where keys are set. The comparison takes the same time wherever keys differ.
pub async fn check_key(State(door): State<Door>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|it| it.to_str().ok())
        .and_then(|it| it.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, key)| key);
    if door.keys.admit(given.trim()) {
        return next.run(request).await;
    }
    Problem::new(Kind::Unauthorized, "a key is needed, and this one is missing or unknown").into_response()
}

/// Counts a panic and turns it into a problem.
pub fn panic_into_problem(door: &Door, panic: &(dyn Any + Send)) -> Response {
    door.metrics.panics.inc();
    let words = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    Problem::internal(words).into_response()
}

/// Lets pages of the given origins call the service. `None` when there are none.
pub fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = match origins.iter().any(|it| it == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|it| {
            HeaderValue::from_str(it)
                .inspect_err(|_| warn!("an origin that is no header value is skipped"))
                .ok()
        })),
    };
    let ours =
        [header::AUTHORIZATION, header::CONTENT_TYPE, REQUEST_ID, HeaderName::from_static("traceparent")];
    let shown = [REQUEST_ID, header::RETRY_AFTER, HeaderName::from_static("server-timing")];
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(ours)
            .expose_headers(shown),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_forge_a_log_line_is_not_taken_over() {
        assert!(is_sane("019b0d6a-7c1e-7a52"));
        for odd in ["", "a b", "a\nb", "ä", "\"", &"x".repeat(129)] {
            assert!(!is_sane(odd), "{odd}");
        }
    }

    #[test]
    fn unusual_verbs_share_one_label() {
        assert_eq!(verb(&Method::from_bytes(b"BREW").unwrap()), "OTHER");
    }
}
