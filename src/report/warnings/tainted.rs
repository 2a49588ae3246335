//! The warning about steps that something disturbed while they ran.

use std::collections::BTreeMap;

use super::{Gathered, warning};
use crate::record::RunRecord;
use crate::record::validity::Taint;
use crate::record::warning::Warning;
use crate::report::validity::reasons;
use crate::units::plural;

/// By the totals, or, for a run that was killed, by its steps.
pub(super) fn tainted(run: &RunRecord, gathered: &Gathered) -> Option<Warning> {
    let totals = &run.totals;
    let (steps, of_reasons) = match totals.steps_tainted {
        0 => gathered.tainted(),
        steps => (steps, &totals.tainted),
    };
    (steps > 0).then(|| {
        warning(
            "tainted",
            text(of_reasons),
            format!(
                "{steps} of {}: {}",
                plural(totals.steps_done.max(steps), "step"),
                reasons(of_reasons)
            ),
        )
    })
}

fn text(reasons: &BTreeMap<Taint, usize>) -> &'static str {
    match reasons.contains_key(&Taint::GpuLost) {
        true => "The GPU was lost while steps ran: their times mean nothing",
        false => {
            "Steps ran while the machine was disturbed: their times may be longer than it needs"
        }
    }
}
