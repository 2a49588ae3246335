//! `--repetitions`: the job several times on one engine, each a run of its own with its own folder. Nothing changes
//! between them but the order of the flows, so that they show how much runs differ by themselves.

use std::sync::atomic::{AtomicBool, Ordering};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::prepared::Prepared;
use super::recorder::Recorder;
use super::resume::Kept;
use super::services::RunServices;
use super::{Job, answers, expansion, run_files};
use crate::config::{Mode, RunConfig};
use crate::engine::{Engine, GpuMeter};
use crate::environment::LoadMeter;
use crate::error::{Error, Exit, Result};
use crate::flow::{Expansion, Flow};
use crate::metrics::compare::{Selected, noise_of, of_run};
use crate::record::RunRecord;
use crate::record::compare::MeasuredRun;
use crate::record::repetition::Repetition;
use crate::report::{Console, timing, verdicts};
use crate::results::{RunFolder, run_name};
use crate::statistics::shuffle;
use crate::stopwatch::{Moment, NoFence};
use crate::workflow;

/// The threshold for which the smallest visible change is told.
const THRESHOLD: f64 = 0.03;

/// What repetitions share.
pub(super) struct Repeated<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) expansion: &'a Expansion,
    pub(super) concurrency: usize,
    pub(super) interrupted: &'a AtomicBool,
    /// Makes the record of a run that starts now, without its name.
    pub(super) new_record: &'a dyn Fn() -> RunRecord,
}

/// The engine, kept from one repetition to the next.
struct Running {
    prepared: Prepared,
    engine: Option<Box<dyn Engine>>,
    info: serde_json::Value,
    starts: usize,
}

/// Runs all repetitions, and prints how much they differ.
///
/// # Errors
/// Why the first one that did not end well did not. One with failed flows does not stop the others.
pub(super) fn repeat(repeated: &Repeated, console: &mut Console) -> Result<Exit> {
    let of = repeated.config.presentation.repetitions;
    let mut calibration: Option<String> = None;
    let mut running: Option<Running> = None;
    let mut runs: Vec<MeasuredRun> = Vec::new();
    let mut failed: Option<Error> = None;
    for number in 1..=of {
        if !is_wanted(repeated) {
            break;
        }
        let name = run_name(repeated.config.job.mode.as_str());
        let (folder, run_id) = RunFolder::create(&repeated.config.presentation.out, &name)?;
        let calibration = calibration.get_or_insert_with(|| run_id.clone());
        let record = RunRecord {
            run_id,
            repetition: Some(Repetition {
                number,
                of,
                calibration: calibration.clone(),
            }),
            ..(repeated.new_record)()
        };
        console.progress(&format!("Repetition {number} of {of}"));
        let files = run_files(repeated.config, folder, &record.run_id, None);
        let config = repeated.config;
        let recorder = Recorder::new(
            &mut *console,
            config,
            repeated.concurrency,
            record,
            files,
            Kept::default(),
        );
        let flows = shuffled(repeated.expansion.flows.clone(), config.job.seed, number);
        let mut measured = None;
        let ended = one(repeated, recorder, &flows, &mut running, &mut measured);
        runs.extend(measured);
        if let Err(error) = ended {
            let stops = !matches!(error.exit(), Exit::FlowFailed | Exit::Gate | Exit::Invalid);
            failed.get_or_insert(error);
            if stops {
                break;
            }
        }
        if repeated.interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    for line in noise(&runs) {
        console.result(&line)?;
    }
    failed.map_or(Ok(Exit::Done), Err)
}

/// Waits for a turn, if the run was told to: a line on stdin, until it is closed.
fn is_wanted(repeated: &Repeated) -> bool {
    if !repeated.config.presentation.by_turns {
        return true;
    }
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .is_ok_and(|read| read > 0)
}

/// One repetition, from its services to its end. Sets `measured` to what it measured.
fn one(
    repeated: &Repeated,
    mut recorder: Recorder,
    flows: &[Flow],
    running: &mut Option<Running>,
    measured: &mut Option<MeasuredRun>,
) -> Result<Exit> {
    let config = repeated.config;
    let ready = RunServices::start(config, flows, recorder.console).and_then(|services| {
        let running = kept(repeated, flows, running, recorder.console)?;
        Ok((services, running))
    });
    let ((mut services, pool_init), running) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            recorder.discard();
            return Err(error);
        }
    };
    recorder.record.evaluator = services.evaluator_record();
    if let Some(init) = pool_init {
        recorder.record.pool_init_ms = Some(init);
        recorder.console.result(&timing::pool_init(init))?;
    }
    recorder.save()?;
    let answers: usize = flows.iter().map(answers).sum();
    recorder.console.plan(flows.len(), answers);
    let Running {
        prepared,
        engine,
        info,
        starts,
    } = running;
    let job = |origin: Moment| Job {
        prepared,
        flows,
        origin,
        interrupted: repeated.interrupted,
    };
    recorder.load = LoadMeter::start();
    services.accounts.begin();
    let began = Moment::now(&NoFence)?;
    let ready = match engine.as_mut() {
        None => match recorder.start_engine(&job(began), began) {
            Ok(started) => {
                *info = recorder.record.engine.clone();
                *starts = recorder.record.engine_starts;
                Ok(engine.insert(started))
            }
            Err(error) => Err(error),
        },
        Some(kept) => {
            recorder.record.engine = info.clone();
            recorder.record.engine_starts = *starts;
            recorder.has_engine = true;
            recorder.gpu = GpuMeter::start();
            recorder.record.gpu = recorder.gpu.as_ref().map(GpuMeter::begun);
            kept.restart(config.job.mode == Mode::Reuse).map(|()| kept)
        }
    };
    let result = ready.and_then(|engine| {
        // The start of the engine is not repeated, so that it is in no total.
        let job = job(Moment::now(engine.as_ref())?);
        recorder.watch(job.origin);
        let concurrency = recorder.concurrency;
        let outcome = recorder.run_flows(engine.as_mut(), &mut services, &job, flows, concurrency);
        recorder.read_gpu();
        outcome
    });
    recorder.record.totals.usage = services.accounts.usage().to_vec();
    recorder.record.totals.verification = services.verification();
    expansion::record_prefix(repeated.expansion, &mut recorder.record.expansion);
    recorder.finish(result, flows.len(), measured)
}

/// What is kept from one repetition to the next, prepared by the first.
fn kept<'a>(
    repeated: &Repeated,
    flows: &[Flow],
    running: &'a mut Option<Running>,
    console: &mut Console,
) -> Result<&'a mut Running> {
    if let Some(running) = running {
        return Ok(running);
    }
    let parallel = flows.iter().map(workflow::max_parallel_requests).max();
    let max_requests = repeated.concurrency.saturating_mul(parallel.unwrap_or(1));
    let script = repeated.expansion.script.clone();
    let (config, interrupted) = (repeated.config, repeated.interrupted);
    let prepared = Prepared::new(&config.engine(), max_requests, script, console, interrupted)?;
    Ok(running.insert(Running {
        prepared,
        engine: None,
        info: serde_json::Value::Null,
        starts: 0,
    }))
}

/// The flows in another order for each repetition, the same for the same seed.
fn shuffled(mut flows: Vec<Flow>, seed: u64, number: usize) -> Vec<Flow> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number as u64);
    shuffle(&mut flows, &mut random);
    flows
}

/// `[NOISE] …` for the metrics that are compared most.
fn noise(runs: &[MeasuredRun]) -> Vec<String> {
    let means: Vec<Vec<(Selected, f64)>> = (runs.iter())
        .map(|run| {
            let metrics = of_run(run).into_iter();
            metrics
                .map(|metric| (metric.selected, metric.mean))
                .collect()
        })
        .collect();
    let mut lines = Vec::new();
    for name in ["workflow_ms", "ttft_ms", "tpot_ms", "latency_ms"] {
        let is_wanted =
            |selected: &Selected| selected.quantity.name() == name && selected.step.is_none();
        let of_run = |metrics: &Vec<(Selected, f64)>| {
            let found = metrics.iter().find(|(selected, _)| is_wanted(selected))?;
            (found.1 > 0.0).then(|| found.1.ln())
        };
        let logs: Option<Vec<f64>> = means.iter().map(of_run).collect();
        let Some(logs) = logs else { continue };
        if let Some((deviation, visible)) = noise_of(&logs, THRESHOLD) {
            lines.push(verdicts::noise_line(name, logs.len(), deviation, visible));
        }
    }
    lines
}

/// Refuses settings that one engine cannot repeat, or whose files the repetitions would share.
///
/// # Errors
/// Exit code 2.
pub(super) fn check(config: &RunConfig) -> Result<()> {
    let shown = &config.presentation;
    let obstacle = [
        (config.job.mode == Mode::Both, "MODE=both has ROUNDS"),
        (
            config.job.engine_per_workflow,
            "--engine-per-workflow starts more than one engine",
        ),
        (config.rollouts.is_some(), "--input has --repeats"),
        (shown.record.is_some(), "--record has one file"),
        (shown.profiling.profile, "a profile is of one run"),
        (
            config.job.discard_tainted,
            "disturbed runs can be left out, so --discard-tainted is not needed",
        ),
        (config.resume.is_some(), "--resume goes on with one run"),
    ];
    match obstacle.iter().find(|(exists, _)| *exists) {
        None => Ok(()),
        Some((_, why)) => {
            Err(Error::usage(format!("--repetitions is set, but {why}")).hint("set one of the two"))
        }
    }
}
