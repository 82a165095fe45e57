//! Probes tell opening, serving and leaving apart.

use std::{
    io,
    sync::{Arc, Mutex},
};

use explaind::{
    api::life::Phase,
    explain::House,
    runtime::{Scheduler, SchedulerSettings},
};

use crate::service::Service;

async fn statuses(service: &Service) -> [u16; 4] {
    let mut statuses = [0; 4];
    for (status, probe) in statuses.iter_mut().zip(["/livez", "/startupz", "/readyz", "/health"]) {
        *status = service.get(probe).await.status.as_u16();
    }
    statuses
}

#[tokio::test]
async fn each_phase_has_its_answers() {
    let closed = Service::closed(&[]);
    assert_eq!(statuses(&closed).await, [200, 503, 503, 503]);
    let open = Service::with(&[]);
    assert_eq!(statuses(&open).await, [200, 200, 200, 200]);
    assert_eq!(open.metric("explaind_ready"), 1.0);
    open.door.life.advance(Phase::Leaving);
    assert_eq!(open.get("/readyz").await.header("retry-after"), "1");
    assert_eq!(statuses(&open).await, [200, 200, 503, 503]);
}

#[tokio::test]
async fn models_that_open_while_leaving_make_nothing_ready() {
    let service = Service::closed(&[]);
    service.door.life.advance(Phase::Leaving);
    assert_eq!(statuses(&service).await, [200, 503, 503, 503]);
    let settings = SchedulerSettings { workers: 1, chunk_tokens: 512, budget: 1 };
    let scheduler = Scheduler::start(settings).expect("workers");
    service.door.open(House { models: Default::default(), scheduler, limits: Default::default() });
    assert_eq!(statuses(&service).await, [200, 200, 503, 503]);
    assert_eq!(service.metric("explaind_ready"), 0.0);
    assert!(!service.door.is_ready());
}

#[tokio::test]
async fn from_the_signal_on_every_answer_ends_its_connection() {
    let service = Service::closed(&[]);
    assert_eq!(service.get("/livez").await.header("connection"), "");
    for phase in [Phase::Leaving, Phase::Refusing] {
        service.door.life.advance(phase);
        for path in ["/livez", "/readyz", "/methods", "/nowhere"] {
            assert_eq!(service.get(path).await.header("connection"), "close", "{path}");
        }
    }
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_probe_is_worth_no_line_whatever_it_is_told() {
    let (log, service) = (Log::default(), Service::closed(&[]));
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    statuses(&service).await;
    service.get("/nowhere").await;
    let told = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("a log in UTF-8");
    assert!(told.contains("unknown-route") && !told.contains("starting"), "{told}");
}
