//! Evaluates model output: runs generated programs in a sandbox and scores them, and checks answers.
//! `docs/evaluator.md` has the security model, its limits and measurements.
//!
//! Start a [`Pool`] before the engine. Submitted programs come back as [`Finished`] while the engine keeps
//! decoding. Programs run on Linux only: `pool.rs` and `no_pool.rs` export the same names, so callers need
//! no `cfg`.

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

// Also compiled for tests on Linux, so that it does not break unnoticed.
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
