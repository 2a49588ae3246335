//! The text of the page: key figures, warnings, environment, settings.

use serde::Serialize;

use super::chart;
use crate::record::load::LoadRecord;
use crate::record::{Energy, RunRecord, Status, StepRecord};
use crate::report::diagnose::seconds;
use crate::report::{gpu, validity};
use crate::statistics::{distribution, median};
use crate::units::plural;

/// A key figure.
#[derive(Debug, Serialize)]
pub(super) struct Tile {
    pub(super) label: &'static str,
    pub(super) value: String,
    pub(super) note: String,
}

fn text<'a>(value: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

/// Template, model, device and start time.
pub(super) fn subtitle(run: &RunRecord) -> String {
    let model = text(&run.engine, "model").unwrap_or("no model");
    let device = run
        .engine
        .get("device")
        .and_then(|device| text(device, "name"));
    let mut parts = vec![
        format!(
            "{} of {}",
            plural(run.expansion.num_flows, "flow"),
            run.expansion.template
        ),
        model.to_owned(),
    ];
    parts.extend(device.map(str::to_owned));
    parts.push(run.started_at.get(..19).map_or_else(
        || run.started_at.clone(),
        |time| format!("{} UTC", time.replace('T', " ")),
    ));
    parts.join(" · ")
}

pub(super) fn tiles(run: &RunRecord, steps: &[StepRecord]) -> Vec<Tile> {
    let totals = &run.totals;
    let mut tiles = Vec::new();
    if let Some(total) = totals.benchmark_total_ms {
        let init = run.engine_init_ms.unwrap_or_default();
        tiles.push(Tile {
            label: "total",
            value: seconds(total.seconds()),
            note: format!("{} engine init", seconds(init.seconds())),
        });
    }
    if run.comparison.is_none() {
        let done = (run.workflows.iter()).filter(|flow| flow.error.is_none() && !flow.resumed);
        let times: Vec<f64> = done.map(|flow| flow.workflow_ms.0).collect();
        if let Some(spread) = distribution(&times) {
            tiles.push(Tile {
                label: match spread.median {
                    Some(_) => "workflow, median",
                    None => "workflow, mean",
                },
                value: seconds(spread.median.unwrap_or(spread.mean) / 1e3),
                note: match spread.median_interval {
                    Some(interval) => format!(
                        "{}–{} (95 %)",
                        seconds(interval.low / 1e3),
                        seconds(interval.high / 1e3)
                    ),
                    None => format!(
                        "{}–{}",
                        seconds(spread.min / 1e3),
                        seconds(spread.max / 1e3)
                    ),
                },
            });
        }
    }
    let firsts: Vec<f64> = steps
        .iter()
        .filter_map(|step| Some(step.ttft_ms?.0))
        .collect();
    if let (Some(spread), None) = (distribution(&firsts), &run.comparison) {
        tiles.push(Tile {
            label: "first token",
            value: seconds(spread.median.unwrap_or(spread.mean) / 1e3),
            note: format!(
                "{}–{}",
                seconds(spread.min / 1e3),
                seconds(spread.max / 1e3)
            ),
        });
    }
    let busy = totals.benchmark_total_ms.unwrap_or_default().seconds()
        - run.engine_init_ms.unwrap_or_default().seconds();
    if busy > 0.0 && totals.tokens.decode > 0 {
        tiles.push(Tile {
            label: "generated",
            value: format!("{:.1} t/s", totals.tokens.decode as f64 / busy),
            note: plural(totals.tokens.decode, "token"),
        });
    }
    if totals.tokens.prompt > 0 {
        let reused = 100.0 * totals.tokens.reused as f64 / totals.tokens.prompt as f64;
        tiles.push(Tile {
            label: "prompt tokens reused",
            value: format!("{reused:.0} %"),
            note: format!("of {}", totals.tokens.prompt),
        });
    }
    if totals.undecided > 0
        && let Some(mean) = totals.mean_reward
    {
        tiles.push(Tile {
            label: "reward, undecided as 0",
            value: format!("{mean:.3}"),
            note: format!("{} undecided", totals.undecided),
        });
    }
    if let Some(reward) = &totals.reward {
        tiles.push(Tile {
            label: "reward, mean",
            value: format!("{:.3}", reward.mean),
            note: match reward.count {
                1 => "one workflow".to_owned(),
                count => format!("of {count}, {}", chart::scores(reward)),
            },
        });
    }
    let costs: Vec<f64> = totals.usage.iter().filter_map(|usage| usage.cost).collect();
    if !costs.is_empty() {
        tiles.push(Tile {
            label: "cost",
            value: format!("{:.4}", costs.iter().sum::<f64>()),
            note: "at the prices in the settings".to_owned(),
        });
    }
    tiles.push(Tile {
        label: "workflows",
        value: totals.workflows_done.to_string(),
        note: match totals.workflows_failed {
            0 => "none failed".to_owned(),
            failed => format!("{failed} failed"),
        },
    });
    if let Some(energy) = &totals.energy {
        let mut note = vec![format!(
            "{} W, {}",
            validity::digits(energy.watts),
            energy.source
        )];
        note.extend(validity::rates(energy));
        tiles.push(Tile {
            label: "energy",
            value: format!("{} J", validity::digits(energy.joules)),
            note: note.join(", "),
        });
    }
    let is_of_gpu = |energy: &Energy| energy.source.starts_with("nvml");
    if !totals.energy.as_ref().is_some_and(is_of_gpu)
        && let Some(joules) = run.gpu.as_ref().and_then(|gpu| gpu.energy_joules)
    {
        tiles.push(Tile {
            label: "GPU energy",
            value: format!("{joules:.1} J"),
            note: gpu::per_token(run).unwrap_or_else(|| "of the whole run".to_owned()),
        });
    }
    if totals.steps_tainted > 0 {
        tiles.push(Tile {
            label: "tainted steps",
            value: totals.steps_tainted.to_string(),
            note: validity::reasons(&totals.tainted),
        });
    }
    tiles
}

/// Warn if the last third of the workflows is slower than the first by more than this factor.
const DRIFT: f64 = 1.1;

/// Warn if the first workflow is slower than the median of the others by more than this factor.
const FIRST_RUN: f64 = 1.3;

/// Warnings: those stored with the run, and those derived from its status and its workflows' times.
pub(super) fn warnings(run: &RunRecord, steps: &[StepRecord]) -> Vec<String> {
    let own = crate::report::warnings::of(run, steps);
    let mut warnings: Vec<String> = own.iter().map(|warning| format!("{warning}.")).collect();
    let failed = run.totals.workflows_failed;
    match run.status {
        Status::Complete => {}
        Status::Running => warnings.push(
            "The run has not ended, or was killed: the page shows the steps that had ended."
                .to_owned(),
        ),
        Status::Failed | Status::Incomplete => warnings.push(format!(
            "The run did not succeed: {}.",
            run.error.as_deref().unwrap_or("no reason was kept")
        )),
    }
    if failed > 0 {
        warnings.push(format!(
            "{} failed and {} excluded from means and medians.",
            plural(failed, "workflow"),
            if failed == 1 { "is" } else { "are" }
        ));
    }
    if let Some(remote) = &run.totals.remote
        && remote.retries > 0
    {
        warnings.push(format!(
            "{} of {} to the server were retries; the times of their steps include all attempts and \
             the waits between them.",
            remote.retries,
            plural(remote.attempts, "call")
        ));
    }
    if !run.shards.is_empty() {
        warnings.push(format!(
            "Merged from the runs of {}, each with its own clock: start times of different \
             shards cannot be compared.",
            plural(run.shards.len(), "shard")
        ));
    }
    let modes: Vec<Option<&str>> = match run.comparison {
        None => vec![None],
        Some(_) => vec![Some("standalone"), Some("reuse")],
    };
    for mode in modes {
        let prefix = mode.map_or_else(String::new, |mode| format!("{mode}: "));
        let times: Vec<f64> = run
            .workflows
            .iter()
            .filter(|flow| flow.error.is_none() && !flow.resumed && flow.mode.as_deref() == mode)
            .map(|flow| flow.workflow_ms.0)
            .collect();
        let serial = mode == Some("standalone")
            || run
                .settings
                .get("concurrency")
                .and_then(|value| value.as_u64())
                == Some(1);
        noise(&times, serial, &prefix, &mut warnings);
    }
    if run
        .environment
        .git_revision
        .as_deref()
        .is_some_and(|revision| revision.ends_with("-dirty"))
    {
        warnings.push("The checkout had uncommitted changes.".to_owned());
    }
    if let Some(profile) = run
        .profile
        .as_ref()
        .filter(|profile| profile.spans_dropped > 0)
    {
        warnings.push(format!(
            "The trace omits {}; the profile is complete.",
            plural(
                usize::try_from(profile.spans_dropped).unwrap_or(usize::MAX),
                "event"
            )
        ));
    }
    warnings.iter_mut().for_each(|warning| capitalise(warning));
    warnings
}

fn capitalise(text: &mut str) {
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
}

fn noise(times: &[f64], serial: bool, prefix: &str, warnings: &mut Vec<String>) {
    if (1..6).contains(&times.len()) {
        warnings.push(format!(
            "{prefix}{} {} too few for a confidence interval of the median: run at least 6.",
            plural(times.len(), "workflow"),
            if times.len() == 1 { "is" } else { "are" }
        ));
        return;
    }
    let Some(middle) = median(times) else {
        return;
    };
    // Concurrent flows slow one another down, so these checks are for serial runs only.
    if serial {
        let (first, others) = times.split_at(1);
        if let Some(usual) = median(others).filter(|usual| first[0] > FIRST_RUN * usual) {
            warnings.push(format!(
                "{prefix}the first workflow took {}, but the median of the others is {}: it probably \
                 includes one-time set-up.",
                seconds(first[0] / 1e3),
                seconds(usual / 1e3)
            ));
        }
        let third = times.len() / 3;
        let (early, late) = (
            median(&times[..third]),
            median(&times[times.len() - third..]),
        );
        if let (Some(early), Some(late)) = (early, late)
            && late > DRIFT * early
        {
            warnings.push(format!(
                "{prefix}the last third of the workflows is {:.0} % slower than the first: the machine \
                 throttled (heat, power), or other work ran at the same time.",
                100.0 * (late / early - 1.0)
            ));
        }
    }
    let deviations: Vec<f64> = times.iter().map(|time| (time - middle).abs()).collect();
    // 1.4826 scales the median absolute deviation to the standard deviation of a normal
    // distribution (F. R. Hampel, 1974). The floor of 1 % keeps nearly equal times from counting as
    // outliers.
    let usual = (1.4826 * median(&deviations).unwrap_or(0.0)).max(0.01 * middle);
    let outliers = deviations
        .iter()
        .filter(|deviation| **deviation > 5.0 * usual);
    let outliers = outliers.count();
    if outliers > 0 {
        warnings.push(format!(
            "{prefix}{outliers} of {} {} more than five standard deviations (estimated) from the \
             median: noise, or a different amount of work. All are included.",
            plural(times.len(), "workflow"),
            if outliers == 1 { "lies" } else { "lie" }
        ));
    }
}

pub(super) fn environment(run: &RunRecord) -> Vec<(&'static str, String)> {
    let environment = &run.environment;
    let mut facts = vec![
        (
            "flowbench",
            format!("{} ({})", environment.flowbench, environment.build),
        ),
        (
            "revision",
            environment
                .git_revision
                .clone()
                .unwrap_or_else(|| "unknown".to_owned()),
        ),
        ("system", environment.os.clone()),
        (
            "processor",
            format!(
                "{}, {}",
                environment.cpu,
                plural(environment.cpu_threads, "thread")
            ),
        ),
        ("extensions", environment.cpu_features.join(" ")),
        (
            "memory",
            crate::units::Bytes(environment.memory_bytes).to_string(),
        ),
    ];
    if let Some(host) = &environment.hostname_hash {
        facts.push(("host (hash)", host.clone()));
    }
    if let Some(load) = &environment.load {
        facts.push(("load", load_in_words(load)));
    }
    for (label, name) in [
        ("model", "model"),
        ("model file", "model_path"),
        ("model SHA-256", "model_sha256"),
        ("weights", "weights"),
        ("backend", "backend"),
    ] {
        if let Some(value) = text(&run.engine, name) {
            facts.push((label, value.to_owned()));
        }
    }
    if let Some(device) = run
        .engine
        .get("device")
        .and_then(|device| text(device, "name"))
    {
        facts.push(("device", device.to_owned()));
    }
    facts.extend(gpu::facts(run));
    facts.extend(validity::facts(run));
    facts.push((
        "expansion",
        match &run.expansion.miss {
            None => format!(
                "{} (cached)",
                seconds(run.expansion.flow_expansion_ms.seconds())
            ),
            Some(miss) => format!(
                "{} (cache miss: {miss})",
                seconds(run.expansion.flow_expansion_ms.seconds())
            ),
        },
    ));
    facts
}

/// Load of the machine: `own 48 %, others 3 %, steal 0 % of 2 processors; load average 0.5 to 1.2`.
fn load_in_words(load: &LoadRecord) -> String {
    let shares = [
        ("own", load.own_share),
        ("others", load.others_share),
        ("steal", load.steal_share),
    ];
    let shares = shares.into_iter().filter_map(|(name, share)| {
        let share = share?;
        Some(format!("{name} {:.0} %", 100.0 * share))
    });
    let mut text = format!(
        "{} of {}",
        shares.collect::<Vec<_>>().join(", "),
        plural(load.processors, "processor")
    );
    if let (Some(start), Some(end)) = (load.load_average_start, load.load_average_end) {
        text.push_str(&format!("; load average {start:.1} to {end:.1}"));
    }
    text
}

/// The settings, without unset ones.
pub(super) fn settings(run: &RunRecord) -> Vec<(String, String)> {
    run.settings
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let value = match value {
                serde_json::Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            (name.clone(), value)
        })
        .collect()
}
