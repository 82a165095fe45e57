//! From listening to the last answer: serve, and on a signal leave in order.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request, serve::Listener};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::{Door, life::Phase, metrics_router, router};

/// How long the head of a request may take, and a connection be idle: a little longer than the minute after which
/// balancers commonly end idle connections, so that they are the ones to do it.
const HEAD_LIMIT: Duration = Duration::from_secs(75);

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
/// Signals cannot be listened to.
pub async fn serve(door: Door, listeners: Listeners, stop: CancellationToken) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let connections = Connections::new(Patience { head: HEAD_LIMIT, last_words: LAST_WORDS });
    connections.accept(listeners.service, router(door.clone()));
    if let Some(metrics) = listeners.metrics {
        connections.accept(metrics, metrics_router(door.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: leaving"),
        _ = interrupt.recv() => info!("SIGINT: leaving"),
        () = stop.cancelled() => info!("stopped"),
    }
    let signalled = Instant::now();
    let mut leaving = pin!(async {
        leave(&door, signalled).await;
        let left = door.settings.drain.limit().saturating_sub(signalled.elapsed());
        connections.close(left.max(LAST_WORDS)).await;
    });
    tokio::select! {
        () = &mut leaving => {}
        _ = terminate.recv() => hurry(&door, &connections).await,
        _ = interrupt.recv() => hurry(&door, &connections).await,
    }
    info!("left");
    Ok(())
}

async fn hurry(door: &Door, connections: &Connections) {
    warn!("a second signal: leaving at once");
    door.life.cancel_all();
    connections.close(LAST_WORDS).await;
}

/// The connections of every listener, from the first byte of a request to the last of its answer.
struct Connections {
    closing: CancellationToken,
    open: TaskTracker,
    patience: Patience,
}

/// How long a connection may take for what is not an answer.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For the head of a request.
    head: Duration,
    /// For its first request, once everybody is leaving.
    last_words: Duration,
}

impl Connections {
    fn new(patience: Patience) -> Self {
        Self { closing: CancellationToken::new(), open: TaskTracker::new(), patience }
    }

    /// Serves whoever connects, until closing.
    fn accept(&self, mut listener: TcpListener, router: Router) {
        let (closing, open, patience) = (self.closing.clone(), self.open.clone(), self.patience);
        tokio::spawn(async move {
            // Accepting goes on after an error, such as that there are no descriptors left.
            while let Some((stream, _)) = closing.run_until_cancelled(Listener::accept(&mut listener)).await {
                open.spawn(answer(stream, router.clone(), patience, closing.clone()));
            }
        });
    }

    /// Ends what is idle, and waits until answers that have begun are sent, so long as there is patience.
    async fn close(&self, patience: Duration) {
        self.closing.cancel();
        self.open.close();
        if timeout(patience, self.open.wait()).await.is_err() {
            warn!("connections were cut off");
        }
    }
}

/// Answers what one connection asks. While closing, one that has asked nothing yet gets no more than last words.
async fn answer(stream: TcpStream, router: Router, patience: Patience, closing: CancellationToken) {
    // Answers are single writes: waiting for more to send only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        warn!(%error, "a connection without TCP_NODELAY");
    }
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let service = router.map_request(move |request: Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        request.map(Body::new)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience.head);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    let outcome = match closing.run_until_cancelled(connection.as_mut()).await {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(patience.last_words, connection.as_mut()).await {
                Ok(outcome) => outcome,
                Err(_) if asked.load(Ordering::Relaxed) => connection.await,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "a connection ended");
    }
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::routing::get;
    use tokio::task::spawn_blocking;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);
    const NEVER: Duration = Duration::from_secs(60);
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

    /// A service, and a client that has written `bytes`.
    async fn asked(
        patience: Patience,
        router: Router,
        bytes: &'static [u8],
    ) -> (Connections, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::new(patience);
        connections.accept(listener, router);
        let client = spawn_blocking(move || {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.write_all(bytes).unwrap();
            client
        });
        (connections, client.await.unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn half_a_head_is_not_waited_for_for_ever() {
        let patience = Patience { head: SOON, last_words: SOON };
        let (_connections, mut client) = asked(patience, Router::new(), &ASK[..18]).await;
        client.set_read_timeout(Some(NEVER)).unwrap();
        let told = spawn_blocking(move || client.read_to_end(&mut Vec::new()));
        assert!(told.await.unwrap().is_ok(), "the connection is still open");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_that_is_being_sent_is_sent_to_its_end() {
        const LENGTH: usize = 32 << 20;
        let large = Router::new().route("/", get(|| async { vec![b'x'; LENGTH] }));
        let patience = Patience { head: NEVER, last_words: SOON };
        let (connections, mut client) = asked(patience, large, ASK).await;
        let begun = spawn_blocking(move || client.read_exact(&mut [0; 100]).map(|()| client));
        let mut client = begun.await.unwrap().unwrap();
        let reading = spawn_blocking(move || {
            // The connection is closing, and its reader slower than last words.
            std::thread::sleep(3 * SOON);
            client.read_to_end(&mut Vec::new())
        });
        connections.close(NEVER).await;
        assert!(reading.await.unwrap().unwrap() + 100 > LENGTH);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn closing_waits_for_nobody_who_asks_nothing() {
        let patience = Patience { head: NEVER, last_words: SOON };
        for bytes in [ASK, &ASK[..18]] {
            let (connections, mut client) = asked(patience, Router::new(), bytes).await;
            if bytes == ASK {
                let mut told = [0; 12];
                spawn_blocking(move || client.read_exact(&mut told).map(|()| client)).await.unwrap().unwrap();
            }
            assert!(timeout(NEVER / 2, connections.close(NEVER)).await.is_ok());
        }
    }
}
