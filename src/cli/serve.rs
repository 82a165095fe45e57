//! `explaind serve`: listens, opens the models, answers, and leaves in order.

use std::io::IsTerminal;

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    api::{self, Door},
    config::{Entry, Settings},
    telemetry,
};

pub(super) fn run(settings: Settings, listing: &[Entry]) -> anyhow::Result<()> {
    if settings.check_config {
        listing.iter().for_each(|it| println!("{} = {} ({})", it.name, it.value, it.source));
        return Ok(());
    }
    telemetry::start_logging(&settings.log).map_err(|error| anyhow!(error))?;
    for entry in listing {
        info!(setting = entry.name, value = entry.value, source = %entry.source, "resolved");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let door = Door::build(settings)?;
    let listeners = api::listen(&door).await?;
    let address = listeners.address()?;
    let stop = CancellationToken::new();
    let serving = tokio::spawn(api::serve(door.clone(), listeners, stop));
    greet(&address.to_string());
    serving.await??;
    Ok(())
}

/// What a person at a terminal wants to read.
fn greet(address: &str) {
    info!(address, docs = format!("http://{address}/docs"), "ready");
    if std::io::stdout().is_terminal() {
        println!();
    }
}
