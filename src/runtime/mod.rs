//! Where tensors run: the only folder that names ONNX Runtime.
//!
//! A [`Program`] is one graph ready to run: a session for every worker, and the layout that says how
//! rows become batches. A [`Scheduler`] owns the only queue and the worker threads. A [`Lane`] is one
//! request's way through the queue: its share, its deadline, its cancellation and its counters.

mod batch;
mod chunk;
mod deferred;
mod device;
mod environment;
mod forecast;
mod kernels;
mod lane;
mod layout;
mod program;
mod queue;
mod scheduler;
mod session;
mod settings;
mod tensor;
mod threads;
mod weights;

pub use batch::{Batching, plan, plan_rows};
pub use deferred::{Deferred, Held};
pub use device::{Device, UnknownDevice};
pub use environment::{Runtime, RuntimeError, library_candidates, release_freed_memory};
pub use lane::{Cancel, Lane, Spent, Stop};
pub use layout::{Dim, Extra, InputSlot, Layout, OutputSlot, Padding, Role, Row, RowOut};
pub use program::{Program, ProgramKind};
pub use queue::Gauges;
pub use scheduler::{Busy, Scheduler, SchedulerSettings};
pub use session::{Graph, Optimise, Outlet, Session, Source};
pub use settings::SessionSettings;
pub use tensor::{Data, Element, Tensor};
pub use threads::granted_cores;
pub use weights::{SharedWeights, Weight};
