//! Renders a run as a self-contained HTML file, or as Markdown, from the records alone.

mod chart;
mod facts;
mod judged;
mod lineage;
#[cfg(test)]
mod tests;
mod text;
mod timeline;
mod watched;

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;

use crate::error::Result;
use crate::metrics::Positions;
use crate::record::evaluation::EvolutionRecord;
use crate::record::metrics::{CriticalStep, PositionRecord};
use crate::record::{Metric, RunRecord, Status, StepRecord};
use crate::report::diagnose::{Diagnosis, Source, diagnose, seconds};
use crate::report::html::render;
use crate::report::segments::on_one_axis;
use crate::report::table;
use crate::terminal::visible;
use crate::units::plural;

pub use text::markdown;

/// Length of the list of the slowest workflows.
const SLOWEST: usize = 10;

/// Renders the HTML page. `evolutions` are those in the run's folder.
///
/// # Errors
/// Exit code 110 if the template fails to render, which would be a bug.
pub fn html(
    run: &RunRecord,
    steps: &[StepRecord],
    evolutions: &[EvolutionRecord],
) -> Result<String> {
    let diagnosis = diagnose(run, steps);
    let (positions, positions_left_out) = shown(positions(steps));
    let values = json!({
        "run_id": run.run_id,
        "status": status(run.status),
        "status_class": match run.status {
            Status::Complete => "good",
            Status::Running => "warn",
            Status::Failed | Status::Incomplete => "bad",
        },
        "subtitle": facts::subtitle(run),
        "tiles": facts::tiles(run, steps),
        "warnings": facts::warnings(run, steps),
        "stages": stages(&diagnosis),
        "wall": seconds(diagnosis.wall_s),
        "source": match diagnosis.source {
            Source::Profile => "the profile",
            Source::Records => "the steps' times",
        },
        "causes": causes(&diagnosis),
        "judged": judged::judged(steps),
        "verification": judged::verification(run),
        "evolutions": (evolutions.iter().take(lineage::SHOWN))
            .map(lineage::evolution)
            .collect::<Vec<_>>(),
        "evolutions_left_out": evolutions.len().saturating_sub(lineage::SHOWN),
        "usage": judged::usage(run),
        "rollouts": run.rollouts.as_ref().map(judged::rollouts),
        "timelines": timelines(run, &on_one_axis(run, steps)),
        "watched": watched::watched(run),
        "panels": panels(steps, &positions),
        "tokens": tokens(&positions),
        "positions_left_out": positions_left_out,
        "slowest": slowest(run),
        "comparison": comparison(run),
        "faster": run.comparison.as_ref().and_then(table::faster),
        "profile": profile(run),
        "environment": facts::environment(run),
        "settings": facts::settings(run),
        "version": env!("CARGO_PKG_VERSION"),
    });
    // No name or message reorders or hides what stands beside it.
    Ok(visible(&render(include_str!("page.html"), &values)?).into_owned())
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Running => "running or killed",
        Status::Complete => "complete",
        Status::Failed => "failed",
        Status::Incomplete => "incomplete",
    }
}

/// Statistics per step ID. Derived from the steps, so that it works for a killed run as well.
fn positions(steps: &[StepRecord]) -> Vec<PositionRecord> {
    let mut positions = Positions::default();
    for step in steps {
        positions.add(step);
    }
    positions.records()
}

/// Upper bound on the positions shown: a long loop has one per step and generation.
const POSITIONS: usize = 100;

/// The positions that took the most time, in order, and the number of omitted ones.
fn shown(mut positions: Vec<PositionRecord>) -> (Vec<PositionRecord>, usize) {
    let all = positions.len();
    if all <= POSITIONS {
        return (positions, 0);
    }
    let spent = |position: &PositionRecord| {
        let latency = position.latency_ms.as_ref();
        latency.map_or(0.0, |latency| latency.mean * latency.count as f64)
    };
    let mut order: Vec<usize> = (0..all).collect();
    order.sort_by(|a, b| spent(&positions[*b]).total_cmp(&spent(&positions[*a])));
    let mut kept = vec![false; all];
    order[..POSITIONS]
        .iter()
        .for_each(|index| kept[*index] = true);
    let mut kept = kept.into_iter();
    positions.retain(|_| kept.next() == Some(true));
    (positions, all - POSITIONS)
}

/// Label of a position: the step, and the mode if there are two.
fn label(position: &PositionRecord) -> String {
    match &position.mode {
        Some(mode) => format!("{} · {mode}", position.step),
        None => position.step.clone(),
    }
}

#[derive(Serialize)]
struct StageRow {
    name: String,
    class: &'static str,
    verdict: &'static str,
    verdict_class: String,
    width: String,
    share: String,
    calls: String,
    mean: String,
    exposed: String,
}

fn stages(diagnosis: &Diagnosis) -> Vec<StageRow> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut rows: Vec<StageRow> = diagnosis
        .stages
        .iter()
        .map(|stage| StageRow {
            class: colour(&stage.stage),
            verdict: stage.verdict.label(),
            verdict_class: stage.verdict.label().replace(' ', "_"),
            width: format!("{:.3}", 100.0 * stage.share),
            share: percent(stage.share),
            calls: stage.calls.to_string(),
            mean: seconds(stage.mean_s),
            exposed: seconds(stage.exposed_s),
            name: stage.stage.clone(),
        })
        .collect();
    let idle = match diagnosis.wall_s {
        wall if wall > 0.0 => diagnosis.idle_s / wall,
        _ => 0.0,
    };
    rows.push(StageRow {
        name: "idle".to_owned(),
        class: "idle",
        verdict: "",
        verdict_class: String::new(),
        width: format!("{:.3}", 100.0 * idle),
        share: percent(idle),
        calls: String::new(),
        mean: String::new(),
        exposed: seconds(diagnosis.idle_s),
    });
    rows
}

fn colour(stage: &str) -> &'static str {
    match stage {
        "queue_wait" => "queue",
        "prefill" => "prefill",
        "decode" => "decode",
        "engine_init" => "engine_init",
        "flow_expansion" => "flow_expansion",
        "verify" => "verify",
        stage if stage.starts_with("evaluate") => "evaluate",
        _ => "other",
    }
}

#[derive(Serialize)]
struct CauseRow {
    title: String,
    stage: &'static str,
    saves: String,
    evidence: String,
    advice: String,
}

fn causes(diagnosis: &Diagnosis) -> Vec<CauseRow> {
    let row = |cause: &crate::report::diagnose::Cause| CauseRow {
        title: cause.title.clone(),
        stage: cause.stage,
        saves: seconds(cause.saves_s),
        evidence: cause.evidence.clone(),
        advice: format!("{}{}", cause.advice, cause.now()),
    };
    diagnosis.causes.iter().map(row).collect()
}

/// One timeline, or in `MODE=both`, one for the first round of each mode.
fn timelines(run: &RunRecord, steps: &[StepRecord]) -> Vec<timeline::Timeline> {
    if steps.is_empty() {
        return Vec::new();
    }
    let Some(comparison) = &run.comparison else {
        let all: Vec<&StepRecord> = steps.iter().collect();
        // With one engine per workflow, the start-ups lie between the flows.
        let init = (run.engine_starts == 1)
            .then_some(run.engine_init_ms)
            .flatten();
        return vec![timeline::timeline(
            String::new(),
            &all,
            0.0,
            init.map(|ms| ms.0),
        )];
    };
    let first = |mode: &str| -> Option<timeline::Timeline> {
        let round = comparison.rounds.iter().find(|round| round.mode == mode)?;
        let steps: Vec<&StepRecord> = steps
            .iter()
            .filter(|step| step.mode.as_deref() == Some(mode) && step.round == Some(round.round))
            .collect();
        let start = steps
            .iter()
            .map(|step| step.start_ms.0)
            .fold(f64::INFINITY, f64::min);
        let title = format!("{mode}, round {}", round.round);
        (!steps.is_empty()).then(|| timeline::timeline(title, &steps, start, None))
    };
    ["standalone", "reuse"]
        .into_iter()
        .filter_map(first)
        .collect()
}

fn panels(steps: &[StepRecord], positions: &[PositionRecord]) -> Vec<chart::Panel> {
    type Value = fn(&StepRecord) -> Option<f64>;
    type Spread = fn(&PositionRecord) -> &Option<crate::record::metrics::Distribution>;
    let quantities: [(&'static str, Value, Spread); 4] = [
        (
            "End-to-end latency",
            |step| Some(step.latency_ms.0),
            |position| &position.latency_ms,
        ),
        (
            "Time to first token (TTFT)",
            |step| step.ttft_ms.map(|ms| ms.0),
            |position| &position.ttft_ms,
        ),
        (
            "Time per output token (TPOT)",
            |step| step.tpot_ms.map(|ms| ms.0),
            |position| &position.tpot_ms,
        ),
        (
            "Queue wait",
            |step| step.queue_ms.map(|ms| ms.0),
            |position| &position.queue_ms,
        ),
    ];
    let places: HashMap<(&str, Option<&str>), usize> = (positions.iter())
        .map(|position| (position.step.as_str(), position.mode.as_deref()))
        .zip(0..)
        .collect();
    let mut of_position: Vec<Vec<&StepRecord>> = vec![Vec::new(); positions.len()];
    for step in steps {
        if let Some(place) = places.get(&(step.step.as_str(), step.mode.as_deref())) {
            of_position[*place].push(step);
        }
    }
    let panel = |(title, value, spread): (&'static str, Value, Spread)| {
        let row = |(position, steps): (&PositionRecord, &Vec<&StepRecord>)| {
            let values = steps.iter().filter_map(|step| value(step)).collect();
            (label(position), values, spread(position).clone())
        };
        chart::panel(title, positions.iter().zip(&of_position).map(row).collect())
    };
    quantities.into_iter().filter_map(panel).collect()
}

#[derive(Serialize)]
struct TokenRow {
    step: String,
    prompt: usize,
    prefill: usize,
    reused: String,
    decode: usize,
    prefill_rate: String,
    decode_rate: String,
    widths: [String; 3],
}

fn tokens(positions: &[PositionRecord]) -> Vec<TokenRow> {
    let most = positions
        .iter()
        .map(|position| position.tokens.prompt + position.tokens.decode)
        .max()
        .unwrap_or(0)
        .max(1);
    let row = |position: &PositionRecord| {
        let reused = 100.0 * position.tokens.reused as f64 / position.tokens.prompt.max(1) as f64;
        let width = |tokens: usize| format!("{:.2}", 100.0 * tokens as f64 / most as f64);
        TokenRow {
            step: label(position),
            prompt: position.tokens.prompt,
            prefill: position.tokens.prefill,
            reused: format!("{} ({reused:.0} %)", position.tokens.reused),
            decode: position.tokens.decode,
            prefill_rate: text::rate(&position.prefill_tokens_per_s),
            decode_rate: text::rate(&position.decode_tokens_per_s),
            widths: [
                width(position.tokens.prefill),
                width(position.tokens.reused),
                width(position.tokens.decode),
            ],
        }
    };
    // Steps that are judged without the model have no tokens.
    let asked = |position: &&PositionRecord| position.tokens.prompt + position.tokens.decode > 0;
    positions.iter().filter(asked).map(row).collect()
}

/// Upper bound on the steps named in a critical path.
const NAMED_STEPS: usize = 20;

/// A critical path as text; for a long one, only its longest steps.
fn path(steps: &[CriticalStep]) -> String {
    let mut least = f64::NEG_INFINITY;
    if steps.len() > NAMED_STEPS {
        let mut times: Vec<f64> = steps.iter().map(|step| step.ms.0).collect();
        times.sort_by(|a, b| b.total_cmp(a));
        least = times[NAMED_STEPS - 1];
    }
    let named = (steps.iter().filter(|step| step.ms.0 >= least)).take(NAMED_STEPS);
    let named: Vec<String> = named
        .map(|step| format!("{} {}", step.step, seconds(step.ms.seconds())))
        .collect();
    match steps.len() > NAMED_STEPS {
        true => format!(
            "{} (the {} longest of {})",
            named.join(" → "),
            named.len(),
            plural(steps.len(), "step")
        ),
        false => named.join(" → "),
    }
}

#[derive(Serialize)]
struct SlowFlow {
    flow: String,
    row: String,
    makespan: String,
    path: String,
}

fn slowest(run: &RunRecord) -> Vec<SlowFlow> {
    let in_one_segment = |flow: &&crate::record::WorkflowRecord| !flow.resumed;
    let mut flows: Vec<_> = run.workflows.iter().filter(in_one_segment).collect();
    flows.sort_by(|a, b| b.workflow_ms.0.total_cmp(&a.workflow_ms.0));
    flows.truncate(SLOWEST);
    let row = |flow: &&crate::record::WorkflowRecord| SlowFlow {
        flow: match (&flow.mode, flow.round) {
            (Some(mode), Some(round)) => format!("{} · {mode} {round}", flow.flow),
            _ => flow.flow.to_string(),
        },
        row: flow.row.clone(),
        makespan: seconds(flow.workflow_ms.seconds()),
        path: match &flow.error {
            Some(error) => format!("failed: {error}"),
            None => path(&flow.critical_path),
        },
    };
    flows.iter().map(row).collect()
}

fn comparison(run: &RunRecord) -> Vec<[String; 4]> {
    let Some(comparison) = &run.comparison else {
        return Vec::new();
    };
    let row = |metric: &Metric| {
        [
            metric.name.clone(),
            text::sample(&metric.standalone),
            text::sample(&metric.reuse),
            text::sample(&metric.ratio),
        ]
    };
    comparison.metrics.iter().map(row).collect()
}

fn profile(run: &RunRecord) -> Vec<[String; 5]> {
    let Some(profile) = &run.profile else {
        return Vec::new();
    };
    let row = |row: &crate::record::profile::ProfileRow| {
        let ncall = match row.nprim == row.ncall {
            true => row.ncall.to_string(),
            false => format!("{}/{}", row.ncall, row.nprim),
        };
        let time = |seconds: f64| format!("{seconds:.6}");
        [
            row.name.clone(),
            ncall,
            time(row.tsub_s),
            time(row.ttot_s),
            time(row.tavg_s),
        ]
    };
    profile.rows.iter().map(row).collect()
}
