//! The seam that workflows run programs through: the pool, or a double in tests.

use std::time::Duration;

use super::{EvaluationId, Finished, Pool, Request};

/// Runs programs and says what came of them.
pub trait Evaluator {
    /// Hands a program in. Ids rise in the order of submission.
    fn submit(&mut self, request: Request) -> EvaluationId;

    /// Everything that has finished. With nothing there yet it waits for the first, at most `timeout`.
    fn poll(&mut self, timeout: Duration) -> Vec<Finished>;

    /// Gives one up: it is ended, and no poll tells of it.
    fn cancel(&mut self, id: EvaluationId);

    /// How many have been submitted and have not come back.
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
