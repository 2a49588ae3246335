//! `flowbench run`: expand, load the engine once, run the flows, time everything.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crate::config::{Mode, RunConfig};
use crate::engine::{Engine, LocalEngine, LocalOptions, ModelFile, Script, ScriptedEngine};
use crate::environment;
use crate::error::{Exit, Result};
use crate::flow::{self, ExpandRequest, Expansion, Flow};
use crate::live;
use crate::metrics::Positions;
use crate::profile::{self, Count, Span};
use crate::record::{ExpansionRecord, RECORD_SCHEMA, RunRecord, Status, Totals};
use crate::report::Console;
use crate::report::folder::RunFolder;
use crate::stopwatch::{Moment, NoFence};
use crate::workflow::Outcome;

use super::expand::WaitNotice;
use super::profile::PendingProfile;
use super::recorder::Recorder;

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
    if !config.is_scripted() {
        LocalEngine::preflight(config.device)?;
    }
    // `git` takes some milliseconds, beside which the expansion goes on.
    let root = config.layout.root.clone();
    let environment = std::thread::spawn(move || environment::capture(&root));

    let (expansion, expansion_record) = expand(config, console, interrupted)?;
    let (folder, run_id) = RunFolder::create(&config.out, &run_name(config.mode))?;
    let pending = PendingProfile::new(&config.profile, folder.path(), &run_id);
    let environment = {
        let _span = profile::span(Span::Environment);
        environment.join().unwrap_or_default()
    };
    let mut recorder = Recorder {
        console,
        config,
        folder,
        failures: 0,
        rounds: None,
        positions: Positions::default(),
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
            engine_starts: 0,
            workflows: Vec::new(),
            totals: Totals::default(),
            comparison: None,
            profile: None,
        },
        pending,
    };
    let flows = &expansion.flows;
    let script = expansion.template_file.with_extension("script.jsonl");
    let prepared = match Prepared::new(config, script, recorder.console, interrupted) {
        Ok(prepared) => prepared,
        // Nothing was measured: the folder would only be in the way.
        Err(error) => {
            recorder.discard();
            return Err(error);
        }
    };
    recorder.save()?;

    let num_workflows = match config.mode {
        Mode::Both => 2 * config.rounds * flows.len(),
        _ => flows.len(),
    };
    profile::count(Count::Flows, num_workflows);
    let origin = Moment::now(&NoFence)?;
    let result = if config.mode == Mode::Both {
        recorder.run_rounds(&prepared, flows, origin, interrupted)
    } else if config.engine_per_workflow {
        recorder.run_with_an_engine_each(&prepared, flows, origin, interrupted)
    } else {
        recorder.run_with_one_engine(&prepared, flows, origin, interrupted)
    };
    recorder.record.expansion.prefix = super::expand::prefix(&expansion);
    recorder.close(result, num_workflows)
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
pub(super) enum Prepared {
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
        let _span = profile::span(Span::LocateModel);
        if config.is_scripted() {
            let path = config.script.clone().unwrap_or(script);
            return Ok(Self::Scripted(Script::read(&path)?, config.script_latency));
        }
        let options = LocalOptions {
            device: config.device,
            backend: config.backend,
            max_sequences: config.concurrency,
            // In `both`, each round says anew.
            reuse: config.mode == Mode::Reuse,
            kv_bytes: config.kv_cache_bytes,
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
        }
    }
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
        self.run_flows(
            engine.as_mut(),
            flows,
            self.config.concurrency,
            origin,
            interrupted,
        )
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
            let expansion = profile::span(Span::FlowExpansion);
            flow::expand(&ExpandRequest {
                layout: &self.config.layout,
                template: &self.config.template,
                num_flows: self.config.num_flows,
                use_cache: false,
                load: false,
                on_wait: &|_| Ok(()),
            })?;
            drop(expansion);
            let start = Moment::now(&NoFence)?;
            let mut engine = self.start_engine(prepared, start)?;
            let flows = std::slice::from_ref(flow);
            if self.run_flows(
                engine.as_mut(),
                flows,
                self.config.concurrency,
                origin,
                interrupted,
            )? == Outcome::Interrupted
            {
                return Ok(Outcome::Interrupted);
            }
        }
        Ok(Outcome::Ended)
    }
}
