//! The integration tests: one binary, one module a subject.

// All of it is tests, helpers included: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod architecture;
mod arrays;
mod attending;
mod book;
mod calibration;
mod conservation;
mod counted;
mod decisions;
mod engine;
mod evaluate;
mod exported;
mod inspect;
mod intervention;
mod invariance;
mod laws;
mod lean;
mod lengths;
mod levels;
mod lowerings;
mod models;
mod openapi;
mod operators;
mod parity;
mod process;
mod reader;
mod reading;
mod reduction;
mod reference;
mod refusals;
mod relevance;
mod replacements;
mod routes;
mod service;
mod shapes;
mod support;
mod surrogate;
mod twins;
mod zoo;
