//! The page as Markdown, for a pull request or a job summary.

use std::fmt::Write;

use super::{chart, facts, judged, label, lineage, positions, shown, status};
use crate::record::evaluation::EvolutionRecord;
use crate::record::metrics::Distribution;
use crate::record::{RunRecord, Sample, StepRecord};
use crate::report::diagnose::{diagnose, seconds};
use crate::report::markdown::escaped;
use crate::report::table;

/// The median of a rate, or the mean for a small sample.
pub(super) fn rate(spread: &Option<Distribution>) -> String {
    let rate = spread
        .as_ref()
        .map(|spread| spread.median.unwrap_or(spread.mean));
    rate.map_or_else(|| "–".to_owned(), |rate| format!("{rate:.1}"))
}

/// Median and range over the rounds, or the values themselves if there are few.
pub(super) fn sample(sample: &Sample) -> String {
    let number = |value: f64| match value {
        value if value.fract() == 0.0 || value >= 1000.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    };
    match (sample.median, sample.min, sample.max) {
        (Some(median), Some(min), Some(max)) => {
            format!("{} [{}–{}]", number(median), number(min), number(max))
        }
        _ if sample.values.is_empty() => "–".to_owned(),
        _ => {
            let values: Vec<String> = sample.values.iter().map(|value| number(*value)).collect();
            values.join(", ")
        }
    }
}

/// Escapes the text of a table cell.
fn cell(text: &str) -> String {
    escaped(text)
}

/// Renders the run as Markdown. `evolutions` are those in the run's folder.
pub fn markdown(run: &RunRecord, steps: &[StepRecord], evolutions: &[EvolutionRecord]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, run, steps);
    let _ = write_judged(&mut text, run, steps, evolutions);
    text
}

fn write(out: &mut String, run: &RunRecord, steps: &[StepRecord]) -> std::fmt::Result {
    writeln!(out, "## {} ({})\n", cell(&run.run_id), status(run.status))?;
    writeln!(out, "{}\n", cell(&facts::subtitle(run)))?;
    writeln!(out, "| | | |\n|---|---:|---|")?;
    for tile in facts::tiles(run, steps) {
        let [label, value, note] = [tile.label, &tile.value, &tile.note].map(cell);
        writeln!(out, "| {label} | {value} | {note} |")?;
    }
    let warnings = facts::warnings(run, steps);
    if !warnings.is_empty() {
        writeln!(out, "\n### Warnings\n")?;
        for warning in warnings {
            writeln!(out, "- {}", cell(&warning))?;
        }
    }

    let diagnosis = diagnose(run, steps);
    writeln!(out, "\n### Where the time went\n")?;
    writeln!(
        out,
        "| stage | verdict | share | calls | mean | exposed |\n|---|---|---:|---:|---:|---:|"
    )?;
    for stage in &diagnosis.stages {
        writeln!(
            out,
            "| {} | {} | {:.1} % | {} | {} | {} |",
            cell(&stage.stage),
            stage.verdict.label(),
            100.0 * stage.share,
            stage.calls,
            seconds(stage.mean_s),
            seconds(stage.exposed_s)
        )?;
    }
    if let Some(cause) = diagnosis.causes.first() {
        writeln!(
            out,
            "\n**{}** (at most {}). {}. {}",
            cell(&cause.title),
            seconds(cause.saves_s),
            cell(&cause.evidence),
            cell(&format!("{}{}", cause.advice, cause.now()))
        )?;
    }

    let (positions, left_out) = shown(positions(steps));
    if !positions.is_empty() {
        writeln!(out, "\n### Steps\n")?;
        writeln!(
            out,
            "| step | latency | first token | per token | queue | prompt | reused | generated | prefill t/s | decode t/s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        let spread = |spread: &Option<Distribution>| {
            spread
                .as_ref()
                .map_or_else(|| "–".to_owned(), chart::summary)
        };
        for position in &positions {
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cell(&label(position)),
                spread(&position.latency_ms),
                spread(&position.ttft_ms),
                spread(&position.tpot_ms),
                spread(&position.queue_ms),
                position.tokens.prompt,
                position.tokens.reused,
                position.tokens.decode,
                rate(&position.prefill_tokens_per_s),
                rate(&position.decode_tokens_per_s)
            )?;
        }
        if left_out > 0 {
            writeln!(
                out,
                "\nThe steps that took the most time; {left_out} more are in run.json."
            )?;
        }
    }
    if let Some(comparison) = run
        .comparison
        .as_ref()
        .filter(|both| !both.metrics.is_empty())
    {
        writeln!(out, "\n### standalone and reuse\n")?;
        writeln!(
            out,
            "| per round | standalone | reuse | reuse / standalone |\n|---|---:|---:|---:|"
        )?;
        for metric in &comparison.metrics {
            writeln!(
                out,
                "| {} | {} | {} | {} |",
                cell(&metric.name),
                sample(&metric.standalone),
                sample(&metric.reuse),
                sample(&metric.ratio)
            )?;
        }
        if let Some(faster) = table::faster(comparison) {
            writeln!(out, "\n{}.", cell(&faster))?;
        }
    }
    Ok(())
}

fn write_judged(
    out: &mut String,
    run: &RunRecord,
    steps: &[StepRecord],
    evolutions: &[EvolutionRecord],
) -> std::fmt::Result {
    let rows = judged::judged(steps);
    if !rows.is_empty() {
        writeln!(
            out,
            "\n### Judged steps\n\n| step | kind | judged | outcomes | score | overhead | run | during decoding |\n|---|---|---:|---|---:|---:|---:|---:|"
        )?;
        for row in rows {
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                cell(&row.step),
                cell(&row.kind),
                row.count,
                cell(&row.outcomes),
                row.score,
                row.overhead,
                row.run,
                row.overlap
            )?;
        }
    }
    if let Some(checks) = judged::verification(run) {
        writeln!(out, "\n{}", cell(&checks))?;
    }
    for evolution in evolutions
        .iter()
        .take(lineage::SHOWN)
        .map(lineage::evolution)
    {
        writeln!(
            out,
            "\n### {}\n\n{}",
            evolution.title,
            cell(&evolution.summary)
        )?;
        if !evolution.generations.is_empty() {
            writeln!(
                out,
                "\n| generation | trials | outcomes | best | mean | selected | ended at |\n|---:|---:|---|---:|---:|---:|---:|"
            )?;
        }
        for row in evolution.generations {
            let cells = row.map(|text| cell(&text));
            writeln!(out, "| {} |", cells.join(" | "))?;
        }
        if !evolution.listed.is_empty() {
            writeln!(out, "\n{}", evolution.listed)?;
        }
    }
    let usage = judged::usage(run);
    if !usage.is_empty() {
        writeln!(
            out,
            "\n### Usage and cost\n\n| model | kind | requests | prompt | reused | generated | cost |\n|---|---|---:|---:|---:|---:|---:|"
        )?;
        for row in usage {
            let cells = row.map(|text| cell(&text));
            writeln!(out, "| {} |", cells.join(" | "))?;
        }
    }
    if let Some(rollouts) = &run.rollouts {
        writeln!(out, "\n### Rollouts\n\n| | |\n|---|---|")?;
        for (fact, value) in judged::rollouts(rollouts) {
            writeln!(out, "| {fact} | {} |", cell(&value))?;
        }
    }
    Ok(())
}
