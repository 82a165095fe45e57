//! From listening to the last answer: serve, and on a signal leave in order.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    time::{Duration, Instant},
};

use axum::serve::ListenerExt;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Door, life::Phase, metrics_router, router};

/// How long cancelled requests get to write their refusal, and connections to close.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The listeners of the service and of its metrics.
#[derive(Debug)]
pub struct Listeners {
    service: TcpListener,
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// The address of the service, its port resolved.
    ///
    /// # Errors
    /// The socket has none.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.service.local_addr()
    }
}

/// Binds the addresses of the settings.
///
/// # Errors
/// An address is taken or not ours; the error names it.
pub async fn listen(door: &Door) -> io::Result<Listeners> {
    let listen = &door.settings.listen;
    let service = bind(listen.addr).await?;
    let metrics = match listen.metrics_addr {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    Ok(Listeners { service, metrics })
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen at {address}: {error}")))
}

/// Serves until SIGTERM or SIGINT (or `stop`), then leaves in order: readiness says no, work goes on for
/// the drain delay, new work is refused, work in progress ends or is cancelled at the drain limit.
///
/// # Errors
/// Signals cannot be listened to, or a listener fails.
pub async fn serve(door: Door, listeners: Listeners, stop: CancellationToken) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let closing = CancellationToken::new();
    let mut servers = vec![start(listeners.service, router(door.clone()), closing.clone())];
    if let Some(metrics) = listeners.metrics {
        servers.push(start(metrics, metrics_router(door.clone()), closing.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: leaving"),
        _ = interrupt.recv() => info!("SIGINT: leaving"),
        () = stop.cancelled() => info!("stopped"),
    }
    let mut leaving = pin!(leave(&door, Instant::now()));
    tokio::select! {
        () = &mut leaving => {}
        _ = terminate.recv() => warn!("a second signal: leaving at once"),
        _ = interrupt.recv() => warn!("a second signal: leaving at once"),
    }
    door.life.cancel_all();
    closing.cancel();
    for server in servers {
        match timeout(LAST_WORDS, server).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(panic)) => return Err(io::Error::other(panic)),
            Err(_) => warn!("connections were cut off"),
        }
    }
    info!("left");
    Ok(())
}

fn start(
    listener: TcpListener,
    router: axum::Router,
    closing: CancellationToken,
) -> JoinHandle<io::Result<()>> {
    // Answers are single writes: waiting for more to send only delays them.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "a connection without TCP_NODELAY");
        }
    });
    tokio::spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(closing.cancelled_owned()).await
    })
}

async fn leave(door: &Door, signalled: Instant) {
    let drain = &door.settings.drain;
    door.life.advance(Phase::Leaving);
    door.metrics.ready.set(0);
    sleep(drain.delay()).await;
    door.life.advance(Phase::Refusing);
    let left = drain.limit().saturating_sub(signalled.elapsed());
    if timeout(left, door.life.empty()).await.is_err() {
        warn!("the drain limit: cancelling what still runs");
        door.life.cancel_all();
        // Whoever was cancelled still answers; only a stuck model keeps us waiting here.
        let _ = timeout(LAST_WORDS, door.life.empty()).await;
    }
}
