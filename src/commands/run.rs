//! `flowbench run`: expand, load the engine once, run the flows, time everything.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{EndpointApi, Mode, RemoteConfig, RunConfig};
use crate::engine::{
    Engine, LocalEngine, LocalOptions, ModelFile, RemoteEngine, Script, ScriptedEngine,
    wait_until_ready,
};
use crate::environment::{self, LoadMeter};
use crate::error::{Error, Exit, Result};
use crate::flow::{self, ExpandRequest, Expansion, Flow, Input, Step};
use crate::live;
use crate::metrics::{Positions, Scores};
use crate::profile::{self, Count, Span};
use crate::record::{ExpansionRecord, RECORD_SCHEMA, RunRecord, Status, Totals};
use crate::report::evolution::EvolutionFolder;
use crate::report::folder::RunFolder;
use crate::report::rollouts::RolloutFile;
use crate::report::warnings::Gathered;
use crate::report::{Console, timing};
use crate::stopwatch::{Moment, NoFence};
use crate::units::plural;
use crate::workflow::{self, Outcome};

use super::expand::WaitNotice;
use super::outputs;
use super::profile::PendingProfile;
use super::recorder::Recorder;
use super::support::Support;

/// Runs the job. Returns the exit code of a run that came to its end, in order or interrupted.
///
/// # Errors
/// What kept the run from its end; what was measured before is in the run's folder.
pub(crate) fn run(
    config: &RunConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    if config.profile.profile {
        profile::enable();
    }
    if let Some(address) = config.profile.stats_addr {
        let bound = live::serve(address)?;
        console.progress(&format!("Live figures at http://{bound}/"));
    }
    let _span = profile::span(Span::Run);
    if config.is_local() {
        LocalEngine::preflight(config.device)?;
    }
    // `git` takes some milliseconds, beside which the expansion goes on.
    let root = config.layout.root.clone();
    let environment = std::thread::spawn(move || environment::capture(&root));

    let (mut expansion, expansion_record) = expand(config, console, interrupted)?;
    let config = &with_flows(config, expansion.num_flows);
    if let Some(shard) = config.shard {
        expansion.flows.retain(|flow| shard.holds(flow.flow));
        if expansion.flows.is_empty() {
            let flows = expansion.num_flows;
            return Err(Error::usage(format!(
                "shard {shard} of {} holds none",
                plural(flows, "flow")
            ))
            .hint("SHARD=i/n splits the flows into n parts; n is at most their number"));
        }
    }
    outputs::check(config, &expansion)?;
    let rollouts = rollouts(config, expansion.num_flows)?;
    let (folder, run_id) = RunFolder::create(&config.out, &run_name(config.mode))?;
    let pending = PendingProfile::new(&config.profile, folder.path(), &run_id);
    let environment = {
        let _span = profile::span(Span::Environment);
        environment.join().unwrap_or_default()
    };
    let evolution = EvolutionFolder::new(folder.path(), evolution_config(config));
    let mut recorder = Recorder {
        console,
        config,
        folder,
        rounds: None,
        positions: Positions::default(),
        scores: Scores::default(),
        gathered: Gathered::default(),
        load: LoadMeter::start(),
        evolution,
        rollouts,
        recording: None,
        record: RunRecord {
            schema: RECORD_SCHEMA,
            run_id,
            started_at: jiff::Timestamp::now().to_string(),
            status: Status::Running,
            error: None,
            settings: config.to_settings(),
            environment,
            expansion: expansion_record,
            engine: serde_json::Value::Null,
            engine_init_ms: None,
            pool_init_ms: None,
            evaluator: None,
            engine_starts: 0,
            workflows: Vec::new(),
            totals: Totals::default(),
            warnings: Vec::new(),
            comparison: None,
            rollouts: None,
            profile: None,
            shard: config.shard,
            shards: Vec::new(),
        },
        pending,
    };
    let script = expansion.script.clone();
    let left = recorder.left(&expansion.flows);
    let flows = left.as_deref().unwrap_or(&expansion.flows);
    if flows.is_empty() {
        return recorder.nothing_left();
    }
    let width = flows.iter().map(workflow::width).max().unwrap_or(1);
    let ready = Support::start(config, flows, recorder.console).and_then(|ready| {
        let prepared = Prepared::new(config, width, script, recorder.console, interrupted)?;
        if let Prepared::Local(model, _) = &prepared {
            outputs::check_model(config, model)?;
        }
        if interrupted.load(Ordering::Relaxed) {
            let message = "interrupted before the engine was started";
            return Err(Error::new(Exit::Incomplete, message));
        }
        recorder.begin_recording()?;
        Ok((ready, prepared))
    });
    let ((mut support, pool_init), prepared) = match ready {
        Ok(ready) => ready,
        // Nothing was measured: the folder would only be in the way.
        Err(error) => {
            recorder.discard();
            return Err(error);
        }
    };
    recorder.record.evaluator = support.evaluator_record();
    if let Some(init) = pool_init {
        recorder.record.pool_init_ms = Some(init);
        recorder.console.result(&timing::pool_init(init))?;
    }
    recorder.save()?;

    let passes = match config.mode {
        Mode::Both => 2 * config.rounds,
        _ => 1,
    };
    let num_workflows = passes * flows.len();
    let answers: usize = flows.iter().map(answers).sum();
    recorder.console.plan(num_workflows, passes * answers);
    profile::count(Count::Flows, num_workflows);
    // Before the deadline and the benchmark begin: it reads the list of processes.
    recorder.load = LoadMeter::start();
    support.accounts.begin();
    let job = Job {
        prepared: &prepared,
        flows,
        origin: Moment::now(&NoFence)?,
        interrupted,
    };
    let result = if config.mode == Mode::Both {
        recorder.run_rounds(&job, &mut support)
    } else if config.engine_per_workflow {
        recorder.run_with_an_engine_each(&job, &mut support)
    } else {
        recorder.run_with_one_engine(&job, &mut support)
    };
    recorder.record.totals.usage = support.accounts.usage().to_vec();
    recorder.record.totals.verification = support.verification();
    recorder.record.expansion.prefix = super::expand::prefix(&expansion);
    recorder.close(result, num_workflows)
}

/// How many answers a flow asks the model for, judgements left out.
fn answers(flow: &Flow) -> usize {
    let steps = flow.steps.iter().filter_map(Step::generate);
    steps.map(|generate| generate.samples).sum()
}

/// The settings, where the number of flows comes from the rows of an input.
fn with_flows(config: &RunConfig, num_flows: usize) -> RunConfig {
    let mut config = config.clone();
    config.num_flows = Some(num_flows);
    if config.all_in_flight {
        config.concurrency = RunConfig::in_flight(config.mode, num_flows);
    }
    config
}

/// The output of the rows, where there is one.
fn rollouts(config: &RunConfig, num_flows: usize) -> Result<Option<RolloutFile>> {
    let Some(rollouts) = &config.workflow.rollouts else {
        return Ok(None);
    };
    let Some(output) = &rollouts.output else {
        return Ok(None);
    };
    let input = (rollouts.input.as_path(), rollouts.limit, num_flows);
    RolloutFile::open(input, output, rollouts.repeats, rollouts.resume).map(Some)
}

/// What an evolution's `config.json` says.
fn evolution_config(config: &RunConfig) -> serde_json::Value {
    serde_json::json!({
        "template": config.template,
        "params": config.workflow.params,
        "mode": config.mode,
        "model": config.model.model,
        "seed": config.seed,
        "max_tokens": config.max_tokens,
    })
}

/// What is run: how an engine is started, which flows, from when, and who may stop it.
pub(super) struct Job<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) flows: &'a [Flow],
    pub(super) origin: Moment,
    pub(super) interrupted: &'a AtomicBool,
}

/// Expands the flows and prints what came of it.
fn expand(
    config: &RunConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<(Expansion, ExpansionRecord)> {
    let _span = profile::span(Span::FlowExpansion);
    let start = Moment::now(&NoFence)?;
    let expansion = {
        let wait = WaitNotice::new(console, interrupted);
        flow::expand(&ExpandRequest {
            layout: &config.layout,
            template: &config.template,
            num_flows: config.num_flows,
            params: &config.workflow.params,
            input: input(config),
            use_cache: !config.engine_per_workflow,
            load: true,
            on_wait: &|waited| wait.tell(waited),
            proceed: &|| wait.proceed(),
        })?
    };
    let end = Moment::now(&NoFence)?;
    let record = super::expand::record(&expansion, end.since(start));
    super::expand::print(&expansion, &record, console)?;
    Ok((expansion, record))
}

/// Rows in place of the template's suite, where they are given.
fn input(config: &RunConfig) -> Option<Input<'_>> {
    let rollouts = config.workflow.rollouts.as_ref()?;
    Some(Input {
        path: &rollouts.input,
        limit: rollouts.limit,
        repeats: rollouts.repeats,
    })
}

/// UTC start time and mode: sorts by time, and reads well in a listing.
fn run_name(mode: Mode) -> String {
    let now = jiff::Timestamp::now();
    format!("{}-{}", now.strftime("%Y%m%dT%H%M%SZ"), mode.as_str())
}

/// All that an engine is started from: found, fetched and read before the clock runs.
pub(super) enum Prepared {
    Local(ModelFile, LocalOptions),
    Scripted(Script, bool),
    Remote(Box<RemoteConfig>, Option<String>, usize),
}

impl Prepared {
    /// `script` is the template's own script, for a run that names none.
    /// `width` requests of a flow may be in flight at once.
    fn new(
        config: &RunConfig,
        width: usize,
        script: flow::ScriptFile,
        console: &mut Console,
        interrupted: &AtomicBool,
    ) -> Result<Self> {
        let _span = profile::span(Span::LocateModel);
        if config.is_scripted() {
            let script = match (&config.script, &script.text) {
                (Some(path), _) => Script::read(path)?,
                (None, Some(text)) => Script::parse(text, &script.path.display().to_string())?,
                (None, None) => Script::read(&script.path)?,
            };
            return Ok(Self::Scripted(script, config.script_latency));
        }
        if let Some(remote) = &config.remote {
            console.progress(&format!("Endpoint {}", remote.endpoint));
            if remote.endpoint_api == EndpointApi::Completions && remote.tokenizer.is_none() {
                console.warning(
                    "warning: without TOKENIZER, prompts are sent as text: where a message spells a \
                     special token, the server may take it for one",
                );
            }
            if let Some(proxy) = &remote.proxy {
                console.progress(&format!("Proxy {proxy} ({})", proxy.variable));
            }
            wait_until_ready(remote, interrupted, &mut |text| console.progress(text))?;
            let model = config.model.model.clone();
            return Ok(Self::Remote(
                Box::new(remote.clone()),
                model,
                config.concurrency.saturating_mul(width),
            ));
        }
        let options = LocalOptions {
            device: config.device,
            backend: config.backend,
            max_sequences: config.concurrency.saturating_mul(width),
            // In `both`, each round says anew.
            reuse: config.mode == Mode::Reuse,
            kv_bytes: config.kv_cache_bytes,
            context: config.context,
            speculate: config.speculate,
        };
        let model = super::model::locate(&config.model, console, interrupted)?;
        console.progress(&format!("Model {}", model.path.display()));
        Ok(Self::Local(model, options))
    }

    pub(super) fn start(&self) -> Result<Box<dyn Engine>> {
        match self {
            Self::Local(model, options) => Ok(Box::new(LocalEngine::load(model, options)?)),
            Self::Scripted(script, timed) => {
                Ok(Box::new(ScriptedEngine::new(script.clone(), *timed)))
            }
            Self::Remote(config, model, places) => {
                let engine = RemoteEngine::connect(config, model.as_deref(), *places)?;
                Ok(Box::new(engine))
            }
        }
    }
}

impl Recorder<'_> {
    fn run_with_one_engine(&mut self, job: &Job, support: &mut Support) -> Result<Outcome> {
        let mut engine = self.start_engine(job, job.origin)?;
        let concurrency = self.config.concurrency;
        self.run_flows(engine.as_mut(), support, job, job.flows, concurrency)
    }

    /// The slow way, for comparison: each workflow expands the flows anew and starts an engine.
    fn run_with_an_engine_each(&mut self, job: &Job, support: &mut Support) -> Result<Outcome> {
        for flow in job.flows {
            let expansion = profile::span(Span::FlowExpansion);
            flow::expand(&ExpandRequest {
                layout: &self.config.layout,
                template: &self.config.template,
                num_flows: self.config.num_flows,
                params: &self.config.workflow.params,
                input: input(self.config),
                use_cache: false,
                load: false,
                on_wait: &|_| Ok(()),
                proceed: &|| Ok(()),
            })?;
            drop(expansion);
            let start = Moment::now(&NoFence)?;
            let mut engine = self.start_engine(job, start)?;
            let flows = std::slice::from_ref(flow);
            let concurrency = self.config.concurrency;
            match self.run_flows(engine.as_mut(), support, job, flows, concurrency)? {
                Outcome::Ended => {}
                early => return Ok(early),
            }
        }
        Ok(Outcome::Ended)
    }
}
