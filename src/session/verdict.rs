//! How a run ended: its status, and the error that it exits with.

use crate::error::{Error, Exit};
use crate::record::{OutputComparison, Status, Totals};
use crate::units::plural;
use crate::workflow::{Outcome, Reached};

/// The verdict on a run of `num_workflows` workflows. `outputs` compares the rounds of `MODE=both`.
pub(crate) fn verdict(
    outcome: &Outcome,
    totals: &Totals,
    num_workflows: usize,
    outputs: Option<&OutputComparison>,
) -> (Status, Option<Error>) {
    let workflows = plural(num_workflows, "workflow");
    let done = totals.workflows_done;
    let failed = totals.workflows_failed;
    let incomplete = |message| {
        (
            Status::Incomplete,
            Some(Error::new(Exit::Incomplete, message)),
        )
    };
    match outcome {
        Outcome::Interrupted => incomplete(format!("interrupted after {done} of {workflows}")),
        Outcome::Limited(Reached(what)) => {
            incomplete(format!("ended at {what}, after {done} of {workflows}"))
        }
        Outcome::Ended => {
            if let Some(error) = outputs.and_then(different_outputs) {
                return (Status::Failed, Some(error));
            }
            if failed == 0 {
                return (Status::Complete, None);
            }
            let exit = match totals.steps_done {
                0 => Exit::NothingRan,
                _ => Exit::FlowFailed,
            };
            let message = format!("{failed} of {workflows} failed");
            (Status::Failed, Some(Error::new(exit, message)))
        }
    }
}

/// The error of rounds that generated different tokens.
fn different_outputs(outputs: &OutputComparison) -> Option<Error> {
    let first = outputs.first.as_ref()?;
    let (one, other) = (&first.one, &first.other);
    let message = format!(
        "outputs differ in {} of {}, first in flow {}, step {}: {} in {} (round {}), {} in {} (round {})",
        outputs.differing,
        plural(outputs.compared, "step"),
        first.flow,
        first.step,
        one.out_hash,
        one.mode,
        one.round,
        other.out_hash,
        other.mode,
        other.round
    );
    Some(Error::new(Exit::Gate, message).hint(
        "the same request must give the same tokens in any company: BACKEND=candle tells whether the forward pass or the cache is at fault",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{OutputDifference, OutputOf};

    fn differing() -> OutputComparison {
        let output = |mode: &str, out_hash: &str| OutputOf {
            mode: mode.to_owned(),
            round: 1,
            out_hash: out_hash.to_owned(),
        };
        OutputComparison {
            compared: 6,
            differing: 2,
            first: Some(OutputDifference {
                flow: 2,
                step: "executor".to_owned(),
                one: output("standalone", "e"),
                other: output("reuse", "x"),
            }),
        }
    }

    /// A run of three workflows and its verdict.
    struct Case {
        outcome: Outcome,
        /// Workflows that ended well, workflows that failed, steps.
        counts: [usize; 3],
        outputs: Option<OutputComparison>,
        status: Status,
        error: Option<(Exit, &'static str)>,
    }

    #[test]
    fn every_outcome_has_a_status_an_exit_code_and_a_message() {
        let ended = |counts, outputs, status, error| Case {
            outcome: Outcome::Ended,
            counts,
            outputs,
            status,
            error,
        };
        let early = |outcome, message| Case {
            outcome,
            counts: [1, 1, 4],
            outputs: Some(differing()),
            status: Status::Incomplete,
            error: Some((Exit::Incomplete, message)),
        };
        let same = Some(OutputComparison::default());
        let some_failed = "1 of 3 workflows failed";
        let differ = "outputs differ in 2 of 6 steps, first in flow 2, step executor: e in standalone \
                      (round 1), x in reuse (round 1)";
        let limited = Outcome::Limited(Reached("its deadline, 1 s (--deadline)".to_owned()));
        let table = [
            ended([3, 0, 9], None, Status::Complete, None),
            ended([3, 0, 9], same, Status::Complete, None),
            ended(
                [2, 1, 7],
                None,
                Status::Failed,
                Some((Exit::FlowFailed, some_failed)),
            ),
            ended(
                [0, 3, 0],
                None,
                Status::Failed,
                Some((Exit::NothingRan, "3 of 3 workflows failed")),
            ),
            ended(
                [2, 1, 7],
                Some(differing()),
                Status::Failed,
                Some((Exit::Gate, differ)),
            ),
            early(Outcome::Interrupted, "interrupted after 1 of 3 workflows"),
            early(
                limited,
                "ended at its deadline, 1 s (--deadline), after 1 of 3 workflows",
            ),
        ];
        for case in table {
            let [workflows_done, workflows_failed, steps_done] = case.counts;
            let totals = Totals {
                workflows_done,
                workflows_failed,
                steps_done,
                ..Totals::default()
            };
            let (status, error) = verdict(&case.outcome, &totals, 3, case.outputs.as_ref());
            let error = error.map(|error| (error.exit(), error.to_string()));
            let expected = (case.error).map(|(exit, message)| (exit, message.to_owned()));
            assert_eq!((status, error), (case.status, expected));
        }
    }
}
