//! `flowbench run`: expand, load the engine once, run the flows, time everything.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crate::config::{Mode, RunConfig};
use crate::engine::{Engine, LocalEngine, LocalOptions, ModelFile, Script, ScriptedEngine};
use crate::environment;
use crate::error::{Error, Exit, Result};
use crate::flow::{self, ExpandRequest, Expansion, Flow};
use crate::record::{
    Energy, ExpansionRecord, RECORD_SCHEMA, RunRecord, Status, StepRecord, Totals, WorkflowRecord,
};
use crate::report::folder::RunFolder;
use crate::report::{Console, timing};
use crate::stopwatch::{Moment, NoFence};
use crate::units::Millis;
use crate::workflow::{self, Observer, Outcome, RunnerOptions};

use super::expand::WaitNotice;

/// How many failed workflows are explained on the terminal; the record explains all.
const EXPLAINED_FAILURES: usize = 3;

/// Runs the job. Returns the exit code of a run that came to its end, in order or interrupted.
///
/// # Errors
/// What kept the run from its end; what was measured before is in the run's folder.
pub(crate) fn run(
    config: &RunConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    if config.mode != Mode::Scripted {
        LocalEngine::preflight(config.device)?;
    }
    // `git` takes some milliseconds, beside which the expansion goes on.
    let root = config.layout.root.clone();
    let environment = std::thread::spawn(move || environment::capture(&root));

    let (expansion, expansion_record) = expand(config, console, interrupted)?;
    let (folder, run_id) = RunFolder::create(&config.out, &run_name(config.mode))?;
    let mut recorder = Recorder {
        console,
        config,
        folder,
        failures: 0,
        record: RunRecord {
            schema: RECORD_SCHEMA,
            run_id,
            started_at: jiff::Timestamp::now().to_string(),
            status: Status::Running,
            error: None,
            settings: config.to_settings(),
            environment: environment.join().unwrap_or_default(),
            expansion: expansion_record,
            engine: serde_json::Value::Null,
            engine_init_ms: None,
            engine_starts: 0,
            workflows: Vec::new(),
            totals: Totals::default(),
        },
    };
    let flows = &expansion.flows;
    let script = expansion.template_file.with_extension("script.jsonl");
    let prepared = match Prepared::new(config, script, recorder.console, interrupted) {
        Ok(prepared) => prepared,
        // Nothing was measured: the folder would only be in the way.
        Err(error) => {
            recorder.folder.discard();
            return Err(error);
        }
    };
    recorder.folder.save(&recorder.record)?;

    let origin = Moment::now(&NoFence)?;
    let result = if config.engine_per_workflow {
        recorder.run_with_an_engine_each(&prepared, flows, origin, interrupted)
    } else {
        recorder.run_with_one_engine(&prepared, flows, origin, interrupted)
    };
    recorder.close(result, flows.len())
}

/// Expands the flows and prints what came of it.
fn expand(
    config: &RunConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<(Expansion, ExpansionRecord)> {
    let start = Moment::now(&NoFence)?;
    let expansion = {
        let wait = WaitNotice::new(console, interrupted);
        flow::expand(&ExpandRequest {
            layout: &config.layout,
            template: &config.template,
            num_flows: config.num_flows,
            use_cache: !config.engine_per_workflow,
            load: true,
            on_wait: &|waited| wait.tell(waited),
        })?
    };
    let end = Moment::now(&NoFence)?;
    let record = super::expand::record(&expansion, end.since(start));
    super::expand::print(&expansion, &record, console)?;
    Ok((expansion, record))
}

/// UTC start time and mode: sorts by time, and reads well in a listing.
fn run_name(mode: Mode) -> String {
    let now = jiff::Timestamp::now();
    format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), mode.as_str())
}

/// All that an engine is started from: found, fetched and read before the clock runs.
enum Prepared {
    Local(ModelFile, LocalOptions),
    Scripted(Script, bool),
}

impl Prepared {
    /// `script` is the script beside the template, for a run that names none.
    fn new(
        config: &RunConfig,
        script: PathBuf,
        console: &mut Console,
        interrupted: &AtomicBool,
    ) -> Result<Self> {
        match config.mode {
            Mode::Standalone | Mode::Reuse => {
                let options = LocalOptions {
                    device: config.device,
                    backend: config.backend,
                    max_sequences: config.concurrency,
                    reuse: config.mode == Mode::Reuse,
                    kv_bytes: config.kv_cache_bytes,
                };
                let model = super::model::locate(&config.model, console, interrupted)?;
                console.progress(&format!("Model {}", model.path.display()));
                Ok(Self::Local(model, options))
            }
            Mode::Scripted => {
                let path = config.script.clone().unwrap_or(script);
                Ok(Self::Scripted(Script::read(&path)?, config.script_latency))
            }
        }
    }

    fn start(&self) -> Result<Box<dyn Engine>> {
        match self {
            Self::Local(model, options) => Ok(Box::new(LocalEngine::load(model, options)?)),
            Self::Scripted(script, timed) => {
                Ok(Box::new(ScriptedEngine::new(script.clone(), *timed)))
            }
        }
    }
}

/// Prints and keeps what is measured, as soon as it is.
struct Recorder<'a> {
    console: &'a mut Console,
    config: &'a RunConfig,
    folder: RunFolder,
    failures: usize,
    record: RunRecord,
}

impl Recorder<'_> {
    fn run_with_one_engine(
        &mut self,
        prepared: &Prepared,
        flows: &[Flow],
        origin: Moment,
        interrupted: &AtomicBool,
    ) -> Result<Outcome> {
        let mut engine = self.start_engine(prepared, origin)?;
        self.run_flows(engine.as_mut(), flows, origin, interrupted)
    }

    /// The slow way, for comparison: each workflow expands the flows anew and starts an engine.
    fn run_with_an_engine_each(
        &mut self,
        prepared: &Prepared,
        flows: &[Flow],
        origin: Moment,
        interrupted: &AtomicBool,
    ) -> Result<Outcome> {
        for flow in flows {
            flow::expand(&ExpandRequest {
                layout: &self.config.layout,
                template: &self.config.template,
                num_flows: self.config.num_flows,
                use_cache: false,
                load: false,
                on_wait: &|_| Ok(()),
            })?;
            let start = Moment::now(&NoFence)?;
            let mut engine = self.start_engine(prepared, start)?;
            let flows = std::slice::from_ref(flow);
            if self.run_flows(engine.as_mut(), flows, origin, interrupted)? == Outcome::Interrupted
            {
                return Ok(Outcome::Interrupted);
            }
        }
        Ok(Outcome::Ended)
    }

    /// Starts an engine; the time since `start`, until its device is idle, is its init.
    fn start_engine(&mut self, prepared: &Prepared, start: Moment) -> Result<Box<dyn Engine>> {
        let engine = prepared
            .start()
            .map_err(|error| error.context("failed to start the engine"))?;
        let init = Moment::now(engine.as_ref())?.since(start);
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

    fn run_flows(
        &mut self,
        engine: &mut dyn Engine,
        flows: &[Flow],
        origin: Moment,
        interrupted: &AtomicBool,
    ) -> Result<Outcome> {
        let options = RunnerOptions {
            concurrency: self.config.concurrency,
            max_tokens: self.config.max_tokens,
            ignore_eos: self.config.ignore_eos,
            seed: self.config.seed,
        };
        let outcome = workflow::run(engine, flows, &options, origin, interrupted, self);
        // The total is taken however the flows ended, as far as the device still answers.
        if let Ok(end) = Moment::now(engine) {
            self.record.totals.benchmark_total_ms = Some(end.since(origin));
        }
        outcome
    }

    /// Prints the totals, saves the record and decides on the exit code.
    fn close(mut self, result: Result<Outcome>, num_flows: usize) -> Result<Exit> {
        let totals = &mut self.record.totals;
        let done: Vec<Millis> = (self.record.workflows.iter())
            .filter(|workflow| workflow.error.is_none())
            .map(|workflow| workflow.workflow_ms)
            .collect();
        totals.avg_workflow_ms = (!done.is_empty())
            .then(|| Millis(done.iter().copied().sum::<Millis>().0 / done.len() as f64));
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
        let (status, error) = match result {
            Ok(Outcome::Ended) if failed == 0 => (Status::Complete, None),
            Ok(Outcome::Ended) => {
                let exit = if steps_done == 0 {
                    Exit::NothingRan
                } else {
                    Exit::FlowFailed
                };
                let message = format!("{failed} of {num_flows} workflows failed");
                (Status::Failed, Some(Error::new(exit, message)))
            }
            Ok(Outcome::Interrupted) => {
                let message = format!("interrupted after {} of {num_flows} workflows", done.len());
                (
                    Status::Incomplete,
                    Some(Error::new(Exit::Incomplete, message)),
                )
            }
            // No engine, no measurement: the folder would only be in the way.
            Err(error) if self.record.engine_starts == 0 => {
                self.folder.discard();
                return Err(error);
            }
            Err(error) => (Status::Incomplete, Some(error)),
        };
        self.record.status = status;
        self.record.error = error.as_ref().map(Error::chain);

        // Saved before it is printed: a closed pipe must not cost the record.
        let saved = self.folder.save(&self.record);
        let folder = self.folder.path().display().to_string();
        if self.record.totals.benchmark_total_ms.is_some() {
            for line in timing::totals(&self.record.totals, num_flows) {
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
        let totals = &mut self.record.totals;
        totals.steps_done += 1;
        totals.prompt_tokens += step.prompt_tokens;
        totals.prefill_tokens += step.prefill_tokens;
        totals.reused_tokens += step.reused_tokens;
        totals.decode_tokens += step.decode_tokens;
        // Kept before it is shown: what is on the screen is always in the file.
        self.folder.add_step(step)?;
        self.console.result(&timing::target(step))?;
        self.show(step);
        self.folder.save_now_and_then(&self.record)
    }

    fn workflow_ended(&mut self, workflow: &WorkflowRecord, error: Option<&Error>) -> Result<()> {
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
        self.record.workflows.push(workflow.clone());
        self.console.result(&timing::workflow(workflow))
    }
}
