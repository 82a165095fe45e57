//! One module a route, and one for what all routes have in common.

mod common;
mod docs;
mod explain;
mod health;
mod methods;
mod metrics;
mod models;
mod predict;
mod problems;
