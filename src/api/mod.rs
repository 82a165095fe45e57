//! The door: HTTP in, problems and answers out. It knows no tensor.
//!
//! [`router`] is the list of routes and layers, [`Door`] what every handler sees, [`serve()`] the life from
//! listening to the last answer.

pub mod body;
pub mod keys;
pub mod layers;
pub mod life;
pub mod openapi;
pub mod problem;
pub mod routes;
mod serve;

use std::{io, ops::Deref, sync::Arc};

use axum::{Router, middleware, routing::get};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    config::Settings,
    telemetry::{EngineReading, Metrics},
};

use self::{
    keys::Keys,
    life::Life,
    openapi::Document,
    routes::{docs, health, home, metrics, problems},
};

pub use serve::{listen, serve};

/// Every route that a client may use, for `GET /`, the metrics and the tests.
pub const ROUTES: &[(&str, &str)] = &[
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
}

impl Door {
    /// A door without models, in the phase `Starting`.
    ///
    /// # Errors
    /// The file of keys cannot be read.
    pub fn build(settings: Settings) -> io::Result<Self> {
        let keys = Keys::read(&settings.listen)?;
        let metrics = Metrics::new(ROUTES, &[]);
        let document = Document::build().map_err(io::Error::other)?;
        Ok(Self(Arc::new(Rooms { settings, metrics, life: Life::default(), document, keys })))
    }

    /// What the engine's queue looks like now.
    pub fn reading(&self) -> EngineReading {
        EngineReading::default()
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
    let work = Router::new();
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
        .with_state(door)
}
