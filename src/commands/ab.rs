//! `flowbench ab`: two settings in turns, until their difference is settled.

use std::sync::atomic::AtomicBool;

use super::compare::show;
use crate::cli::AbArgs;
use crate::error::{Exit, Result};
use crate::record::compare::Verdict;
use crate::report::Console;
use crate::session::{self, AbRequest};

/// # Errors
/// See [`session::ab`]. If it was stopped after its first round, what was measured is shown, and the error says why
/// it was: exit code 106 for an interrupt and a run that was killed, that of a run that failed.
pub(super) fn run(
    arguments: &AbArgs,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let outcome = session::ab(
        &AbRequest {
            arms: arguments.arms(),
            out: &arguments.results.folder(),
            metric: &arguments.metric,
            threshold: arguments.threshold,
            max_rounds: arguments.max_rounds,
            deadline: arguments.deadline,
            one_at_a_time: arguments.one_at_a_time,
        },
        console,
        interrupted,
    )?;
    show(&outcome.record, &outcome.folder, arguments.output, console)?;
    if let Some(stopped) = outcome.stopped {
        return Err(stopped);
    }
    Ok(match outcome.record.verdict {
        Verdict::Regressed => Exit::Gate,
        Verdict::NoVerdict if arguments.require_verdict => Exit::Invalid,
        _ => Exit::Done,
    })
}
