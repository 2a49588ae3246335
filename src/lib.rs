//! flowbench: a benchmark runner for multi-step LLM workflows on one local GPU.
//!
//! One process loads one model engine once, expands flows from templates × fixtures through a verified
//! cache, runs them, and says where every millisecond went. `docs/architecture.md` describes the layers;
//! the binary, `main.rs`, is a thin shell over `cli` and `commands`.

pub mod cli;
pub mod commands;
pub mod config;
pub mod engine;
pub mod environment;
pub mod error;
pub mod evaluate;
pub mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod hash;
pub mod json_numbers;
pub mod live;
pub mod metrics;
pub mod open_files;
pub mod profile;
pub mod record;
pub mod report;
pub mod results;
pub mod serve;
pub mod session;
pub mod statistics;
pub mod stopwatch;
pub mod terminal;
pub mod text_file;
pub mod units;
pub mod workflow;

#[cfg(test)]
#[path = "../tests/support/thorough.rs"]
mod thorough;

#[cfg(test)]
#[path = "../tests/support/default_model.rs"]
mod test_model;
