//! Judging what a model wrote: generated programs are run in a sandbox and scored, answers are
//! checked. `docs/evaluator.md` has the security model, its limits and the figures.
//!
//! [`pool::Pool`] is started before the engine; programs are submitted to it and come back as
//! [`evaluation::Finished`], while the engine goes on decoding.

pub mod evaluation;
pub mod evaluator;
pub mod packing;
#[cfg(target_os = "linux")]
pub mod pool;
pub mod program;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod running;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(target_os = "linux")]
mod supervisor;
#[cfg(target_os = "linux")]
mod verdict;
pub mod verify;
#[cfg(target_os = "linux")]
pub mod zygote;
