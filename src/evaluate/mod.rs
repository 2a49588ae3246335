//! Judging what a model wrote: generated programs are run in a sandbox and scored, answers are
//! checked. `docs/evaluator.md` has the security model, its limits and the figures.
//!
//! A [`Pool`] is started before the engine; programs are submitted to it and come back as
//! [`Finished`], while the engine goes on decoding. Programs are run on Linux only: `pool.rs` or
//! `no_pool.rs` stands behind the same names, so that no caller needs to know.

#[cfg(target_os = "linux")]
mod channel;
mod evaluation;
mod evaluator;
#[cfg(target_os = "linux")]
mod job;
pub mod packing;
#[cfg(target_os = "linux")]
mod phases;
#[cfg(target_os = "linux")]
mod pool;
pub mod program;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod running;
#[cfg(target_os = "linux")]
mod sandbox;
mod settings;
#[cfg(target_os = "linux")]
mod supervisor;
#[cfg(target_os = "linux")]
mod verdict;
mod verifier;
pub mod verify;
#[cfg(target_os = "linux")]
mod zygote;

// Linux's tests try it too, so that it keeps compiling.
#[cfg(any(test, not(target_os = "linux")))]
#[cfg_attr(target_os = "linux", allow(dead_code, unreachable_pub))]
mod no_pool;

pub use evaluation::{EvaluationId, Finished, Outcome, Request, Score, Times};
pub use evaluator::Evaluator;
#[cfg(not(target_os = "linux"))]
pub use no_pool::Pool;
#[cfg(target_os = "linux")]
pub use pool::Pool;
pub use settings::{KEPT_VARIABLES, PythonInfo, Settings};
pub use verifier::{
    Counts, DecidedBy, Library, VerificationId, Verified, Verifier, VerifierSettings,
};
