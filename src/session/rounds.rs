//! `MODE=both`: `standalone` and `reuse` in turns on one engine, in one run.
//!
//! Every round begins with an empty prefix cache.

use std::ops::ControlFlow;

use super::Job;
use super::recorder::Recorder;
use super::services::RunServices;
use super::turns::{Arms, alternate};
use crate::config::Mode;
use crate::engine::Engine;
use crate::error::Result;
use crate::report::timing;
use crate::stopwatch::Moment;
use crate::workflow::Outcome;

const MODES: [Mode; 2] = [Mode::Standalone, Mode::Reuse];

impl Recorder<'_> {
    /// Starts one engine and runs the rounds. Each is saved and printed when it ends.
    pub(super) fn run_rounds(&mut self, job: &Job, services: &mut RunServices) -> Result<Outcome> {
        let mut engine = self.start_engine(job, job.origin)?;
        let rounds = self.config.job.rounds;
        let mut modes = Modes {
            recorder: self,
            engine: engine.as_mut(),
            job,
            services,
        };
        let early = alternate(&mut modes, rounds);
        self.read_gpu();
        early.map(|early| early.unwrap_or(Outcome::Ended))
    }
}

/// The modes on an engine that is kept.
struct Modes<'a, 'b> {
    recorder: &'a mut Recorder<'b>,
    engine: &'a mut dyn Engine,
    job: &'a Job<'a>,
    services: &'a mut RunServices,
}

impl Arms for Modes<'_, '_> {
    /// How the flows of a turn ended.
    type Stop = Outcome;

    fn round_begins(&mut self) -> ControlFlow<Outcome> {
        ControlFlow::Continue(())
    }

    fn turn(&mut self, round: usize, arm: usize) -> Result<ControlFlow<Outcome>> {
        let (recorder, job, mode) = (&mut *self.recorder, self.job, MODES[arm]);
        if (recorder.rounds.as_ref()).is_some_and(|rounds| rounds.has(round, mode.as_str())) {
            return Ok(ControlFlow::Continue(()));
        }
        let reuse = mode == Mode::Reuse;
        self.engine.restart(reuse)?;
        let concurrency = if reuse { recorder.concurrency } else { 1 };
        let rounds = recorder.rounds.get_or_insert_default();
        rounds.begin(round, mode.as_str());
        let start = Moment::now(self.engine)?;
        let outcome = recorder.run_flows(self.engine, self.services, job, job.flows, concurrency);
        let end = Moment::now(self.engine);
        let joules = match &end {
            Ok(end) => recorder.joules_of_round(start.since(job.origin), end.since(job.origin)),
            Err(_) => None,
        };
        if let (Some(rounds), Ok(end)) = (&mut recorder.rounds, end) {
            let record = rounds.end(end.since(start), job.flows.len(), joules);
            recorder.record.comparison = Some(rounds.comparison());
            recorder.save()?;
            recorder.console.result(&timing::round(&record))?;
        }
        Ok(match outcome? {
            Outcome::Ended => ControlFlow::Continue(()),
            early => ControlFlow::Break(early),
        })
    }

    fn round_ended(&mut self, _: usize) -> Result<ControlFlow<Outcome>> {
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ARMS;

    #[test]
    fn the_modes_are_the_arms_of_the_comparison() {
        assert_eq!(MODES.map(Mode::as_str), ARMS);
    }
}
