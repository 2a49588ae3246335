//! flowbench: a benchmark runner for multi-step LLM workflows on one local GPU.
//!
//! One process loads the model once, expands flows from templates and fixtures through a verified
//! cache, runs them, and reports where the time went. `docs/architecture.md` describes the layers.
//! The binary, `main.rs`, is a thin wrapper around `cli` and `commands`.

pub mod cli;
pub mod commands;
pub mod config;
pub mod engine;
pub mod environment;
pub mod error;
pub mod evaluate;
pub mod flow;
pub mod hash;
pub mod json_numbers;
pub mod live;
pub mod metrics;
pub mod open_files;
pub mod profile;
pub mod record;
pub mod report;
pub mod statistics;
pub mod stopwatch;
pub mod terminal;
pub mod text_file;
pub mod units;
pub mod workflow;

#[cfg(test)]
#[path = "../tests/support/default_model.rs"]
mod test_model;
