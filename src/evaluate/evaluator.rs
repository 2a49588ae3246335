//! The interface through which workflows run programs: the pool, or a test double.

use std::time::Duration;

use super::{EvaluationId, Finished, Pool, Request};

/// Runs programs and reports the outcomes.
pub trait Evaluator {
    /// Submits a program. Ids increase in the order of submission.
    fn submit(&mut self, request: Request) -> EvaluationId;

    /// Returns everything that has finished. If there is nothing yet, waits up to `timeout` for the first.
    fn poll(&mut self, timeout: Duration) -> Vec<Finished>;

    /// Kills an evaluation; no later poll returns it.
    fn cancel(&mut self, id: EvaluationId);

    /// How many have been submitted but not yet returned.
    fn open(&self) -> usize;
}

impl Evaluator for Pool {
    fn submit(&mut self, request: Request) -> EvaluationId {
        Self::submit(self, request)
    }

    fn poll(&mut self, timeout: Duration) -> Vec<Finished> {
        Self::poll(self, timeout)
    }

    fn cancel(&mut self, id: EvaluationId) {
        Self::cancel(self, id);
    }

    fn open(&self) -> usize {
        Self::open(self)
    }
}
