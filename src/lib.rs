//! explaind answers over HTTP why a text classifier said what it said.
//!
//! Five folders, the first four in the order in which a request visits them:
//!
//! 1. [`api`]: the door. Knows HTTP, knows no tensor.
//! 2. [`explain`]: the methods. A request and a model become attributions with evidence.
//! 3. [`model`]: what is loaded. One classifier with its labels and its tokenizer.
//! 4. [`runtime`]: where tensors run. The scheduler, the worker threads and their sessions.
//! 5. [`compile`]: beside the path. A model file becomes derived graphs when a model is opened.
//!
//! Beside them [`config`] holds every setting, [`telemetry`] the name of every metric, and [`cli`] the subcommands.
//!
//! Invariants, each of which says what is absent (`tests/it/architecture.rs` enforces them):
//!
//! - Outside `api/`, nobody knows HTTP: no status code, no header, no axum.
//! - Outside `runtime/`, nobody names ONNX Runtime.
//! - `compile/` does no I/O, holds no lock, has no `async`, reads no clock and no setting.
//! - The backward walk names no operator; operators live in tables.
//! - Method files do not know each other.
//! - Whether a method works on a model is settled when the model is opened.

pub mod api;
pub mod cli;
pub mod compile;
pub mod config;
pub mod explain;
pub mod model;
pub mod runtime;
pub mod telemetry;
