//! The names of all metrics, and how log lines are written.
//!
//! Every series exists at zero from the first scrape, and every label comes from a closed set: no text, label
//! name or id of a request is ever one.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, Targets},
    fmt::time::SystemTime,
    prelude::*,
};

use crate::config::{LogFormat, LogSettings};

/// How an explanation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// The request did not fit the schema, the model or the limits.
    Invalid,
    /// The queue was full, or the service was starting or draining.
    Rejected,
    /// The deadline passed.
    Deadline,
    /// The client went away, or the service stopped.
    Cancelled,
    /// The model or the service failed.
    Backend,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Invalid, Self::Rejected, Self::Deadline, Self::Cancelled, Self::Backend];

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Backend => "backend",
        }
    }
}

/// A part of an explanation's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Text into tokens and features.
    Tokenize,
    /// Waiting for a worker.
    Queue,
    /// Workers running the model.
    Forward,
    /// Everything else: evaluations into attributions.
    Reduce,
}

impl Stage {
    /// Every stage, in the order of a request.
    pub const ALL: [Self; 4] = [Self::Tokenize, Self::Queue, Self::Forward, Self::Reduce];

    /// The label, also the name in `Server-Timing`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tokenize => "tokenize",
            Self::Queue => "queue",
            Self::Forward => "forward",
            Self::Reduce => "reduce",
        }
    }
}

/// The gauges that are read from the engine when somebody scrapes.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineReading {
    /// Chunks that wait.
    pub queue_depth: usize,
    /// Admitted tokens that are not computed yet.
    pub queue_tokens: u64,
    /// The most tokens that are admitted.
    pub queue_budget: u64,
    /// Rows evaluated since the start.
    pub rows: u64,
    /// Rows of those with a backward pass.
    pub gradient_rows: u64,
    /// Tokens computed since the start, padding included.
    pub tokens: u64,
    /// Tokens of those that were padding.
    pub padding: u64,
    /// Batches that failed since the start.
    pub failures: u64,
}

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `explaind_http_requests_total{route,method,code}`.
    pub http_requests: IntCounterVec,
    /// `explaind_http_request_duration_seconds{route}`.
    pub http_duration: HistogramVec,
    /// `explaind_explanations_total{method,outcome}`.
    pub explanations: IntCounterVec,
    /// `explaind_predictions_total{outcome}`.
    pub predictions: IntCounterVec,
    /// `explaind_explain_duration_seconds{method,stage}`.
    pub stages: HistogramVec,
    /// `explaind_forward_passes_total{method}`.
    pub forward_passes: IntCounterVec,
    /// `explaind_gradient_passes_total{method}`.
    pub gradient_passes: IntCounterVec,
    /// `explaind_explanation_parity_ratio{method}`: |parity| over |value|.
    pub parity: HistogramVec,
    /// `explaind_in_flight`.
    pub in_flight: IntGauge,
    /// `explaind_panics_total`.
    pub panics: IntCounter,
    /// `explaind_ready`.
    pub ready: IntGauge,
    models: GaugeVec,
    queue_depth: IntGauge,
    queue_tokens: IntGauge,
    queue_budget: IntGauge,
    rows: CounterMirror,
    gradient_rows: CounterMirror,
    tokens: CounterMirror,
    padding: CounterMirror,
    failures: CounterMirror,
    uptime: Gauge,
    started: Instant,
}

/// Explanations take from a millisecond to a minute.
const SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Parity is rounding: 1e-7 is float32's, 1e-3 is the contract's bound.
const RATIOS: [f64; 7] = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

impl Metrics {
    /// All metrics at zero, for routes and methods that are known from the start.
    pub fn new(routes: &[(&str, &str)], methods: &[&str]) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let method = ["method"];
        let metrics = Self {
            http_requests: counters(
                r,
                "http_requests_total",
                "Requests answered.",
                &["route", "method", "code"],
            ),
            http_duration: histograms(
                r,
                "http_request_duration_seconds",
                "From arrival to the answer's head.",
                &["route"],
                &SECONDS,
            ),
            explanations: counters(
                r,
                "explanations_total",
                "Explanations by how they ended.",
                &["method", "outcome"],
            ),
            predictions: counters(r, "predictions_total", "Predictions by how they ended.", &["outcome"]),
            stages: histograms(
                r,
                "explain_duration_seconds",
                "Time of an explanation by stage.",
                &["method", "stage"],
                &SECONDS,
            ),
            forward_passes: counters(r, "forward_passes_total", "Rows that ran forward only.", &method),
            gradient_passes: counters(
                r,
                "gradient_passes_total",
                "Rows that ran forward and backward.",
                &method,
            ),
            parity: histograms(
                r,
                "explanation_parity_ratio",
                "Difference between the served and the explained score, relative to the score.",
                &method,
                &RATIOS,
            ),
            in_flight: gauge(r, "in_flight", "Explanations and predictions being answered."),
            panics: counter(r, "panics_total", "Requests that ended in a panic."),
            ready: gauge(r, "ready", "1 while /readyz says yes."),
            models: keep(
                r,
                GaugeVec::new(
                    Opts::new("explaind_model_info", "1 for each open model."),
                    &["model", "digest", "device"],
                ),
            ),
            queue_depth: gauge(r, "queue_depth", "Chunks that wait for a worker."),
            queue_tokens: gauge(r, "queue_tokens", "Admitted work that is not run yet, in token passes."),
            queue_budget: gauge(r, "queue_budget_tokens", "Work beyond which requests are refused."),
            rows: CounterMirror(counter(r, "rows_total", "Rows evaluated by the workers.")),
            gradient_rows: CounterMirror(counter(
                r,
                "gradient_rows_total",
                "Rows of those with a backward pass.",
            )),
            tokens: CounterMirror(counter(r, "tokens_total", "Tokens computed, padding included.")),
            padding: CounterMirror(counter(r, "padding_tokens_total", "Tokens computed that were padding.")),
            failures: CounterMirror(counter(r, "failed_runs_total", "Batches that a session failed to run.")),
            uptime: keep(r, Gauge::new("explaind_uptime_seconds", "Time since the process started.")),
            started: Instant::now(),
            registry,
        };
        metrics.register_process();
        metrics.touch(routes, methods);
        metrics
    }

    /// Says that a model is open.
    pub fn model_opened(&self, model: &str, digest: &str, device: &str) {
        self.models.with_label_values(&[model, digest, device]).set(1.0);
    }

    /// The Prometheus text format.
    pub fn text(&self, engine: EngineReading) -> String {
        self.queue_depth.set(engine.queue_depth as i64);
        self.queue_tokens.set(engine.queue_tokens as i64);
        self.queue_budget.set(engine.queue_budget as i64);
        self.rows.reach(engine.rows);
        self.gradient_rows.reach(engine.gradient_rows);
        self.tokens.reach(engine.tokens);
        self.padding.reach(engine.padding);
        self.failures.reach(engine.failures);
        self.uptime.set(self.started.elapsed().as_secs_f64());
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("writing into memory does not fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    /// Counts one stage of an explanation.
    pub fn stage(&self, method: &str, stage: Stage, time: Duration) {
        self.stages.with_label_values(&[method, stage.label()]).observe(time.as_secs_f64());
    }

    fn register_process(&self) {
        let build =
            GaugeVec::new(Opts::new("explaind_build_info", "1, with the version as label."), &["version"]);
        keep(&self.registry, build).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let process = ProcessCollector::for_self();
        self.registry.register(Box::new(process)).expect("the process metrics have names of their own");
    }

    fn touch(&self, routes: &[(&str, &str)], methods: &[&str]) {
        for (route, verb) in routes {
            self.http_requests.with_label_values(&[route, verb, "200"]);
            self.http_duration.with_label_values(&[*route]);
        }
        for outcome in Outcome::ALL {
            self.predictions.with_label_values(&[outcome.label()]);
        }
        for method in methods {
            for outcome in Outcome::ALL {
                self.explanations.with_label_values(&[*method, outcome.label()]);
            }
            for stage in Stage::ALL {
                self.stages.with_label_values(&[*method, stage.label()]);
            }
            self.forward_passes.with_label_values(&[*method]);
            self.gradient_passes.with_label_values(&[*method]);
            self.parity.with_label_values(&[*method]);
        }
    }
}

/// A counter that follows a count which somebody else keeps.
#[derive(Debug)]
struct CounterMirror(IntCounter);

impl CounterMirror {
    fn reach(&self, total: u64) {
        self.0.inc_by(total.saturating_sub(self.0.get()));
    }
}

fn keep<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("names and labels are valid");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    keep(registry, IntCounter::new(format!("explaind_{name}"), help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    keep(registry, IntGauge::new(format!("explaind_{name}"), help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    keep(registry, IntCounterVec::new(Opts::new(format!("explaind_{name}"), help), labels))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::new(format!("explaind_{name}"), help).buckets(buckets.to_vec());
    keep(registry, HistogramVec::new(opts, labels))
}

/// Which events are written, within [`ceiling`].
///
/// # Errors
/// Directives that cannot be read.
pub fn filter(settings: &LogSettings) -> Result<EnvFilter, String> {
    let bare = settings.log.split(',').map(str::trim).find(|it| {
        let is_word = it.chars().all(|it| it.is_alphanumeric() || "_:-".contains(it));
        !it.is_empty() && is_word && it.parse::<LevelFilter>().is_err()
    });
    // The filter would take it for the name of a crate, and silence all others.
    if let Some(word) = bare {
        return Err(format!(
            "log: `{word}` is no level (off, error, warn, info, debug, trace); a crate is named as in `explaind=debug`"
        ));
    }
    EnvFilter::try_new(&settings.log).map_err(|error| format!("log: {error}"))
}

/// What no directive goes beyond. Tokenizers trace every character of a text; ONNX Runtime is chatty below `warn`, and its
/// lines may hold names out of a model's graph.
fn ceiling() -> Targets {
    let whole =
        [("ort", LevelFilter::WARN), ("tokenizers", LevelFilter::WARN), ("explaind", LevelFilter::TRACE)];
    Targets::new().with_default(LevelFilter::DEBUG).with_targets(whole)
}

/// Starts logging to standard error.
///
/// # Errors
/// The log directives do not parse.
pub fn start_logging(settings: &LogSettings) -> Result<(), String> {
    let filter = filter(settings)?;
    let json = match settings.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_timer(SystemTime);
    let registry = tracing_subscriber::registry().with(filter).with(ceiling());
    let started = match json {
        true => registry.with(lines.json().flatten_event(true).with_span_list(false)).try_init(),
        false => registry.with(lines.with_target(false)).try_init(),
    };
    started.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_directive_has_the_characters_of_texts_traced() {
        let ceiling = ceiling();
        for target in ["tokenizers::tokenizer::normalizer", "tokenizers", "ort::session"] {
            assert!(ceiling.would_enable(target, &tracing::Level::WARN));
            assert!(!ceiling.would_enable(target, &tracing::Level::INFO));
        }
        assert!(ceiling.would_enable("explaind::api", &tracing::Level::TRACE));
        assert!(!ceiling.would_enable("hyper::proto", &tracing::Level::TRACE));
    }

    #[test]
    fn every_series_is_there_before_the_first_request() {
        let metrics = Metrics::new(&[("/explain/{method}", "POST")], &["leave-one-out"]);
        let text = metrics.text(EngineReading::default());
        for series in [
            r#"explaind_http_requests_total{code="200",method="POST",route="/explain/{method}"} 0"#,
            r#"explaind_explanations_total{method="leave-one-out",outcome="cancelled"} 0"#,
            r#"explaind_explain_duration_seconds_count{method="leave-one-out",stage="forward"} 0"#,
            "explaind_panics_total 0",
            "explaind_rows_total 0",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
    }

    #[test]
    fn a_mirrored_counter_follows_and_never_falls() {
        let metrics = Metrics::new(&[], &[]);
        let rows = |rows| EngineReading { rows, ..EngineReading::default() };
        assert!(metrics.text(rows(7)).contains("explaind_rows_total 7\n"));
        assert!(metrics.text(rows(9)).contains("explaind_rows_total 9\n"));
        assert!(metrics.text(rows(9)).contains("explaind_rows_total 9\n"));
    }
}
