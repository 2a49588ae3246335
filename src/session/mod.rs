//! A run from its settings to its record.
//!
//! ```text
//! run ─► expansion (flows, through the cache) ─► services (evaluator, verifier, accounts)
//!          └─► prepared (model, script or server) ─► engine
//!                 └─► rounds / one engine / an engine per workflow ─► recorder ─► finish, verdict
//!                       (sampler: watches the machine meanwhile)      rerun, validity
//! resume (an earlier run that goes on): locked first, checked after the expansion, kept by the recorder
//! ```

mod ab;
mod comparison;
pub(crate) mod expansion;
mod finish;
mod judged;
pub(crate) mod model;
mod prepared;
mod recorder;
mod repetitions;
mod replaced;
mod rerun;
mod resume;
mod rounds;
mod sampler;
mod serve;
mod services;
mod trend;
mod turns;
mod validity;
mod verdict;
mod what_if;

pub(crate) use finish::save_before_exit;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{Concurrency, Mode, RunConfig};
use crate::engine::LocalEngine;
use crate::environment::{self, LoadMeter};
use crate::error::{Error, Exit, Result};
use crate::flow::{self, Expansion, Flow, Step};
use crate::live;
use crate::profile::{self, Count, Span};
use crate::record::evaluation::VerificationRecord;
use crate::record::segment::Segment;
use crate::record::{Environment, ExpansionRecord, RECORD_SCHEMA, RunRecord, Status, Totals};
use crate::report::{Console, timing};
use crate::results::{
    EvolutionFolder, Existing, ProfileFiles, RolloutFile, RunFolder, outputs, run_name,
};
use crate::stopwatch::{Moment, NoFence};
use crate::units::plural;
use crate::workflow::{self, Outcome};

use prepared::Prepared;
use recorder::{Recorder, RunFiles};
use resume::{Earlier, Kept};
use services::RunServices;

pub(crate) use ab::{AbRequest, ab};
pub(crate) use comparison::{Request as CompareRequest, compared};
pub(crate) use judged::failure;
pub(crate) use serve::serve;
pub(crate) use trend::{TrendRequest, trend};
pub(crate) use verdict::verdict;
pub(crate) use what_if::what_if;

/// Runs the job, and returns the exit code of a run that ended in order.
///
/// # Errors
/// Why the run did not end well. What was measured until then is in the run's folder.
pub(crate) fn run(
    config: &RunConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    if config.presentation.profiling.profile {
        profile::enable();
    }
    if let Some(address) = config.presentation.profiling.stats_addr {
        let bound = live::serve(address)?;
        console.progress(&format!("Live figures at http://{bound}/"));
    }
    let _span = profile::span(Span::Run);
    if config.is_local() {
        LocalEngine::preflight(config.job.device, config.job.backend)?;
    }
    if config.presentation.repetitions > 1 || config.presentation.by_turns {
        repetitions::check(config)?;
    }
    let earlier = resume::open(config)?;
    // `git` takes some milliseconds; the expansion runs at the same time.
    let root = config.machine.layout.root.clone();
    let environment = std::thread::spawn(move || environment::capture(&root));

    let (mut expansion, expansion_record) = expansion::expand(config, console, interrupted)?;
    let concurrency = config
        .job
        .concurrency
        .resolve(config.job.mode, expansion.num_flows);
    let mut resolved = config.clone();
    resolved.job.num_flows = Some(expansion.num_flows);
    resolved.job.concurrency = Concurrency::Fixed(concurrency);
    let config = &resolved;
    keep_shard(config, &mut expansion)?;
    outputs::check(config, &expansion)?;
    rerun::check(config, &expansion.flows)?;
    let environment = {
        let _span = profile::span(Span::Environment);
        environment.join().unwrap_or_default()
    };
    if config.presentation.repetitions > 1 || config.presentation.by_turns {
        let repeated = repetitions::Repeated {
            config,
            expansion: &expansion,
            concurrency,
            interrupted,
            new_record: &|| new_record(config, environment.clone(), expansion_record.clone()),
        };
        return repetitions::repeat(&repeated, console);
    }
    let record = new_record(config, environment, expansion_record);
    let earlier = earlier
        .map(|earlier| Earlier::check(earlier, &record, &expansion.flows))
        .transpose()?;
    if let Some(earlier) = &earlier
        && let Some(exit) = earlier.nothing_to_do(console)?
    {
        return Ok(exit);
    }
    let rollouts = open_rollouts(config, &expansion, earlier.as_ref())?;
    let (folder, record, kept) = match earlier {
        Some(earlier) => {
            let going_on = earlier.go_on(&expansion.flows, rollouts.as_ref())?;
            let (folder, _, kept) = &going_on;
            console.progress(&format!(
                "Resuming {}: {} and {} are kept",
                folder.path().display(),
                plural(kept.workflows.len(), "workflow"),
                plural(kept.steps.len(), "step")
            ));
            going_on
        }
        None => {
            let name = run_name(config.job.mode.as_str());
            let (folder, run_id) = RunFolder::create(&config.presentation.out, &name)?;
            (folder, RunRecord { run_id, ..record }, Kept::default())
        }
    };
    let files = run_files(config, folder, &record.run_id, rollouts);
    let recorder = Recorder::new(console, config, concurrency, record, files, kept);
    let remaining = recorder.remaining(&expansion.flows);
    let flows = remaining.as_deref().unwrap_or(&expansion.flows);
    match flows {
        [] => recorder.nothing_to_run(&expansion),
        flows => run_flows(config, recorder, &expansion, flows, interrupted),
    }
}

/// The files of a run in `folder`.
fn run_files(
    config: &RunConfig,
    folder: RunFolder,
    run_id: &str,
    rollouts: Option<RolloutFile>,
) -> RunFiles {
    let profiling = &config.presentation.profiling;
    RunFiles {
        evolution: EvolutionFolder::new(folder.path(), evolution_config(config)),
        profile: ProfileFiles::new(profiling, folder.path(), run_id),
        folder,
        rollouts,
        recording: None,
    }
}

/// The record of a run that starts now, without its name.
fn new_record(
    config: &RunConfig,
    environment: Environment,
    expansion: ExpansionRecord,
) -> RunRecord {
    let started_at = jiff::Timestamp::now().to_string();
    RunRecord {
        schema: RECORD_SCHEMA,
        run_id: String::new(),
        started_at: started_at.clone(),
        status: Status::Running,
        error: None,
        settings: config.to_settings(),
        environment,
        expansion,
        engine: serde_json::Value::Null,
        engine_init_ms: None,
        pool_init_ms: None,
        evaluator: None,
        gpu: None,
        validity: None,
        engine_starts: 0,
        workflows: Vec::new(),
        discarded: Vec::new(),
        totals: Totals::default(),
        segments: vec![Segment::starting(started_at)],
        warnings: Vec::new(),
        comparison: None,
        rollouts: None,
        profile: None,
        repetition: None,
        shard: config.shard,
        shards: Vec::new(),
    }
}

/// Prepares services and engine, runs `flows`, and ends the run.
fn run_flows(
    config: &RunConfig,
    mut recorder: Recorder,
    expansion: &Expansion,
    flows: &[Flow],
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let script = expansion.script.clone();
    let parallel = flows.iter().map(workflow::max_parallel_requests).max();
    let max_requests = recorder.concurrency.saturating_mul(parallel.unwrap_or(1));
    let ready = RunServices::start(config, flows, recorder.console).and_then(|ready| {
        let console = &mut *recorder.console;
        let prepared = Prepared::new(&config.engine(), max_requests, script, console, interrupted)?;
        if let Prepared::Local(model, _) = &prepared {
            outputs::check_model(config, &model.path)?;
        }
        if interrupted.load(Ordering::Relaxed) {
            let message = "interrupted before the engine was started";
            return Err(Error::new(Exit::Incomplete, message));
        }
        recorder.begin_recording()?;
        Ok((ready, prepared))
    });
    let ((mut services, pool_init), prepared) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            recorder.discard();
            return Err(error);
        }
    };
    recorder.record.evaluator = services.evaluator_record();
    if let Some(init) = pool_init {
        let before = recorder.record.pool_init_ms.unwrap_or_default();
        recorder.record.pool_init_ms = Some(before + init);
        recorder.console.result(&timing::pool_init(init))?;
    }
    // A resumed run has its record, which stays as it is until its engine has been checked.
    if recorder.kept.segment.is_none() {
        recorder.save()?;
    }

    let passes = match config.job.mode {
        Mode::Both => (2 * config.job.rounds).saturating_sub(recorder.kept.rounds.len()),
        _ => 1,
    };
    let left = passes * flows.len();
    let num_workflows = recorder.kept.workflows.len() + left;
    let answers: usize = flows.iter().map(answers).sum();
    recorder.console.plan(left, passes * answers);
    profile::count(Count::Flows, left);
    // Takes long enough to be kept out of the benchmark: it reads the list of processes.
    recorder.load = LoadMeter::start();
    services.accounts.begin();
    let job = Job {
        prepared: &prepared,
        flows,
        origin: Moment::now(&NoFence)?,
        interrupted,
    };
    recorder.watch(job.origin);
    let result = if config.job.mode == Mode::Both {
        recorder.run_rounds(&job, &mut services)
    } else if config.job.engine_per_workflow {
        recorder.run_with_an_engine_each(&job, &mut services)
    } else {
        recorder.run_with_one_engine(&job, &mut services)
    };
    recorder.record.totals.usage = services.accounts.usage().to_vec();
    let before = recorder.kept.verification.clone();
    let verification = before.into_iter().chain(services.verification());
    recorder.record.totals.verification = VerificationRecord::sum(verification);
    expansion::record_prefix(expansion, &mut recorder.record.expansion);
    recorder.finish(result, num_workflows, &mut None)
}

/// What is run: the engine's source, the flows, the start of the benchmark, and the interrupt flag.
struct Job<'a> {
    prepared: &'a Prepared,
    flows: &'a [Flow],
    origin: Moment,
    interrupted: &'a AtomicBool,
}

impl Recorder<'_> {
    fn run_with_one_engine(&mut self, job: &Job, services: &mut RunServices) -> Result<Outcome> {
        let mut engine = self.start_engine(job, job.origin)?;
        let concurrency = self.concurrency;
        let mut outcome = self.run_flows(engine.as_mut(), services, job, job.flows, concurrency);
        if matches!(outcome, Ok(Outcome::Ended)) {
            let again = self.tainted_flows(job);
            if !again.is_empty() {
                let reruns = self.run_flows(engine.as_mut(), services, job, &again, concurrency);
                outcome = reruns.map(rerun::outcome_after);
            }
        }
        self.read_gpu();
        outcome
    }

    /// The slow way, for comparison: each workflow expands the flows anew and starts an engine.
    fn run_with_an_engine_each(
        &mut self,
        job: &Job,
        services: &mut RunServices,
    ) -> Result<Outcome> {
        let outcome = self.run_each(job, services, job.flows)?;
        if outcome != Outcome::Ended {
            return Ok(outcome);
        }
        let again = self.tainted_flows(job);
        (self.run_each(job, services, &again)).map(rerun::outcome_after)
    }

    fn run_each(
        &mut self,
        job: &Job,
        services: &mut RunServices,
        flows: &[Flow],
    ) -> Result<Outcome> {
        for flow in flows {
            let expansion = profile::span(Span::FlowExpansion);
            flow::expand(&flow::ExpandRequest {
                use_cache: false,
                load: false,
                ..expansion::request(self.config, &|_| Ok(()), &|| Ok(()))
            })?;
            drop(expansion);
            let start = Moment::now(&NoFence)?;
            let mut engine = self.start_engine(job, start)?;
            let flows = std::slice::from_ref(flow);
            let concurrency = self.concurrency;
            let outcome = self.run_flows(engine.as_mut(), services, job, flows, concurrency);
            self.read_gpu();
            match outcome? {
                Outcome::Ended => {}
                early => return Ok(early),
            }
        }
        Ok(Outcome::Ended)
    }
}

/// How many answers a flow asks the model for, judgements excluded.
fn answers(flow: &Flow) -> usize {
    let steps = flow.steps.iter().filter_map(Step::generate);
    steps.map(|generate| generate.samples).sum()
}

/// Drops the flows of other shards.
fn keep_shard(config: &RunConfig, expansion: &mut Expansion) -> Result<()> {
    let Some(shard) = config.shard else {
        return Ok(());
    };
    expansion.flows.retain(|flow| shard.holds(flow.flow));
    if !expansion.flows.is_empty() {
        return Ok(());
    }
    let flows = plural(expansion.num_flows, "flow");
    Err(Error::usage(format!("shard {shard} of {flows} holds none"))
        .hint("SHARD=i/n splits the flows into n parts; n is at most their number"))
}

fn open_rollouts(
    config: &RunConfig,
    expansion: &Expansion,
    earlier: Option<&Earlier>,
) -> Result<Option<RolloutFile>> {
    let Some(rollouts) = &config.rollouts else {
        return Ok(None);
    };
    let Some(output) = &rollouts.files.output else {
        return Ok(None);
    };
    let rows = expansion.input_rows();
    let failed = earlier.map(Earlier::failed);
    let existing = match &failed {
        Some(failed) => Existing::ResumeWith(failed),
        None if rollouts.files.resume => Existing::Resume,
        None => Existing::Refuse,
    };
    let (input, repeats) = (&rollouts.files.input, rollouts.rows.repeats);
    RolloutFile::open(input, rows, repeats, output, existing).map(Some)
}

/// `config.json` of an evolution.
fn evolution_config(config: &RunConfig) -> serde_json::Value {
    serde_json::json!({
        "template": config.machine.template,
        "params": config.job.params,
        "mode": config.job.mode,
        "model": config.machine.model_files.model,
        "seed": config.job.seed,
        "max_tokens": config.job.max_tokens,
    })
}
