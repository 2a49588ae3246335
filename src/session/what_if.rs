//! Predicts a run under other settings, and checks the prediction on runs that were made.

use std::path::Path;

use crate::config::WhatIf;
use crate::error::Result;
use crate::metrics::replay::{PREDICTABLE, Prediction, Replayer, changes_between};
use crate::record::what_if::{HeldOut, WHAT_IF_SCHEMA, WhatIfRecord};
use crate::record::{RunRecord, Status};
use crate::results::{self, Identity, SavedRun, history::History};

/// So many other runs are looked at, the latest.
const LOOKED_AT: usize = 200;

/// So many of them are predicted.
const CHECKED: usize = 10;

/// Facts of a program that do not change what a job takes, or should not.
const HARMLESS: [&str; 2] = ["revision", "machine"];

/// Predicts `run` with `changes`. Other runs of the job in `out`, which differ in nothing but what can be predicted,
/// are predicted as well and compared with what they measured.
///
/// # Errors
/// Exit code 2 if the run cannot be replayed, or shows nothing of a setting, or the history cannot be read.
pub(crate) fn what_if(run: &SavedRun, changes: &WhatIf, out: &Path) -> Result<WhatIfRecord> {
    let replayer = Replayer::of(&run.record, &run.steps)?;
    let Prediction { quantities, notes } = replayer.predict(changes)?;
    Ok(WhatIfRecord {
        schema: WHAT_IF_SCHEMA,
        run_id: run.record.run_id.clone(),
        what_if: changes.to_string(),
        quantities,
        replay_error: replayer.replay_error(),
        fitted: replayer.fitted(),
        checks: checks(run, &replayer, out)?,
        notes,
    })
}

/// The latest runs of the job with other settings, oldest first.
fn checks(run: &SavedRun, replayer: &Replayer, out: &Path) -> Result<Vec<HeldOut>> {
    let identity = Identity::of(&run.record);
    let machine = identity.machine_digest();
    let mut checks = Vec::new();
    let history = History::read(out)?;
    let earlier = history.runs.iter().rev().take(LOOKED_AT);
    for other in earlier.filter(|other| other.machine == machine && other.invalid.is_empty()) {
        if checks.len() == CHECKED {
            break;
        }
        // A run that was removed, or cannot be read, checks nothing.
        let Ok(record) = results::read_record(&out.join(&other.folder).join("run.json")) else {
            continue;
        };
        if let Some(check) = check(run, &identity, replayer, &record) {
            checks.push(check);
        }
    }
    checks.reverse();
    Ok(checks)
}

fn check(
    run: &SavedRun,
    identity: &Identity,
    replayer: &Replayer,
    other: &RunRecord,
) -> Option<HeldOut> {
    let predictable = |name: &str| PREDICTABLE.contains(&name) || HARMLESS.contains(&name);
    let differences = identity.differences(&Identity::of(other));
    let is_of_the_job = differences
        .iter()
        .all(|difference| predictable(&difference.name));
    // Repetitions leave out the engine's start.
    let same_kind = other.repetition.is_some() == run.record.repetition.is_some();
    if !(is_of_the_job && same_kind && other.status == Status::Complete) {
        return None;
    }
    let changes = changes_between(&run.record, other)?;
    let prediction = replayer.predict(&changes).ok()?;
    let total = (prediction.quantities.iter()).find(|one| one.quantity == "benchmark_total_ms")?;
    let measured = other.totals.benchmark_total_ms?.0;
    Some(HeldOut {
        run_id: other.run_id.clone(),
        what_if: changes.to_string(),
        predicted: total.predicted,
        measured,
        error: total.predicted / measured - 1.0,
    })
}
