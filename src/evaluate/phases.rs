//! An evaluation in the profile: one phase after another, under the step that submitted it.

use std::time::Duration;

use crate::profile::{Activity, Span};

/// Why a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A model's own program, which is judged: start, run and end are separate phases.
    Evaluate,
    /// A check of an answer, shown as the single phase `verify`.
    Verify,
    /// A sandbox self-test, not shown in the profile.
    Trial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Wait,
    StartUp,
    Run,
    Validate,
}

/// The phases of an evaluation. They begin on the submitting thread in its step's scope, continue on the
/// pool's thread, and end when this is dropped.
#[derive(Debug)]
pub(super) struct Phases {
    purpose: Purpose,
    phase: Phase,
    activity: Activity,
}

impl Phases {
    /// Starts waiting, inside the current activity of this thread.
    pub(super) fn begin(purpose: Purpose) -> Self {
        Self {
            purpose,
            phase: Phase::Wait,
            activity: match purpose {
                Purpose::Trial => Activity::default(),
                Purpose::Evaluate | Purpose::Verify => Activity::in_scope(Span::QueueWait),
            },
        }
    }

    /// Back to the queue: the zygote died.
    pub(super) fn wait_again(&mut self) {
        self.phase = Phase::Wait;
        self.activity.next(Span::QueueWait);
    }

    /// A process has been requested.
    pub(super) fn start_up(&mut self) {
        self.go_on(Phase::StartUp, Duration::ZERO);
    }

    /// The program started `ago` earlier.
    pub(super) fn run(&mut self, ago: Duration) {
        self.go_on(Phase::Run, ago);
    }

    /// The program is over: its process is ended and its result is judged.
    pub(super) fn validate(&mut self) {
        self.go_on(Phase::Validate, Duration::ZERO);
    }

    fn go_on(&mut self, to: Phase, ago: Duration) {
        if to <= self.phase {
            return;
        }
        let span = match (self.purpose, to) {
            (Purpose::Trial, _) | (_, Phase::Wait) => None,
            (Purpose::Evaluate, Phase::StartUp) => Some(Span::EvaluateStartUp),
            (Purpose::Evaluate, Phase::Run) => Some(Span::EvaluateRun),
            (Purpose::Evaluate, Phase::Validate) => Some(Span::EvaluateValidate),
            // A check is a single phase, from its process to its verdict.
            (Purpose::Verify, _) => (self.phase == Phase::Wait).then_some(Span::Verify),
        };
        self.phase = to;
        if let Some(span) = span {
            self.activity.next_since(span, ago);
        }
    }
}
