//! A prediction as Markdown.

use std::fmt::Write;

use super::text::{percent, table};
use crate::record::what_if::{HeldOut, WhatIfRecord};
use crate::report::markdown::escaped;
use crate::statistics::median;
use crate::units::plural;

/// Measured as `docs/what-if.md` says.
const KNOWN_ERROR: &str = "With the default job, nine in ten of 74 such predictions were off by less than 21 % \
                           (docs/what-if.md)";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::what_if::{Predicted, WHAT_IF_SCHEMA};

    #[test]
    fn what_is_predicted_and_how_far_to_trust_it() {
        let predicted = |quantity: &str, step: Option<&str>, recorded, predicted| Predicted {
            quantity: quantity.to_owned(),
            step: step.map(str::to_owned),
            recorded,
            predicted,
            change: predicted / recorded - 1.0,
        };
        let mut record = WhatIfRecord {
            schema: WHAT_IF_SCHEMA,
            run_id: "20260102T030405Z-standalone".to_owned(),
            what_if: "concurrency=8,prefix_cache=on".to_owned(),
            quantities: vec![
                predicted("benchmark_total_ms", None, 30913.02, 5418.06),
                predicted("workflow_ms", None, 1924.26, 2500.08),
                predicted("latency_ms", Some("planner"), 600.0, 900.0),
            ],
            replay_error: -0.0021,
            fitted: 1237,
            checks: vec![HeldOut {
                run_id: "20260102T040506Z-reuse".to_owned(),
                what_if: "prefix_cache=on".to_owned(),
                predicted: 11664.1,
                measured: 11925.51,
                error: 11664.1 / 11925.51 - 1.0,
            }],
            notes: vec!["memory for keys and values is taken to suffice".to_owned()],
        };
        let with_checks = what_if(&record);
        record.checks.clear();
        insta::assert_snapshot!(with_checks + "\n----\n" + &what_if(&record));
    }
}
