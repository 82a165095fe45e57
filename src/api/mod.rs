//! The door: HTTP in, problems and answers out. It knows no tensor.
//!
//! [`router`] is the list of routes and layers, [`Door`] what every handler sees, [`serve()`] the life from
//! listening to the last answer.

pub mod account;
pub mod body;
pub mod keys;
pub mod kind;
pub mod layers;
pub mod life;
pub mod openapi;
pub mod problem;
mod refusal;
pub mod routes;
mod serve;

use std::{
    io,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use axum::{
    Router, middleware,
    routing::{get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    config::Settings,
    explain::{ExplainError, House, registry::METHODS},
    model::Entry,
    telemetry::{EngineReading, Metrics},
};

use self::{
    keys::Keys,
    life::{Life, Phase},
    openapi::Document,
    problem::{Kind, Problem},
    routes::{docs, explain, health, home, methods, metrics, models, predict, problems},
};

pub use serve::{listen, serve};

/// Every route that a client may use, for `GET /`, the metrics and the tests.
pub const ROUTES: &[(&str, &str)] = &[
    ("/explain/{method}", "POST"),
    ("/predict", "POST"),
    ("/methods", "GET"),
    ("/methods/{method}", "GET"),
    ("/models", "GET"),
    ("/models/{model}", "GET"),
    ("/", "GET"),
    ("/problems/{slug}", "GET"),
    ("/openapi.json", "GET"),
    ("/docs", "GET"),
    ("/livez", "GET"),
    ("/readyz", "GET"),
    ("/startupz", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
];

/// What every handler sees. Clones share it.
#[derive(Clone)]
pub struct Door(Arc<Rooms>);

/// The contents of a [`Door`].
pub struct Rooms {
    /// The resolved settings.
    pub settings: Settings,
    /// Every metric.
    pub metrics: Metrics,
    /// How far the service is, and who is inside.
    pub life: Life,
    /// The published contract, which is also the validator.
    pub document: Document,
    /// Who may ask.
    pub keys: Keys,
    house: OnceLock<House>,
}

impl Door {
    /// A door without models, in the phase `Starting`.
    ///
    /// # Errors
    /// The file of keys cannot be read.
    pub fn build(settings: Settings) -> io::Result<Self> {
        let keys = Keys::read(&settings.listen)?;
        let methods: Vec<&str> = METHODS.iter().map(|it| it.about().slug).collect();
        let metrics = Metrics::new(ROUTES, &methods);
        let document = Document::build().map_err(io::Error::other)?;
        let (life, house) = (Life::default(), OnceLock::new());
        Ok(Self(Arc::new(Rooms { settings, metrics, life, document, keys, house })))
    }

    /// Puts the opened models behind the door: from here on work is done. The first house stays.
    pub fn open(&self, house: House) {
        for (name, entry) in house.models.iter() {
            if let Entry::Ready(model) = entry {
                self.metrics.model_opened(name, &model.digest, &model.device.to_string());
            }
        }
        if self.house.set(house).is_ok() {
            self.life.advance(Phase::Ready);
            self.metrics.ready.set(1);
            // A signal may have come while models were being opened, or just now.
            if !self.is_ready() {
                self.metrics.ready.set(0);
            }
        }
    }

    /// Whether work is done and will be.
    pub fn is_ready(&self) -> bool {
        self.life.phase() == Phase::Ready
    }

    /// What is behind the door.
    ///
    /// # Errors
    /// 503 while models are being opened.
    pub fn house(&self) -> Result<&House, Problem> {
        self.house.get().ok_or_else(|| Problem::new(Kind::Starting, "models are being opened"))
    }

    /// Runs `work` on a thread that may wait, so that no model ever holds up the reactor.
    ///
    /// # Errors
    /// The work's own, as a problem; 500 for a panic, which is counted.
    pub async fn run<T, F>(&self, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&House) -> Result<T, ExplainError> + Send + 'static,
    {
        let door = self.clone();
        let span = tracing::Span::current();
        let done = tokio::task::spawn_blocking(move || {
            let house = door.house()?;
            span.in_scope(|| work(house)).map_err(Problem::from)
        });
        match done.await {
            Ok(outcome) => outcome,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(stopped) => Err(Problem::internal(stopped)),
            },
        }
    }

    /// What the engine's queue looks like now.
    pub fn reading(&self) -> EngineReading {
        let Some(house) = self.house.get() else { return EngineReading::default() };
        let gauges = house.scheduler.gauges();
        EngineReading {
            queue_depth: gauges.depth,
            queue_tokens: gauges.cost,
            queue_budget: gauges.budget,
            rows: gauges.rows,
            gradient_rows: gauges.gradient_rows,
            tokens: gauges.tokens,
            padding: gauges.padding,
            failures: gauges.failures,
        }
    }
}

impl Deref for Door {
    type Target = Rooms;

    fn deref(&self) -> &Rooms {
        &self.0
    }
}

/// The service: every route, and the layers from the innermost to the outermost.
pub fn router(door: Door) -> Router {
    // On the verbs alone: what is no POST is neither an explanation nor a prediction.
    let accounted = middleware::from_fn_with_state(door.clone(), account::account);
    let work = Router::new()
        .route("/explain/{method}", post(explain::explain).route_layer(accounted.clone()))
        .route("/predict", post(predict::predict).route_layer(accounted))
        .route("/methods", get(methods::methods))
        .route("/methods/{method}", get(methods::method))
        .route("/models", get(models::models))
        .route("/models/{model}", get(models::model));
    let work = match door.keys.asked() {
        true => work.layer(middleware::from_fn_with_state(door.clone(), layers::check_key)),
        false => work,
    };
    let open = Router::new()
        .route("/", get(home::home))
        .route("/problems/{slug}", get(problems::problem))
        .route("/openapi.json", get(docs::openapi))
        .merge(docs::swagger());
    let routes = Router::new().merge(work).merge(open).merge(probes());
    let routes = match layers::cors(&door.settings.listen.cors_origins) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    dress(routes, door)
}

/// The routes of the second listener.
pub fn metrics_router(door: Door) -> Router {
    dress(probes(), door)
}

fn probes() -> Router<Door> {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/startupz", get(health::started))
        .route("/health", get(health::health))
        .route("/metrics", get(metrics::metrics))
}

fn dress(routes: Router<Door>, door: Door) -> Router {
    let witness = door.clone();
    let panics = CatchPanicLayer::custom(move |panic: Box<dyn std::any::Any + Send>| {
        layers::panic_into_problem(&witness, panic.as_ref())
    });
    routes
        .layer(panics)
        .layer(middleware::from_fn(layers::render_problems))
        .layer(middleware::from_fn_with_state(door.clone(), layers::observe))
        .layer(middleware::from_fn(layers::identify))
        .layer(middleware::from_fn_with_state(door.clone(), layers::part))
        .with_state(door)
}
