//! Warnings about runs that succeeded but whose results prove little. They are derived from the
//! record and the steps, printed at the end of the run, and stored in `run.json`. `docs/report.md`
//! lists them.

mod gathered;
mod gpu;
mod tainted;
#[cfg(test)]
mod tests;
mod thoughts;

use std::borrow::Cow;

use serde_json::Value;

use super::traffic;
use crate::record::load::LoadRecord;
use crate::record::segment::{Segment, SegmentEnd};
use crate::record::warning::Warning;
use crate::record::{PlannedStep, RunRecord, Status, StepRecord};
use crate::units::plural;

pub use gathered::Gathered;

/// Warn if other processes or other virtual machines use at least this share of the processor time.
pub const BUSY_SHARE: f64 = 0.1;

/// Shorter runs are skipped: the kernel counts in hundredths of a second.
const LEAST_SECONDS: f64 = 1.0;

/// Warnings of a stored run: those stored at its end, or, if it was killed, those derived from its
/// steps.
pub fn of<'a>(run: &'a RunRecord, steps: &[StepRecord]) -> Cow<'a, [Warning]> {
    if run.status != Status::Running {
        return Cow::Borrowed(&run.warnings);
    }
    let mut gathered = Gathered::default();
    for step in steps {
        gathered.add(step);
    }
    Cow::Owned(warnings(run, &gathered))
}

/// All warnings, most severe first. `gathered` holds the run's steps.
pub fn warnings(run: &RunRecord, gathered: &Gathered) -> Vec<Warning> {
    let mut all = gathered.answers();
    all.extend(gathered.cut(&run.expansion.steps, ignores_eos(run)));
    all.extend(gathered.counts());
    all.extend(resumed(run));
    all.extend(identical(run));
    all.extend(short_of_memory(run));
    all.extend(tainted::tainted(run, gathered));
    all.extend(busy(run));
    all.extend(gpu::warnings(run));
    let counts = run.totals.remote.iter().flat_map(traffic::warnings);
    all.extend(counts.map(|text| warning("token_counts", text, String::new())));
    all
}

fn warning(code: &str, text: impl Into<String>, evidence: String) -> Warning {
    Warning {
        code: code.to_owned(),
        text: text.into(),
        evidence,
    }
}

/// The run was interrupted and resumed.
fn resumed(run: &RunRecord) -> Option<Warning> {
    let killed = |segment: &&Segment| segment.end == SegmentEnd::Killed;
    let killed = run.segments.iter().filter(killed).count();
    let evidence = match killed {
        0 => String::new(),
        killed => format!(", {killed} killed"),
    };
    (run.segments.len() > 1).then(|| {
        warning(
            "resumed",
            "The run was interrupted and resumed: its times are those of several processes, and not comparable",
            format!("{}{evidence}", plural(run.segments.len(), "segment")),
        )
    })
}

/// The device's memory ran out, so that fewer sequences were computed at once than the settings allow.
fn short_of_memory(run: &RunRecord) -> Option<Warning> {
    let shortages = &run.totals.memory_shortages;
    let (first, last) = (shortages.first()?, shortages.last()?);
    Some(warning(
        "gpu_memory",
        "The GPU's memory ran out in a pass, so fewer sequences were computed at once",
        format!(
            "{}, then at most {}: {}",
            plural(first.sequences, "sequence"),
            last.admitted,
            last.error
        ),
    ))
}

/// Whether answers are meant to reach the token limit.
fn ignores_eos(run: &RunRecord) -> bool {
    run.settings.get("ignore_eos") == Some(&Value::Bool(true))
}

/// The temperature in `ENDPOINT_EXTRA`, which overrides the template's.
fn other_temperature(run: &RunRecord) -> Option<f64> {
    let remote = run.settings.get("remote")?;
    remote.pointer("/endpoint_extra/temperature")?.as_f64()
}

/// Several answers to the same prompt, all of them greedy.
fn identical(run: &RunRecord) -> Vec<Warning> {
    let steps = &run.expansion.steps;
    let temperature = other_temperature(run);
    let is_greedy = |step: &PlannedStep| temperature.unwrap_or(step.temperature) <= 0.0;
    let mut all = Vec::new();
    let repeats = (run.settings.get("rollouts"))
        .and_then(|rollouts| rollouts.get("repeats")?.as_u64())
        .unwrap_or(1);
    if repeats > 1 && !steps.is_empty() && steps.iter().all(is_greedy) {
        all.push(warning(
            "identical_repeats",
            "The flows of a row are identical by construction: the temperature of every step is 0",
            format!("--repeats {repeats}"),
        ));
    }
    let several = steps.iter().filter(|step| step.samples > 1);
    for step in several.filter(|step| is_greedy(step)) {
        all.push(warning(
            "identical_samples",
            format!(
                "The samples of step {} are identical by construction: its temperature is 0",
                step.step
            ),
            plural(step.samples, "sample"),
        ));
    }
    all
}

/// Whether the server runs on this machine and may be one of the other processes.
pub fn serves_here(run: &RunRecord) -> bool {
    let endpoint = run
        .settings
        .get("remote")
        .and_then(|remote| remote.get("endpoint"));
    let Some(endpoint) = endpoint.and_then(Value::as_str) else {
        return false;
    };
    let authority = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let address: Option<std::net::IpAddr> = host.parse().ok();
    address.is_some_and(|address| address.is_loopback() || address.is_unspecified())
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
}

/// Warns if other processes or other virtual machines used a significant share of the processors.
fn busy(run: &RunRecord) -> Option<Warning> {
    // In a merged run, each shard has its own machine.
    let shards = run.shards.iter().map(|shard| &shard.environment);
    let own = Some(&run.environment).filter(|_| run.shards.is_empty());
    let loads = shards
        .chain(own)
        .filter_map(|environment| environment.load.as_ref());
    let others = |load: &LoadRecord| match serves_here(run) {
        true => 0.0,
        false => load.others_share.unwrap_or(0.0),
    };
    let worst = |load: &LoadRecord| others(load).max(load.steal_share.unwrap_or(0.0));
    let load = loads
        .filter(|load| load.seconds >= LEAST_SECONDS)
        .max_by(|a, b| worst(a).total_cmp(&worst(b)))?;
    let steal = load.steal_share.unwrap_or(0.0);
    let mut shares = Vec::new();
    if others(load) >= BUSY_SHARE {
        shares.push(format!(
            "other processes used {:.0} %",
            100.0 * others(load)
        ));
    }
    if steal >= BUSY_SHARE {
        shares.push(format!(
            "other virtual machines took {:.0} % (steal)",
            100.0 * steal
        ));
    }
    if shares.is_empty() {
        return None;
    }
    let average = match (load.load_average_start, load.load_average_end) {
        (Some(start), Some(end)) => format!("; load average {start:.1} to {end:.1}"),
        _ => String::new(),
    };
    Some(warning(
        "busy_machine",
        "The machine was busy with other work: times are longer than on an idle machine, and not comparable",
        format!(
            "{} of {}{average}",
            shares.join(" and "),
            plural(load.processors, "processor")
        ),
    ))
}
