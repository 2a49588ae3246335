//! Evaluated programs, good and hostile ones: what they come to, and what they leave behind.

mod chance;
mod hostile;
mod outcomes;
mod processes;
mod support;
mod templates;
mod verifier;
