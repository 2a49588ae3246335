//! A prediction as Markdown.

use std::fmt::Write;

use super::text::{percent, table};
use crate::record::what_if::{HeldOut, WhatIfRecord};
use crate::report::markdown::escaped;
use crate::statistics::median;
use crate::units::plural;

const KNOWN_ERROR: &str = "docs/what-if.md has the errors that were measured with the default job";

/// Renders the prediction: what was recorded beside what is predicted, and how far to trust it.
pub fn what_if(record: &WhatIfRecord) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, record);
    text
}

fn write(out: &mut String, record: &WhatIfRecord) -> std::fmt::Result {
    writeln!(
        out,
        "# {} with {}\n",
        escaped(&record.run_id),
        escaped(&record.what_if)
    )?;
    let head = ["ms", "step", "recorded", "predicted", "change"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(record.quantities.iter().map(|one| {
        [
            match one.quantity.as_str() {
                "benchmark_total_ms" => one.quantity.clone(),
                quantity => format!("{quantity}, mean"),
            },
            one.step.as_deref().map_or_else(String::new, escaped),
            format!("{:.2}", one.recorded),
            format!("{:.2}", one.predicted),
            signed(one.change),
        ]
    }));
    table(out, &rows)?;
    writeln!(out, "\n## How far to trust it\n")?;
    let errors: Vec<f64> = (record.checks.iter())
        .map(|check| check.error.abs())
        .collect();
    match (median(&errors), errors.iter().copied().reduce(f64::max)) {
        (Some(median), Some(worst)) => writeln!(
            out,
            "- {} of this job with other settings: predicted with a median error of {}, at worst {}",
            plural(errors.len(), "run"),
            percent(median),
            percent(worst)
        )?,
        _ => writeln!(
            out,
            "- not checked: no other run of this job differs only in what can be predicted. {KNOWN_ERROR}"
        )?,
    }
    writeln!(
        out,
        "- a replay with the run's own settings is off by {}; predictions are corrected by that",
        signed(record.replay_error)
    )?;
    if record.fitted > 0 {
        writeln!(out, "- costs are fitted to {} observations", record.fitted)?;
    }
    for note in &record.notes {
        writeln!(out, "- {}", escaped(note))?;
    }
    if record.checks.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## Checked on other runs\n")?;
    let mut rows = vec![["run", "settings", "predicted", "measured", "error"].map(str::to_owned)];
    rows.extend(record.checks.iter().map(check));
    table(out, &rows)
}

fn check(check: &HeldOut) -> [String; 5] {
    [
        escaped(&check.run_id),
        escaped(&check.what_if),
        format!("{:.2}", check.predicted),
        format!("{:.2}", check.measured),
        signed(check.error),
    ]
}

fn signed(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}
