//! The tests of the whole program, as one binary: one link instead of one for each file.
//!
//! Most start `flowbench` in a folder made for the test, on the scripted engine or against a server that the
//! test plays. `cargo test --test it NAME` runs the tests whose path (`remote::…`) contains NAME.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that fails may say so in any way"
)]

mod ab;
mod bad_input;
mod bench_engine;
mod both;
mod common;
mod compare;
#[path = "../support/default_model.rs"]
mod default_model;
#[cfg(target_os = "linux")]
mod evaluate;
mod expand;
mod exports;
#[cfg(target_os = "linux")]
mod faults;
mod files;
mod gpu;
mod help;
mod layers;
mod limits;
mod live;
mod llama_server;
mod network;
mod nightly_docs;
mod nvml;
mod own_folder;
mod profile;
mod profiler;
mod real_model;
mod remote;
mod report;
mod resume;
mod run;
mod schema;
mod serve;
mod shards;
mod simgpu;
mod streams;
#[path = "../support/thorough.rs"]
mod thorough;
mod tiny_model;
mod validity;
mod verify_how;
mod warnings;
mod what_if;
mod workflows;
