//! The service in the test's own process: a question in, an answer that can be read like a letter.

use std::sync::OnceLock;

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use clap::{Args, FromArgMatches};
use explaind::{
    api::{Door, router},
    config::Settings,
};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::support;

/// A film review whose sentiment nobody doubts.
pub const REVIEW: &str = "A warm, funny and quietly moving film.";

/// The service, asked without a socket.
#[derive(Clone)]
pub struct Service {
    /// What its handlers see.
    pub door: Door,
    router: Router,
}

/// Settings as the flags give them.
pub fn settings(flags: &[&str]) -> Settings {
    let command = Settings::augment_args(clap::Command::new("serve"));
    let matches = command.get_matches_from([&["serve", "--model=sst2=models/sst2"], flags].concat());
    Settings::from_arg_matches(&matches).expect("flags of the tests are valid")
}

impl Service {
    /// The bundled model under default settings, shared by the tests.
    pub fn bundled() -> Self {
        static SHARED: OnceLock<Service> = OnceLock::new();
        SHARED.get_or_init(|| Self::with(&[])).clone()
    }

    /// The bundled model under settings of its own.
    pub fn with(flags: &[&str]) -> Self {
        let service = Self::closed(flags);
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
        let mut house = support::house("sst2", &folder);
        house.limits = (&service.door.settings.limits).into();
        service.door.open(house);
        service
    }

    /// A service whose models are not open yet.
    pub fn closed(flags: &[&str]) -> Self {
        let door = Door::build(settings(flags)).expect("a door");
        Self { router: router(door.clone()), door }
    }

    /// The answer to any request.
    pub async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("the router is infallible");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// The answer to `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    /// The answer to a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_bytes(path, body.to_string()).await
    }

    /// The answer to bytes that are declared as JSON.
    pub async fn post_bytes(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.ask(request.body(body.into()).expect("a request")).await
    }

    /// The answer to `verb path` without a body.
    pub async fn verb(&self, verb: Method, path: &str) -> Answer {
        self.ask(Request::builder().method(verb).uri(path).body(Body::empty()).expect("a request")).await
    }

    /// A metric's value as the scrape tells it.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.door.metrics.text(self.door.reading());
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series}")).parse().expect("a number")
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |it| it.to_str().expect("a text header"))
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The body as JSON of an answer that must be good.
    pub fn good(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// A refusal as text: status and slug, then each misfit, then the limit.
    pub fn refusal(&self) -> String {
        let body = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json", "{body}");
        assert_eq!(body["status"], self.status.as_u16(), "{body}");
        assert_eq!(body["request_id"], self.header("x-request-id"), "{body}");
        let slug = body["type"].as_str().and_then(|it| it.strip_prefix("/problems/")).expect("a type");
        let mut told = format!("{} {slug}", self.status.as_u16());
        for error in body["errors"].as_array().into_iter().flatten() {
            let (pointer, detail) = (error["pointer"].as_str(), error["detail"].as_str());
            told += &format!("\n  {}: {}", pointer.expect("a pointer"), detail.expect("a detail"));
        }
        if let Some(name) = body["limit"]["name"].as_str() {
            told += &format!("\n  limit {name} = {}", body["limit"]["value"]);
        }
        told
    }
}
