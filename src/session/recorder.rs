//! Saves and prints what a run measures, as soon as it is measured.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::RunConfig;
use crate::engine::{Engine, GpuMeter, LocalEngine, Message, Origin};
use crate::environment::LoadMeter;
use crate::error::{Error, Result};
use crate::flow::Flow;
use crate::metrics::{Rounds, Tally};
use crate::profile::{self, Span};
use crate::record::evaluation::{GenerationRecord, TrialRecord};
use crate::record::{RunRecord, StepRecord, WorkflowRecord};
use crate::report::warnings::Gathered;
use crate::report::{Console, timing};
use crate::results::{
    EvolutionFolder, ProfileFiles, Recording, Rollout, RolloutFile, RunFolder, Usage, circumstances,
};
use crate::stopwatch::{Moment, Timer};
use crate::terminal::indented;
use crate::workflow::{self, Accounts, Observer, Outcome, Response, RunnerOptions};

use super::Job;
use super::prepared::Prepared;
use super::replaced::Reruns;
use super::resume::Kept;
use super::sampler::Sampler;
use super::services::RunServices;

/// Errors of further failed workflows are in the record only.
const EXPLAINED_FAILURES: usize = 3;

/// How often a running run's record is given what was watched.
const WATCHED: Duration = Duration::from_secs(1);

/// Saves and prints measurements as they come.
pub(super) struct Recorder<'a> {
    pub(super) console: &'a mut Console,
    pub(super) config: &'a RunConfig,
    /// Flows in flight; in `MODE=both` those of the `reuse` rounds.
    pub(super) concurrency: usize,
    /// In `MODE=both` only.
    pub(super) rounds: Option<Rounds>,
    pub(super) tally: Tally,
    /// What the warnings are made from.
    pub(super) gathered: Gathered,
    /// Load of the machine since before the engine was started.
    pub(super) load: LoadMeter,
    /// The GPU since the engine was started; `None` if it uses none.
    pub(super) gpu: Option<GpuMeter>,
    /// Watches the machine from the start of the engine to the end of the run.
    pub(super) sampler: Option<Sampler>,
    /// Since the record had what was watched.
    watched: Timer,
    pub(super) reruns: Reruns,
    pub(super) record: RunRecord,
    pub(super) files: RunFiles,
    /// What earlier segments of the run have measured.
    pub(super) kept: Kept,
    /// Steps of workflows that earlier segments have not ended.
    open_steps: Arc<HashMap<usize, Vec<StepRecord>>>,
    /// Whether an engine was started in this segment, and is the one of the earlier segments.
    pub(super) has_engine: bool,
    /// Whether the requests of earlier segments are entered in the accounts.
    has_usage: bool,
}

/// The files that a run writes to.
pub(super) struct RunFiles {
    pub(super) folder: RunFolder,
    pub(super) evolution: EvolutionFolder,
    pub(super) rollouts: Option<RolloutFile>,
    pub(super) recording: Option<Recording>,
    pub(super) profile: ProfileFiles,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        console: &'a mut Console,
        config: &'a RunConfig,
        concurrency: usize,
        record: RunRecord,
        files: RunFiles,
        kept: Kept,
    ) -> Self {
        let mut recorder = Self {
            console,
            config,
            concurrency,
            rounds: None,
            tally: Tally::default(),
            gathered: Gathered::default(),
            load: LoadMeter::start(),
            gpu: None,
            sampler: None,
            watched: Timer::start(),
            reruns: Reruns::default(),
            record,
            files,
            open_steps: kept.open_steps(),
            kept,
            has_engine: false,
            has_usage: false,
        };
        recorder.count_kept();
        recorder
    }

    /// Counts what earlier segments have measured.
    fn count_kept(&mut self) {
        for step in &self.kept.steps {
            self.tally.step(step);
            self.gathered.add(step);
        }
        for workflow in &self.kept.workflows {
            self.tally.workflow(workflow);
        }
        self.tally.set_counts(&mut self.record.totals);
        if !self.kept.rounds.is_empty() {
            let rounds = Rounds::restored(self.kept.rounds.clone(), &self.kept.steps);
            self.record.comparison = Some(rounds.comparison());
            self.rounds = Some(rounds);
        }
    }
}

impl Recorder<'_> {
    /// Starts an engine. Its init time is that from `start` until its device is idle.
    ///
    /// # Errors
    /// Exit code 3 if it does not start, or its context is too small for the longest prompt.
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
        // Printed once, however often an engine starts.
        let is_first = !self.has_engine;
        if let Some(note) = engine.note().filter(|_| is_first) {
            self.console.progress(note);
        }
        self.console.result(&timing::engine_init(init))?;
        if is_first {
            for note in &engine.info().notes {
                self.console.warning(&format!("warning: {note}"));
            }
            self.gpu = GpuMeter::start();
            self.record.gpu = self.gpu.as_ref().map(GpuMeter::begun);
            // The card can be read from now on, and its energy is to be known from the first flow on.
            if let Some(sampler) = &self.sampler {
                sampler.refresh();
            }
        }
        self.record.engine = serde_json::to_value(engine.info()).unwrap_or_default();
        self.record.engine_starts = match prepared {
            // Counted by the loader itself, so that an unexpected load would show.
            Prepared::Local(..) => self.kept.engine_starts + LocalEngine::loads(),
            Prepared::Scripted { .. } | Prepared::Remote { .. } => self.record.engine_starts + 1,
        };
        self.note_engine()?;
        self.has_engine = true;
        let before = self.record.engine_init_ms.unwrap_or_default();
        self.record.engine_init_ms = Some(before + init);
        if is_first {
            // A run that is killed can only be resumed on the same model.
            let _span = profile::span(Span::RecordIo);
            self.files.folder.save_quickly(&self.record)?;
        }
        Ok(engine)
    }

    /// Checks that the engine is that of the earlier segments, and notes on what other device it runs.
    fn note_engine(&mut self) -> Result<()> {
        if self.kept.segment.is_none() || self.kept.engine.is_null() {
            return Ok(());
        }
        let folder = self.files.folder.path();
        self.kept.check_engine(&self.record, folder)?;
        let mut before = self.record.clone();
        before.engine = self.kept.engine.clone();
        let differing = circumstances(&before, &self.record);
        // The record describes the engine of the first segment.
        self.record.engine = self.kept.engine.clone();
        if let Some(segment) = self.record.segments.last_mut() {
            segment.differs.extend(differing);
        }
        Ok(())
    }

    /// The flows that neither an earlier segment nor, with `--output`, an earlier run has done; `None` for all.
    pub(super) fn remaining(&self, flows: &[Flow]) -> Option<Vec<Flow>> {
        self.kept.remaining(flows, self.files.rollouts.as_ref())
    }

    /// Enters the requests of earlier segments, once.
    pub(super) fn enter_usage(&mut self, accounts: &mut Accounts) {
        if !std::mem::replace(&mut self.has_usage, true) {
            for step in &self.kept.steps {
                accounts.enter_step(step);
            }
        }
    }

    fn options(&self, concurrency: usize) -> RunnerOptions {
        RunnerOptions {
            concurrency,
            max_tokens: self.config.job.max_tokens,
            ignore_eos: self.config.job.ignore_eos,
            seed: self.config.job.seed,
            segment: self.kept.segment,
            ended: Arc::clone(&self.open_steps),
        }
    }

    /// Runs the flows with `concurrency` of them in flight.
    pub(super) fn run_flows(
        &mut self,
        engine: &mut dyn Engine,
        services: &mut RunServices,
        job: &Job,
        flows: &[Flow],
        concurrency: usize,
    ) -> Result<Outcome> {
        let options = self.options(concurrency);
        self.console.flows();
        let mut services = services.with_engine(engine);
        self.enter_usage(services.accounts);
        let outcome = workflow::run(
            &mut services,
            flows,
            &options,
            job.origin,
            job.interrupted,
            self,
        );
        self.console.idle();
        if let Some(traffic) = services.engine.traffic() {
            let remote = &mut self.record.totals.remote;
            remote.get_or_insert_default().add(&traffic);
        }
        let shortages = services.engine.take_shortages();
        self.record.totals.memory_shortages.extend(shortages);
        // However the flows ended, unless the device no longer answers.
        if let Ok(end) = Moment::now(services.engine)
            && !self.reruns.begun
        {
            let took = end.since(job.origin);
            self.record.totals.benchmark_total_ms = Some(self.kept.benchmark_ms + took);
            if let Some(segment) = self.record.segments.last_mut() {
                segment.benchmark_total_ms = Some(took);
            }
        }
        outcome
    }

    /// Reads the GPU once more, while the engine still holds its memory. Takes some milliseconds, so it is
    /// done outside of what is timed.
    pub(super) fn read_gpu(&mut self) {
        self.record.gpu = self.gpu.as_ref().map(GpuMeter::ended);
    }

    /// Saves the record as it is now.
    pub(super) fn save(&mut self) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        self.files.folder.save(&self.record)
    }

    /// Whether steps and workflows are printed: of many rounds, only the first of each mode.
    fn is_shown(&self) -> bool {
        self.rounds.as_ref().is_none_or(Rounds::is_first)
    }

    /// Prints an answer to stderr (`--show-output`). Every line is prefixed, so that none can be taken for
    /// a line of this program.
    fn show(&mut self, step: &StepRecord) {
        if self.config.presentation.show_output {
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
        self.config.presentation.show_prompt && self.is_shown()
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

    fn step_ended(&mut self, mut step: StepRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        if let Some(rounds) = &mut self.rounds {
            rounds.step(&mut step);
        }
        step.rerun = self.reruns.begun;
        let step = &step;
        // Where flows were run again, all is counted anew at the end.
        if !step.rerun {
            self.tally.step(step);
            self.tally.set_counts(&mut self.record.totals);
            self.gathered.add(step);
        }
        // Saved before it is printed, so that the file has whatever is on the screen.
        self.files.folder.add_step(step)?;
        let is_recorded = is_recorded(step);
        if let Some(recording) = self.files.recording.as_mut().filter(|_| is_recorded) {
            recording.add(step)?;
        }
        if self.is_shown() {
            self.console.result(&timing::target(step))?;
            self.show(step);
        }
        if step.kind.is_none() && !step.rerun {
            self.console.step_ended(step.tokens.decode);
        }
        if self.watched.elapsed() >= WATCHED {
            self.watched = Timer::start();
            let sampler = self.sampler.as_ref();
            self.record.validity = sampler.map(|sampler| sampler.record(false));
        }
        self.files.folder.save_now_and_then(&self.record)
    }

    fn trial_ended(&mut self, trial: &TrialRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        // The rounds of `both` repeat the same trials.
        match self.rounds {
            None => self.files.evolution.trial(trial),
            Some(_) => Ok(()),
        }
    }

    fn trial_kept(&mut self, trial: &TrialRecord) -> Result<()> {
        self.files.evolution.trial_kept(trial)
    }

    fn generation_kept(&mut self, generation: &GenerationRecord) -> Result<()> {
        self.files.evolution.generation_kept(generation)
    }

    fn generation_ended(&mut self, generation: &GenerationRecord) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        if self.rounds.is_some() {
            return Ok(());
        }
        self.files.evolution.generation(generation)?;
        self.console.result(&timing::generation(generation))
    }

    fn workflow_ended(
        &mut self,
        mut workflow: WorkflowRecord,
        response: &Response,
        error: Option<&Error>,
    ) -> Result<()> {
        let _span = profile::span(Span::RecordIo);
        self.files.evolution.end(workflow.flow, error.is_none())?;
        // It may have its line from an earlier segment that was killed right after that.
        let rollouts = self.files.rollouts.as_mut();
        if let Some(rollouts) = rollouts.filter(|rollouts| !rollouts.has(workflow.flow)) {
            let tokens = workflow.tokens;
            let rollout = Rollout {
                rollout: rollouts.place(workflow.flow),
                response: response.text.clone(),
                usage: Usage {
                    prompt_tokens: tokens.prompt,
                    completion_tokens: tokens.decode,
                    total_tokens: tokens.prompt + tokens.decode,
                    cached_tokens: tokens.reused,
                },
                reward: response.reward,
                reward_floor: response.reward_floor,
                extracted_answer: response.answer.clone(),
                outcome: response.outcome.clone(),
                error: error.map(Error::chain),
            };
            rollouts.add(workflow.flow, &rollout)?;
        }
        if let Some(rounds) = &mut self.rounds {
            rounds.workflow(&mut workflow);
        }
        workflow.rerun = self.reruns.begun;
        if workflow.rerun {
            let line = timing::workflow(&workflow);
            self.replace(workflow);
            return self.console.result(&line);
        }
        self.tally.workflow(&workflow);
        self.tally.set_counts(&mut self.record.totals);
        if let Some(error) = error {
            let failures = self.record.totals.workflows_failed;
            if failures <= EXPLAINED_FAILURES {
                self.console.warning(&error.report());
            } else if failures == EXPLAINED_FAILURES + 1 {
                self.console
                    .warning("further failures are in the record only");
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

/// Whether a step belongs to a recording. The other rounds of `MODE=both` generate the same texts, as do flows that
/// are run again.
pub(super) fn is_recorded(step: &StepRecord) -> bool {
    step.round.is_none_or(|round| round == 1)
        && step.mode.as_deref() != Some("reuse")
        && !step.rerun
}
