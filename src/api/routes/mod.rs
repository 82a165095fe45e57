//! One file a route.

pub mod docs;
pub mod health;
pub mod home;
pub mod metrics;
pub mod problems;
