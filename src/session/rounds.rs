//! `MODE=both`: rounds of `standalone` and `reuse` on one engine.
//!
//! The modes alternate, A B, B A, A B, so that drift of the machine (heat, a noisy neighbour) affects both
//! alike. Every round begins with an empty prefix cache.

use super::Job;
use super::recorder::Recorder;
use super::services::RunServices;
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
        let outcome = self.alternate(engine.as_mut(), job, services);
        self.read_gpu();
        outcome
    }

    fn alternate(
        &mut self,
        engine: &mut dyn Engine,
        job: &Job,
        services: &mut RunServices,
    ) -> Result<Outcome> {
        for (round, mode) in order(self.config.job.rounds) {
            if (self.rounds.as_ref()).is_some_and(|rounds| rounds.has(round, mode.as_str())) {
                continue;
            }
            let reuse = mode == Mode::Reuse;
            engine.restart(reuse)?;
            let concurrency = if reuse { self.concurrency } else { 1 };
            let rounds = self.rounds.get_or_insert_default();
            rounds.begin(round, mode.as_str());
            let start = Moment::now(engine)?;
            let outcome = self.run_flows(engine, services, job, job.flows, concurrency);
            let end = Moment::now(engine);
            let joules = match &end {
                Ok(end) => self.joules_of_round(start.since(job.origin), end.since(job.origin)),
                Err(_) => None,
            };
            if let (Some(rounds), Ok(end)) = (&mut self.rounds, end) {
                let record = rounds.end(end.since(start), job.flows.len(), joules);
                self.record.comparison = Some(rounds.comparison());
                self.save()?;
                self.console.result(&timing::round(&record))?;
            }
            match outcome? {
                Outcome::Ended => {}
                early => return Ok(early),
            }
        }
        Ok(Outcome::Ended)
    }
}

/// The rounds in order: A B, B A, A B.
fn order(rounds: usize) -> impl Iterator<Item = (usize, Mode)> {
    (1..=rounds).flat_map(|round| {
        let [a, b] = MODES;
        let pair = if round % 2 == 1 { [a, b] } else { [b, a] };
        pair.map(|mode| (round, mode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ARMS;

    #[test]
    fn rounds_alternate() {
        let names: Vec<String> = order(3)
            .map(|(round, mode)| format!("{round} {}", mode.as_str()))
            .collect();
        assert_eq!(
            names.join(", "),
            "1 standalone, 1 reuse, 2 reuse, 2 standalone, 3 standalone, 3 reuse"
        );
    }

    #[test]
    fn the_modes_are_the_arms_of_the_comparison() {
        assert_eq!(MODES.map(Mode::as_str), ARMS);
    }
}
