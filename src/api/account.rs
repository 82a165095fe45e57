//! What happens to every explanation and prediction: it is let in, counted, timed, and let go.

use std::time::Duration;

use axum::{
    extract::{RawPathParams, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    explain::{self, ExplainAnswer, Timing, registry},
    telemetry::{Metrics, Outcome, Stage},
};

use super::{
    Door,
    layers::{Arrival, RequestId},
    problem::{Kind, Problem},
};

/// What an answer cost; a handler leaves it in the response's extensions.
#[derive(Debug, Clone)]
pub struct Work {
    timing: Timing,
    forward_passes: u64,
    gradient_passes: u64,
    /// |parity| over |value|, of every explanation.
    parity: Vec<f64>,
}

impl Work {
    /// The cost of an explanation.
    pub fn of_answer(answer: &ExplainAnswer) -> Self {
        let relative = |it: &explain::Explanation| {
            let parity = it.evidence.get("parity")?.as_f64()?;
            Some(parity.abs() / it.value.abs().max(f64::MIN_POSITIVE))
        };
        Self {
            timing: answer.timing,
            forward_passes: answer.usage.forward_passes,
            gradient_passes: answer.usage.gradient_passes,
            parity: answer.results.iter().flat_map(|it| &it.explanations).filter_map(relative).collect(),
        }
    }

    /// The cost of a prediction.
    pub fn of_timing(timing: Timing) -> Self {
        Self { timing, forward_passes: 0, gradient_passes: 0, parity: Vec::new() }
    }

    fn stages(&self) -> [(Stage, Duration); 4] {
        let it = &self.timing;
        [
            (Stage::Tokenize, it.tokenize),
            (Stage::Queue, it.queue),
            (Stage::Forward, it.forward),
            (Stage::Reduce, it.reduce),
        ]
    }

    /// The `Server-Timing` header.
    fn header(&self) -> HeaderValue {
        let part = |(stage, time): (Stage, Duration)| {
            format!("{};dur={:.3}", stage.label(), time.as_secs_f64() * 1e3)
        };
        let text = self.stages().map(part).join(", ");
        HeaderValue::from_str(&text).expect("names and numbers are a header value")
    }
}

/// Lets a request in, hands its handler an [`explain::Arrival`], and counts how it ended. A client that goes
/// away drops this future: the stay ends, which stops the work, and the tally counts it as cancelled.
pub async fn account(
    State(door): State<Door>,
    parameters: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let method = parameters.iter().find(|(name, _)| *name == "method").map(|(_, slug)| slug);
    let method = match method.map(registry::find) {
        None => Subject::Prediction,
        Some(Some(method)) => Subject::Explanation(method.about().slug),
        Some(None) => {
            let slug = method.unwrap_or_default().to_owned();
            return Problem::from(explain::ExplainError::UnknownMethod(slug)).into_response();
        }
    };
    let mut tally = Tally { metrics: &door.metrics, subject: method, outcome: Outcome::Cancelled };
    door.metrics.in_flight.inc();
    let stay = match door.life.enter() {
        Ok(stay) => stay,
        Err(problem) => {
            tally.outcome = Outcome::Rejected;
            return problem.into_response();
        }
    };
    let extensions = request.extensions_mut();
    let id = extensions.get::<RequestId>().map_or_else(String::new, |it| it.0.to_string());
    let at = extensions.get::<Arrival>().map_or_else(std::time::Instant::now, |it| it.0);
    extensions.insert(explain::Arrival { id, at, cancel: stay.cancel() });
    let mut response = next.run(request).await;
    tally.outcome = outcome(&response);
    if let Some(work) = response.extensions_mut().remove::<Work>() {
        response.headers_mut().insert(HeaderName::from_static("server-timing"), work.header());
        tally.spent(&work);
    }
    response
}

/// How a response ended its request.
fn outcome(response: &Response) -> Outcome {
    let Some(problem) = response.extensions().get::<Problem>() else {
        return if response.status().is_success() { Outcome::Ok } else { Outcome::Invalid };
    };
    match problem.kind() {
        Kind::DeadlineExceeded => Outcome::Deadline,
        Kind::Overloaded | Kind::Starting => Outcome::Rejected,
        Kind::Draining => Outcome::Cancelled,
        Kind::Internal | Kind::NonFiniteScores | Kind::ModelFailed => Outcome::Backend,
        Kind::MalformedJson
        | Kind::InvalidUtf8
        | Kind::Unauthorized
        | Kind::UnknownRoute
        | Kind::UnknownModel
        | Kind::UnknownMethod
        | Kind::MethodNotAllowed
        | Kind::BodyTimeout
        | Kind::BodyTooLarge
        | Kind::UnsupportedMediaType
        | Kind::InvalidRequest
        | Kind::InvalidInput
        | Kind::InputTooLong
        | Kind::LimitExceeded
        | Kind::MethodUnavailable => Outcome::Invalid,
    }
}

#[derive(Debug, Clone, Copy)]
enum Subject {
    Explanation(&'static str),
    Prediction,
}

/// Counts when it is dropped, so that no way out is forgotten.
struct Tally<'a> {
    metrics: &'a Metrics,
    subject: Subject,
    outcome: Outcome,
}

impl Tally<'_> {
    fn spent(&self, work: &Work) {
        let Subject::Explanation(method) = self.subject else { return };
        for (stage, time) in work.stages() {
            self.metrics.stage(method, stage, time);
        }
        self.metrics.forward_passes.with_label_values(&[method]).inc_by(work.forward_passes);
        self.metrics.gradient_passes.with_label_values(&[method]).inc_by(work.gradient_passes);
        for parity in &work.parity {
            self.metrics.parity.with_label_values(&[method]).observe(*parity);
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let outcome = self.outcome.label();
        match self.subject {
            Subject::Explanation(method) => {
                self.metrics.explanations.with_label_values(&[method, outcome]).inc()
            }
            Subject::Prediction => self.metrics.predictions.with_label_values(&[outcome]).inc(),
        }
    }
}
