//! Prints and keeps what a run measures, as soon as it is measured; decides how the run ended.

use crate::config::{Mode, RunConfig};
use crate::engine::{Engine, LocalEngine, Message, Origin};
use crate::environment::LoadMeter;
use crate::error::{Error, Exit, Result};
use crate::flow::Flow;
use crate::metrics::{Positions, Scores, set_rewards};
use crate::profile::{self, Span};
use crate::record::evaluation::{GenerationRecord, TrialRecord};
use crate::record::{Energy, RunRecord, Status, StepRecord, WorkflowRecord};
use crate::report::evolution::EvolutionFolder;
use crate::report::folder::RunFolder;
use crate::report::recording::Recording;
use crate::report::rollouts::{Rollout, RolloutFile, Usage};
use crate::report::warnings::{self, Gathered};
use crate::report::{Console, summary, table, timing, traffic};
use crate::statistics::distribution;
use crate::stopwatch::Moment;
use crate::terminal::indented;
use crate::units::{Millis, plural};
use crate::workflow::{self, Observer, Outcome, Reached, Response, RunnerOptions};

use super::both::Rounds;
use super::profile::PendingProfile;
use super::run::{Job, Prepared};
use super::support::Support;

/// How many failed workflows are explained on the terminal; the record explains all.
const EXPLAINED_FAILURES: usize = 3;

/// Prints and keeps what is measured, as soon as it is.
pub(super) struct Recorder<'a> {
    pub(super) console: &'a mut Console,
    pub(super) config: &'a RunConfig,
    pub(super) folder: RunFolder,
    /// Of `MODE=both` only.
    pub(super) rounds: Option<Rounds>,
    pub(super) positions: Positions,
    pub(super) scores: Scores,
    pub(super) gathered: Gathered,
    /// How busy the machine is, since before the engine was started.
    pub(super) load: LoadMeter,
    pub(super) evolution: EvolutionFolder,
    pub(super) rollouts: Option<RolloutFile>,
    pub(super) recording: Option<Recording>,
    pub(super) record: RunRecord,
    pub(super) pending: PendingProfile,
}

impl Recorder<'_> {
    /// Starts an engine; the time since `start`, until its device is idle, is its init.
    ///
    /// # Errors
    /// Exit code 3 where it cannot be had, or cannot take the longest of the flows' prompts.
    pub(super) fn start_engine(&mut self, job: &Job, start: Moment) -> Result<Box<dyn Engine>> {
        let prepared = job.prepared;
        self.console.waiting("Loading the engine");
        let span = profile::span(Span::EngineInit);
        let started = prepared.start();
        self.console.idle();
        let engine = started.map_err(|error| error.context("failed to start the engine"))?;
        let init = Moment::now(engine.as_ref())?.since(start);
        drop(span);
        workflow::check_lengths(engine.as_ref(), job.flows, &self.options(1))?;
        if let Some(note) = engine.note() {
            self.console.progress(note);
        }
        self.console.result(&timing::engine_init(init))?;
        // Told once, however often the engine starts.
        if self.record.engine.is_null() {
            for note in &engine.info().notes {
                self.console.warning(&format!("warning: {note}"));
            }
        }
        self.record.engine = serde_json::to_value(engine.info()).unwrap_or_default();
        self.record.engine_starts = match prepared {
            // Counted where models are loaded: a load that nobody asked for would show here.
            Prepared::Local(..) => LocalEngine::loads(),
            Prepared::Scripted(..) | Prepared::Remote(..) => self.record.engine_starts + 1,
        };
        let before = self.record.engine_init_ms.unwrap_or_default();
        self.record.engine_init_ms = Some(before + init);
        Ok(engine)
    }

    /// The flows that are still to be run, where an earlier run has done some.
    pub(super) fn left(&self, flows: &[Flow]) -> Option<Vec<Flow>> {
        let rollouts = self.rollouts.as_ref()?;
        let left = flows.iter().filter(|flow| !rollouts.has(flow.flow));
        Some(left.cloned().collect())
    }

    /// Every row has been done before: says what they came to.
    pub(super) fn nothing_left(mut self) -> Result<Exit> {
        if let Some(rollouts) = self.rollouts.take() {
            let rollouts = rollouts.finish()?;
            self.console.progress("Every row is done already");
            self.console.result(&timing::rollouts(&rollouts))?;
        }
        self.discard();
        Ok(Exit::Done)
    }

    /// Begins to save the answers, where that is wanted.
    pub(super) fn begin_recording(&mut self) -> Result<()> {
        let path = self.config.workflow.record.as_deref();
        self.recording = path.map(Recording::create).transpose()?;
        Ok(())
    }

    /// Puts the recording into its place, and says so where it does not get there.
    fn finish_recording(&mut self, complete: bool) -> Result<()> {
        let Some(recording) = self.recording.take() else {
            return Ok(());
        };
        let path = recording.finish(complete)?;
        if !complete {
            let path = path.display();
            self.console
                .warning(&format!("the recording in {path} is not that of all flows"));
        }
        Ok(())
    }

    /// How flows are run, `concurrency` of them in flight.
    fn options(&self, concurrency: usize) -> RunnerOptions {
        RunnerOptions {
            concurrency,
            max_tokens: self.config.max_tokens,
            ignore_eos: self.config.ignore_eos,
            seed: self.config.seed,
        }
    }

    /// Runs the flows, `concurrency` of them in flight.
    pub(super) fn run_flows(
        &mut self,
        engine: &mut dyn Engine,
        support: &mut Support,
        job: &Job,
        flows: &[Flow],
        concurrency: usize,
    ) -> Result<Outcome> {
        let options = self.options(concurrency);
        self.console.flows();
        let mut means = support.means(engine);
        let outcome = workflow::run(
            &mut means,
            flows,
            &options,
            job.origin,
            job.interrupted,
            self,
        );
        self.console.idle();
        if let Some(traffic) = means.engine.traffic() {
            let remote = &mut self.record.totals.remote;
            remote.get_or_insert_default().add(&traffic);
        }
        // The total is taken however the flows ended, as far as the device still answers.
        if let Ok(end) = Moment::now(means.engine) {
            self.record.totals.benchmark_total_ms = Some(end.since(job.origin));
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
        if self.config.mode != Mode::Both {
            totals.ttft_ms = self.positions.ttft_ms();
        }
        totals.scores = self.scores.records();
        set_rewards(totals, &self.record.workflows);
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
                let message = format!("{failed} of {} failed", plural(num_workflows, "workflow"));
                (Status::Failed, Some(Error::new(exit, message)))
            }
            (Ok(Outcome::Interrupted), _) => {
                let message = format!(
                    "interrupted after {} of {}",
                    done.len(),
                    plural(num_workflows, "workflow")
                );
                (
                    Status::Incomplete,
                    Some(Error::new(Exit::Incomplete, message)),
                )
            }
            (Ok(Outcome::Limited(Reached(what))), _) => {
                let done = done.len();
                let workflows = plural(num_workflows, "workflow");
                let message = format!("ended at {what}, after {done} of {workflows}");
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
        self.record.environment.load = self.load.read();
        self.record.warnings = warnings::warnings(&self.record, &self.gathered);

        // Saved before it is printed: a closed pipe must not cost the record.
        let recorded = self.finish_recording(status == Status::Complete);
        let evolved = self.evolution.finish();
        let rolled = self.rollouts.take().map(RolloutFile::finish).transpose();
        let rolled = rolled.map(|rollouts| self.record.rollouts = rollouts);
        self.record.profile = profile::snapshot();
        let saved = (self.folder.save(&self.record))
            .and_then(|()| self.pending.write(self.record.profile.as_ref()))
            .and(recorded)
            .and(evolved)
            .and(rolled);
        if self.record.totals.benchmark_total_ms.is_some() {
            for line in timing::totals(&self.record.totals, num_workflows) {
                self.console.result(&line)?;
            }
        }
        let scores = timing::scores(&self.record.totals);
        for line in scores
            .into_iter()
            .chain(timing::failures(&self.record.totals))
        {
            self.console.result(&line)?;
        }
        match &self.record.rollouts {
            Some(rollouts) => self.console.result(&timing::rollouts(rollouts))?,
            None => {
                if let Some(line) = timing::reward(&self.record.totals) {
                    self.console.result(&line)?;
                }
            }
        }
        if let Some(remote) = &self.record.totals.remote {
            self.console.result(&traffic::line(remote))?;
        }
        if let Some(comparison) = &self.record.comparison {
            for line in table::comparison(comparison) {
                self.console.result(&line)?;
            }
        }
        for warning in &self.record.warnings {
            self.console.warning(&format!("warning: {warning}"));
        }
        saved?;
        let folder = self.folder.path();
        let next = self.next_command();
        if let Some(line) = summary::line(&self.record, &next) {
            self.console.progress(&line);
        }
        self.console.result(&timing::run(folder))?;
        match error {
            None => Ok(Exit::Done),
            Some(error) => Err(error.hint(format!("what was measured is in {}", folder.display()))),
        }
    }

    /// What to type to see where the time went.
    fn next_command(&self) -> String {
        let script = self.config.layout.run_script();
        let program = script.map_or("flowbench".to_owned(), |script| {
            format!("bash {}", summary::quoted(&script.display().to_string()))
        });
        let folder = self.folder.path().display().to_string();
        format!("{program} diagnose {}", summary::quoted(&folder))
    }

    /// Keeps the record as it is now.
    pub(super) fn save(&mut self) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        self.folder.save(&self.record)
    }

    /// Removes the run's folder: nothing was measured.
    pub(super) fn discard(mut self) {
        if let Some(recording) = self.recording.take() {
            recording.forget();
        }
        self.pending.forget();
        self.folder.discard();
    }

    /// Whether steps and workflows get lines: of many rounds, only the first of each mode does.
    fn is_shown(&self) -> bool {
        self.rounds.as_ref().is_none_or(Rounds::is_first)
    }

    /// Answers on stderr, for those who ask for them. Each line of an answer is marked: it cannot be
    /// taken for a line of this program.
    fn show(&mut self, step: &StepRecord) {
        if self.config.show_output {
            let text = format!(
                "--- flow {} step {} ({})\n| {}",
                step.flow,
                step.step,
                step.finish,
                indented(&step.output, "| ")
            );
            self.console.warning(&text);
        }
    }
}

impl Observer for Recorder<'_> {
    fn wants_prompts(&self) -> bool {
        self.config.show_prompt && self.is_shown()
    }

    fn prompt_sent(&mut self, origin: &Origin, messages: &[Message], text: Option<String>) {
        let (flow, step) = (origin.flow, &origin.step);
        let (what, text) = match text {
            Some(text) => ("prompt", format!("| {}", indented(&text, "| "))),
            None => {
                let turn = |message: &Message| {
                    let content = indented(&message.content, "| ");
                    format!("[{}]\n| {content}", message.role.as_str())
                };
                let turns: Vec<String> = messages.iter().map(turn).collect();
                ("messages", turns.join("\n"))
            }
        };
        self.console
            .warning(&format!("--- flow {flow} step {step} ({what})\n{text}"));
    }

    fn step_ended(&mut self, step: &StepRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        let step = &match &mut self.rounds {
            None => step.clone(),
            Some(rounds) => rounds.step(step),
        };
        self.positions.add(step);
        self.scores.add(step);
        self.gathered.add(step);
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
        // Of many rounds, the first says all.
        let first =
            step.round.is_none_or(|round| round == 1) && step.mode.as_deref() != Some("reuse");
        if let Some(recording) = self.recording.as_mut().filter(|_| first) {
            recording.add(step)?;
        }
        if self.is_shown() {
            self.console.result(&timing::target(step))?;
            self.show(step);
        }
        if step.kind.is_none() {
            self.console.step_ended(step.decode_tokens);
        }
        self.folder.save_now_and_then(&self.record)
    }

    fn trial_ended(&mut self, trial: &TrialRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        // The rounds of `both` run the same trials over and over.
        match self.rounds {
            None => self.evolution.trial(trial),
            Some(_) => Ok(()),
        }
    }

    fn generation_ended(&mut self, generation: &GenerationRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        if self.rounds.is_some() {
            return Ok(());
        }
        self.evolution.generation(generation)?;
        self.console.result(&timing::generation(generation))
    }

    fn workflow_ended(
        &mut self,
        workflow: &WorkflowRecord,
        response: &Response,
        error: Option<&Error>,
    ) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        self.evolution.end(workflow.flow, error.is_none())?;
        if let Some(rollouts) = &mut self.rollouts {
            let rollout = Rollout {
                rollout: rollouts.place(workflow.flow),
                response: response.text.clone(),
                usage: Usage {
                    prompt_tokens: workflow.prompt_tokens,
                    completion_tokens: workflow.decode_tokens,
                    total_tokens: workflow.prompt_tokens + workflow.decode_tokens,
                    cached_tokens: workflow.reused_tokens,
                },
                reward: response.reward,
                reward_floor: response.reward_floor,
                extracted_answer: response.answer.clone(),
                outcome: response.outcome.clone(),
                error: error.map(Error::chain),
            };
            rollouts.add(workflow.flow, &rollout)?;
        }
        let workflow = match &mut self.rounds {
            None => workflow.clone(),
            Some(rounds) => rounds.workflow(workflow),
        };
        match error {
            None => self.record.totals.workflows_done += 1,
            Some(error) => {
                self.record.totals.workflows_failed += 1;
                let failures = self.record.totals.workflows_failed;
                if failures <= EXPLAINED_FAILURES {
                    self.console.warning(&error.report());
                } else if failures == EXPLAINED_FAILURES + 1 {
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
