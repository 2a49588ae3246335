//! An evaluation that waits for its start.

use std::time::Instant;

use super::evaluation::{EvaluationId, Request};
use super::phases::Phases;
use crate::stopwatch;

/// An evaluation that waits for its (first or second) start.
#[derive(Debug)]
pub(super) struct EvaluationJob {
    pub(super) id: EvaluationId,
    pub(super) request: Request,
    pub(super) submitted: Instant,
    pub(super) attempts: u32,
    pub(super) phases: Phases,
}

impl EvaluationJob {
    pub(super) fn new(id: EvaluationId, request: Request, phases: Phases) -> Self {
        Self {
            id,
            request,
            submitted: stopwatch::now(),
            attempts: 0,
            phases,
        }
    }
}
