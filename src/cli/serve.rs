//! `explaind serve`: listens, opens the models, answers, and leaves in order.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    api::{self, Door, keys::Keys, openapi::EXAMPLE},
    config::{Entry as Setting, ModelSettings, NamedFolder, Settings},
    explain::House,
    model::{Entry, Model, OpenSettings, Shelf},
    runtime::{Runtime, Scheduler, SchedulerSettings},
    telemetry,
};

pub(super) fn run(settings: Settings, listing: &[Setting]) -> anyhow::Result<()> {
    if settings.check_config {
        Keys::read(&settings.listen)?;
        let out = &mut io::stdout().lock();
        listing.iter().try_for_each(|it| writeln!(out, "{it}"))?;
        return Ok(());
    }
    telemetry::start_logging(&settings.log).map_err(|error| anyhow!(error))?;
    let settings_line: Vec<String> = listing.iter().map(Setting::to_string).collect();
    info!(settings = settings_line.join(", "), "resolved");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(settings));
    // A pass that cannot be interrupted must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Listens first, so that the probes can tell opening from dead, and opens the models beside it.
async fn serve(settings: Settings) -> anyhow::Result<()> {
    let door = Door::build(settings)?;
    let listeners = api::listen(&door).await?;
    let address = listeners.address()?;
    let serving = tokio::spawn(api::serve(door.clone(), listeners, CancellationToken::new()));
    let settings = door.settings.clone();
    let opening = tokio::task::spawn_blocking(move || open(&settings));
    let mut serving = std::pin::pin!(serving);
    let house = tokio::select! {
        house = opening => house??,
        // A signal came while models were being opened.
        left = &mut serving => return Ok(left??),
    };
    door.open(house);
    if door.is_ready() {
        greet(&address.to_string());
    }
    serving.await??;
    Ok(())
}

/// Opens ONNX Runtime, the models and the workers.
fn open(settings: &Settings) -> anyhow::Result<House> {
    let engine = &settings.engine;
    let runtime = Runtime::load(engine.device, engine.threads as usize)?;
    info!(library = %runtime.library.display(), device = %runtime.device, "ONNX Runtime is loaded, its telemetry off");
    let opening = OpenSettings { runtime, workers: engine.workers as usize };
    let mut models = Shelf::default();
    for named in &settings.models.models {
        models.put(named.name.clone(), open_model(named, &opening, &settings.models)?);
    }
    if !models.iter().any(|(_, entry)| matches!(entry, Entry::Ready(_))) {
        bail!("no model opened");
    }
    let scheduler = Scheduler::start(SchedulerSettings {
        workers: engine.workers as usize,
        chunk_tokens: engine.chunk_tokens as usize,
        budget: engine.queue_tokens,
    })
    .context("the workers do not start")?;
    Ok(House { models, scheduler, limits: (&settings.limits).into() })
}

fn open_model(
    named: &NamedFolder,
    opening: &OpenSettings,
    settings: &ModelSettings,
) -> anyhow::Result<Entry> {
    let started = Instant::now();
    let allow_partial = settings.allow_partial;
    match Model::open(&named.name, &named.folder, opening) {
        Ok(mut model) => {
            for companion in settings.fill_mask.iter().filter(|it| it.name == named.name) {
                accompany(&mut model, companion, opening, allow_partial)?;
            }
            let (ms, labels) = (started.elapsed().as_millis() as u64, model.labels.len());
            info!(model = named.name, digest = model.digest, labels, ms, "opened");
            Ok(Entry::Ready(Arc::new(model)))
        }
        Err(reason) if allow_partial => {
            error!(model = named.name, %reason, "a model did not open; serving without it");
            Ok(Entry::Failed(reason.to_string()))
        }
        Err(reason) => Err(reason).with_context(|| format!("the model `{}` does not open", named.name)),
    }
}

fn accompany(
    model: &mut Model,
    companion: &NamedFolder,
    opening: &OpenSettings,
    allow_partial: bool,
) -> anyhow::Result<()> {
    match model.accompany(&companion.folder, opening) {
        Ok(()) => {
            info!(model = companion.name, folder = %companion.folder.display(), "has a companion");
            Ok(())
        }
        Err(reason) if allow_partial => {
            error!(model = companion.name, %reason, "a companion did not open; serving without it");
            Ok(())
        }
        Err(reason) => {
            Err(reason).with_context(|| format!("the companion of `{}` does not open", companion.name))
        }
    }
}

/// What a person who just started the service wants to read; nobody has to.
fn greet(address: &str) {
    info!(address, "ready");
    let _ = write!(
        io::stdout(),
        "explaind answers at http://{address}, its documentation is http://{address}/docs. Try:\n\n  \
         curl -s http://{address}/explain/leave-one-out -H 'content-type: application/json' \\\n    \
         -d '{{\"inputs\": \"{EXAMPLE}\"}}'\n\n"
    );
}
