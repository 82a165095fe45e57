//! This file is where the compiler begins: it reads ONNX graphs and derives new ones from them.
//!
//! It works once, when a model is opened. It is pure: no I/O, no lock, no clock, no setting; running a graph
//! to learn its shapes is the caller's, through a closure.

pub mod activity;
pub mod builder;
pub mod facts;
pub mod gradient;
pub mod graph;
pub mod onnx;
pub mod ops;
pub mod reverse;
