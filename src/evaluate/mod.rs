//! Judging what a model wrote: generated programs are run in a sandbox and scored, answers are
//! checked. `docs/evaluator.md` has the security model, its limits and the figures.

pub mod packing;
pub mod verify;
