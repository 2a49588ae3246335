//! Evaluated programs, good and hostile ones: what they come to, and what they leave behind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod chance;
mod cost;
mod hostile;
mod outcomes;
mod processes;
mod support;
mod templates;
mod verifier;
