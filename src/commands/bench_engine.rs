//! `flowbench bench-engine`: speed of prefill and decode, and how far it is from the machine's limits.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{BenchConfig, BenchFormat};
use crate::engine::{BenchModel, Engine, LocalEngine, LocalOptions};
use crate::environment;
use crate::error::{Error, Exit, Result};
use crate::record::bench::{BENCH_SCHEMA, BenchRecord, TestRecord};
use crate::report::{Console, bench};
use crate::session::model;
use crate::stopwatch::{Moment, NoFence};
use crate::units::Millis;

/// Prints the figures; if it is interrupted, those that there are.
///
/// # Errors
/// Exit code 2 for tests that do not fit, 3 if the model is not available, 106 if it was interrupted before
/// there was a figure.
pub(crate) fn run(
    config: &BenchConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    LocalEngine::preflight(config.device, config.backend)?;
    let started_at = jiff::Timestamp::now().to_string();
    let load_average = environment::load_average();
    let file = model::locate(&config.model, console, interrupted)?;
    let options = LocalOptions {
        device: config.device,
        backend: config.backend,
        gpu: config.gpu,
        max_sequences: config
            .tests
            .iter()
            .map(|test| test.batch)
            .max()
            .unwrap_or(1),
        reuse: false,
        kv_bytes: config.kv_cache_bytes,
        context: None,
        speculate: false,
    };

    let start = Moment::now(&NoFence)?;
    let engine = LocalEngine::load(&file, &options)
        .map_err(|error| error.context("failed to load the engine"))?;
    let engine_init_ms = Moment::now(&engine)?.since(start);
    if let Some(note) = engine.note() {
        console.progress(note);
    }
    let mut model = BenchModel::new(engine, &config.tests)?;

    console.progress("Measuring what the device can do at most");
    let before = model.measure_ceilings()?;
    let samples = measure(config, &mut model, console, interrupted)?;
    // The higher ones, since another process may have disturbed either measurement.
    let ceilings = Some(before.or_higher(&model.measure_ceilings()?));

    let info = model.info();
    let tests: Vec<TestRecord> = config
        .tests
        .iter()
        .zip(samples)
        .filter_map(|(test, samples)| {
            TestRecord::new(*test, model.work(test), samples, ceilings.as_ref())
        })
        .collect();
    let complete = tests.len() == config.tests.len()
        && tests
            .iter()
            .all(|test| test.samples_ms.len() == config.repetitions);
    if tests.is_empty() {
        return Err(Error::new(
            Exit::Incomplete,
            "interrupted before anything was measured",
        ));
    }
    let record = BenchRecord {
        schema: BENCH_SCHEMA,
        started_at,
        complete,
        environment: environment::capture(Path::new(".")),
        load_average,
        model: info.model.clone(),
        model_sha256: info.model_sha256.clone(),
        weights: info.weights.clone(),
        backend: info.backend.clone(),
        device: info.device.kind.clone(),
        device_name: info.device.name.clone(),
        engine_init_ms,
        ceilings,
        tests,
    };
    let text = bench::text(&record, config.format)?;
    match config.format {
        BenchFormat::Md => console.result(text.trim_end())?,
        BenchFormat::Json | BenchFormat::Jsonl | BenchFormat::Csv => {
            console.data(text.trim_end())?;
        }
    }
    Ok(if complete {
        Exit::Done
    } else {
        Exit::Incomplete
    })
}

/// The times of each test's repetitions. Tests take turns, so that drift of the machine affects all alike.
fn measure(
    config: &BenchConfig,
    model: &mut BenchModel,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Vec<Vec<Millis>>> {
    let mut samples = vec![Vec::with_capacity(config.repetitions); config.tests.len()];
    for round in 0..=config.repetitions {
        console.progress(&match round {
            0 => "Warming up".to_owned(),
            _ => format!("Round {round} of {}", config.repetitions),
        });
        for (index, test) in config.tests.iter().enumerate() {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(samples);
            }
            if round == 0 {
                model.warm_up(test)?;
            } else {
                samples[index].push(model.run(test)?);
            }
        }
    }
    Ok(samples)
}
