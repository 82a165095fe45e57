//! What the tests share: the bundled model behind a scheduler.

use std::{path::Path, sync::OnceLock};

use explaind::{
    explain::{House, Limits},
    model::{Entry, Model, OpenSettings, Shelf},
    runtime::{Device, Runtime, Scheduler, SchedulerSettings},
};

/// Workers of every house in the tests.
pub const WORKERS: usize = 2;

/// ONNX Runtime on the device that `EXPLAIND_DEVICE` names, as the service reads it. Where CUDA's kernels do not do what a
/// processor's do, a test says so.
pub fn runtime() -> Runtime {
    let device = std::env::var("EXPLAIND_DEVICE").map_or(Device::Cpu, |it| it.parse().expect("a device"));
    Runtime::load(device, 1).expect("ONNX Runtime loads")
}

/// How the tests open models.
pub fn open_settings() -> OpenSettings {
    OpenSettings { runtime: runtime(), workers: WORKERS }
}

/// A house with one model.
pub fn house(name: &str, folder: &Path) -> House {
    let model = Model::open(name, folder, &open_settings()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut models = Shelf::default();
    models.put(name, Entry::Ready(model.into()));
    let settings = SchedulerSettings { workers: WORKERS, chunk_tokens: 512, budget: u64::MAX / 2 };
    // The tests share the workers, and none is to hear that there is no room.
    House {
        models,
        scheduler: Scheduler::start(settings).expect("workers"),
        limits: Limits { default_timeout_ms: 60_000, ..Limits::default() },
    }
}

/// The house with the bundled sentiment model, opened once.
pub fn bundled() -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| house("sst2", &Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2")))
}
