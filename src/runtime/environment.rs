//! Where the ONNX Runtime library is found and loaded, once a process.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ort::{environment::Environment, logging::LogLevel};

use super::{Device, SessionSettings};

/// The loaded library with the settings that every session shares.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: Environment,
    /// The device of every session.
    pub device: Device,
    /// How sessions are made.
    pub settings: SessionSettings,
    /// Where the library was found.
    pub library: Arc<Path>,
}

/// Why ONNX Runtime, or a graph in it, is not usable.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// None of the candidate paths holds the library.
    #[error(
        "ONNX Runtime was not found (looked at {}): run scripts/fetch-onnxruntime, or set ORT_DYLIB_PATH",
        .0.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NotFound(Vec<PathBuf>),
    /// The library is there and does not load.
    #[error("ONNX Runtime at {path} does not load: {cause}")]
    Load {
        /// The file that was tried.
        path: PathBuf,
        /// The loader's words.
        cause: String,
    },
    /// A session could not be made, or a run failed.
    #[error("ONNX Runtime: {0}")]
    Session(String),
}

impl From<ort::Error> for RuntimeError {
    fn from(error: ort::Error) -> Self {
        Self::Session(error.to_string())
    }
}

static LOADED: Mutex<Option<(Environment, Arc<Path>)>> = Mutex::new(None);

impl Runtime {
    /// Loads the library from the first of [`library_candidates`] that exists.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] and [`RuntimeError::Load`].
    pub fn load(device: Device, threads: usize) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (environment, library) = match &*loaded {
            Some((environment, library)) => (environment.clone(), library.clone()),
            None => {
                let candidates = library_candidates();
                let Some(path) = candidates.iter().find(|it| it.exists()) else {
                    return Err(RuntimeError::NotFound(candidates));
                };
                keep_freed_memory();
                let environment = start(path)?;
                *loaded = Some((environment.clone(), Arc::from(path.as_path())));
                (environment, Arc::from(path.as_path()))
            }
        };
        let settings = SessionSettings { threads: threads.max(1), ..SessionSettings::default() };
        Ok(Self { environment, device, settings, library })
    }

    /// May graphs hold operators of our own? They run on processors alone.
    pub fn has_kernels(&self) -> bool {
        self.device == Device::Cpu
    }

    /// The same library on the host's processor.
    pub fn on_processor(&self) -> Self {
        Self { device: Device::Cpu, ..self.clone() }
    }
}

/// Lets the C library keep up to 64 MiB of what a run gave back. By its defaults every large tensor of a run is
/// mapped, zeroed page by page and unmapped again: about a sixth of a gradient pass (`benches/README.md`). And lets
/// threads share arenas beyond two more than there are cores: each keeps what it was once given.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn keep_freed_memory() {
    const MIB: libc::c_int = 1 << 20;
    let arenas = libc::c_int::try_from(super::granted_cores() + 2).unwrap_or(libc::c_int::MAX);
    let settings = [
        (libc::M_MMAP_THRESHOLD, 32 * MIB),
        (libc::M_TRIM_THRESHOLD, 64 * MIB),
        (libc::M_TOP_PAD, 32 * MIB),
        (libc::M_ARENA_MAX, arenas),
    ];
    for (parameter, value) in settings {
        // SAFETY: mallopt takes two plain numbers and may be called at any time; a value it does not take is refused
        // with 0 and changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Hands back to the system what the C library keeps of freed memory: opening a model reads its weights and runs its
/// graphs on trial, which needs several times what stays.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn release_freed_memory() {
    // SAFETY: malloc_trim takes a plain number, may be called at any time, and touches freed memory alone.
    unsafe { libc::malloc_trim(0) };
}

/// Hands back to the system what the C library keeps of freed memory; nothing where it keeps none.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_freed_memory() {}

fn start(path: &Path) -> Result<Environment, RuntimeError> {
    let load = |cause: String| RuntimeError::Load { path: path.to_owned(), cause };
    let environment = ort::init_from(path)
        .map_err(|error| load(error.to_string()))?
        .with_name("explaind")
        .with_telemetry(false)
        .build()
        .map_err(|error| load(error.to_string()))?;
    environment.set_log_level(LogLevel::Error);
    Ok(environment)
}

/// Where the library is looked for, in order: `ORT_DYLIB_PATH` (alone, when set), `.ort/` in the working
/// directory and beside the sources, and `../lib` and the folder of the executable.
pub fn library_candidates() -> Vec<PathBuf> {
    const NAME: &str = "libonnxruntime.so";
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|it| !it.is_empty()) {
        return vec![path.into()];
    }
    let mut candidates = vec![Path::new(".ort").join(NAME)];
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        candidates.push(folder.join("../lib").join(NAME));
        candidates.push(folder.join(NAME));
        // A binary in `target/<profile>` (or a test in `target/<profile>/deps`) belongs to a checkout.
        candidates.extend(folder.ancestors().skip(2).take(2).map(|it| it.join(".ort").join(NAME)));
    }
    candidates
}
