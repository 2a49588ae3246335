//! Prints and keeps what a run measures, as soon as it is measured; decides how the run ended.

use std::sync::atomic::AtomicBool;

use crate::config::{Mode, RunConfig};
use crate::engine::{Engine, LocalEngine};
use crate::error::{Error, Exit, Result};
use crate::flow::Flow;
use crate::metrics::Positions;
use crate::profile::{self, Span};
use crate::record::{Energy, RunRecord, Status, StepRecord, WorkflowRecord};
use crate::report::folder::RunFolder;
use crate::report::{Console, table, timing};
use crate::statistics::distribution;
use crate::stopwatch::Moment;
use crate::units::Millis;
use crate::workflow::{self, Observer, Outcome, RunnerOptions};

use super::both::Rounds;
use super::profile::PendingProfile;
use super::run::Prepared;

/// How many failed workflows are explained on the terminal; the record explains all.
const EXPLAINED_FAILURES: usize = 3;

/// Prints and keeps what is measured, as soon as it is.
pub(super) struct Recorder<'a> {
    pub(super) console: &'a mut Console,
    pub(super) config: &'a RunConfig,
    pub(super) folder: RunFolder,
    /// Workflows that failed.
    pub(super) failures: usize,
    /// Of `MODE=both` only.
    pub(super) rounds: Option<Rounds>,
    pub(super) positions: Positions,
    pub(super) record: RunRecord,
    pub(super) pending: PendingProfile,
}

impl Recorder<'_> {
    /// Starts an engine; the time since `start`, until its device is idle, is its init.
    pub(super) fn start_engine(
        &mut self,
        prepared: &Prepared,
        start: Moment,
    ) -> Result<Box<dyn Engine>> {
        self.console.waiting("Loading the engine");
        let span = profile::span(Span::EngineInit);
        let started = prepared.start();
        self.console.idle();
        let engine = started.map_err(|error| error.context("failed to start the engine"))?;
        let init = Moment::now(engine.as_ref())?.since(start);
        drop(span);
        self.console.result(&timing::engine_init(init))?;
        self.record.engine = serde_json::to_value(engine.info()).unwrap_or_default();
        self.record.engine_starts = match prepared {
            // Counted where models are loaded: a load that nobody asked for would show here.
            Prepared::Local(..) => LocalEngine::loads(),
            Prepared::Scripted(..) => self.record.engine_starts + 1,
        };
        let before = self.record.engine_init_ms.unwrap_or_default();
        self.record.engine_init_ms = Some(before + init);
        Ok(engine)
    }

    /// Runs the flows, `concurrency` of them in flight.
    pub(super) fn run_flows(
        &mut self,
        engine: &mut dyn Engine,
        flows: &[Flow],
        concurrency: usize,
        origin: Moment,
        interrupted: &AtomicBool,
    ) -> Result<Outcome> {
        let options = RunnerOptions {
            concurrency,
            max_tokens: self.config.max_tokens,
            ignore_eos: self.config.ignore_eos,
            seed: self.config.seed,
        };
        let steps = flows.iter().map(|flow| flow.steps.len()).sum();
        self.console.flows(flows.len(), steps);
        let outcome = workflow::run(engine, flows, &options, origin, interrupted, self);
        self.console.idle();
        // The total is taken however the flows ended, as far as the device still answers.
        if let Ok(end) = Moment::now(engine) {
            self.record.totals.benchmark_total_ms = Some(end.since(origin));
        }
        outcome
    }

    /// Prints the totals, saves the record and decides on the exit code.
    pub(super) fn close(mut self, result: Result<Outcome>, num_workflows: usize) -> Result<Exit> {
        let totals = &mut self.record.totals;
        let done: Vec<Millis> = (self.record.workflows.iter())
            .filter(|workflow| workflow.error.is_none())
            .map(|workflow| workflow.workflow_ms)
            .collect();
        totals.avg_workflow_ms = (!done.is_empty() && self.config.mode != Mode::Both)
            .then(|| Millis(done.iter().copied().sum::<Millis>().0 / done.len() as f64));
        if self.config.mode != Mode::Both {
            let values: Vec<f64> = done.iter().map(|ms| ms.0).collect();
            totals.workflow_ms = distribution(&values);
        }
        totals.positions = self.positions.records();
        if let (Some(watts), Some(total)) = (self.config.gpu_power, totals.benchmark_total_ms) {
            totals.energy = Some(Energy {
                source: "assumed".to_owned(),
                watts,
                joules: watts * total.seconds(),
            });
        }
        self.record.workflows.sort_by_key(|workflow| workflow.flow);

        let failed = totals.workflows_failed;
        let steps_done = totals.steps_done;
        let differing = (self.record.comparison.as_ref())
            .and_then(|comparison| super::both::refusal(&comparison.outputs));
        let (status, error) = match (result, differing) {
            (Ok(Outcome::Ended), Some(error)) => (Status::Failed, Some(error)),
            (Ok(Outcome::Ended), None) if failed == 0 => (Status::Complete, None),
            (Ok(Outcome::Ended), None) => {
                let exit = if steps_done == 0 {
                    Exit::NothingRan
                } else {
                    Exit::FlowFailed
                };
                let message = format!("{failed} of {num_workflows} workflows failed");
                (Status::Failed, Some(Error::new(exit, message)))
            }
            (Ok(Outcome::Interrupted), _) => {
                let message = format!(
                    "interrupted after {} of {num_workflows} workflows",
                    done.len()
                );
                (
                    Status::Incomplete,
                    Some(Error::new(Exit::Incomplete, message)),
                )
            }
            // No engine, no measurement: the folder would only be in the way.
            (Err(error), _) if self.record.engine_starts == 0 => {
                self.discard();
                return Err(error);
            }
            (Err(error), _) => (Status::Incomplete, Some(error)),
        };
        self.record.status = status;
        self.record.error = error.as_ref().map(Error::chain);

        // Saved before it is printed: a closed pipe must not cost the record.
        self.record.profile = profile::snapshot();
        let saved = (self.folder.save(&self.record))
            .and_then(|()| self.pending.write(self.record.profile.as_ref()));
        let folder = self.folder.path().display().to_string();
        if self.record.totals.benchmark_total_ms.is_some() {
            for line in timing::totals(&self.record.totals, num_workflows) {
                self.console.result(&line)?;
            }
        }
        if let Some(comparison) = &self.record.comparison {
            for line in table::comparison(comparison) {
                self.console.result(&line)?;
            }
        }
        saved?;
        match error {
            None => {
                self.console.progress(&format!("Results in {folder}"));
                Ok(Exit::Done)
            }
            Some(error) => Err(error.hint(format!("what was measured is in {folder}"))),
        }
    }

    /// Keeps the record as it is now.
    pub(super) fn save(&mut self) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        self.folder.save(&self.record)
    }

    /// Removes the run's folder: nothing was measured.
    pub(super) fn discard(self) {
        self.pending.forget();
        self.folder.discard();
    }

    /// Whether steps and workflows get lines: of many rounds, only the first of each mode does.
    fn is_shown(&self) -> bool {
        self.rounds.as_ref().is_none_or(Rounds::is_first)
    }

    /// Prompts and answers on stderr, for those who ask for them.
    fn show(&mut self, step: &StepRecord) {
        if self.config.show_output {
            let text = format!(
                "--- flow {} step {} ({})\n{}",
                step.flow, step.step, step.finish, step.output
            );
            self.console.warning(&text);
        }
    }
}

impl Observer for Recorder<'_> {
    fn step_ended(&mut self, step: &StepRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        let step = &match &mut self.rounds {
            None => step.clone(),
            Some(rounds) => rounds.step(step),
        };
        self.positions.add(step);
        let totals = &mut self.record.totals;
        totals.steps_done += 1;
        totals.prompt_tokens += step.prompt_tokens;
        totals.prefill_tokens += step.prefill_tokens;
        totals.reused_tokens += step.reused_tokens;
        totals.drafted_tokens += step.drafted_tokens;
        totals.accepted_tokens += step.accepted_tokens;
        totals.decode_tokens += step.decode_tokens;
        // Kept before it is shown: what is on the screen is always in the file.
        self.folder.add_step(step)?;
        if self.is_shown() {
            self.console.result(&timing::target(step))?;
            self.show(step);
        }
        self.console.step_ended(step.decode_tokens);
        self.folder.save_now_and_then(&self.record)
    }

    fn workflow_ended(&mut self, workflow: &WorkflowRecord, error: Option<&Error>) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        let workflow = match &mut self.rounds {
            None => workflow.clone(),
            Some(rounds) => rounds.workflow(workflow),
        };
        match error {
            None => self.record.totals.workflows_done += 1,
            Some(error) => {
                self.record.totals.workflows_failed += 1;
                self.failures += 1;
                if self.failures <= EXPLAINED_FAILURES {
                    self.console.warning(&error.report());
                } else if self.failures == EXPLAINED_FAILURES + 1 {
                    self.console
                        .warning("further failures are in the record only");
                }
            }
        }
        let line = timing::workflow(&workflow);
        self.record.workflows.push(workflow);
        if self.is_shown() {
            self.console.result(&line)?;
        }
        self.console.flow_ended();
        Ok(())
    }
}
