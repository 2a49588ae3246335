//! An evaluation in the profile: what goes on with it, one phase after the other, under the step that
//! asked for it.

use std::time::Duration;

use crate::profile::{Activity, Span};

/// What a program is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is a model's own, and judged: start, run and end are phases of their own.
    Evaluate,
    /// It checks an answer: one phase, `verify`.
    Verify,
    /// It tries the sandbox, and is no part of the profile.
    Trial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Wait,
    StartUp,
    Run,
    Validate,
}

/// The phases of an evaluation. They begin on the thread that submits it, in its step's scope, go on
/// on the pool's thread, and end when this is dropped.
#[derive(Debug)]
pub(super) struct Phases {
    purpose: Purpose,
    phase: Phase,
    activity: Activity,
}

impl Phases {
    /// Begins to wait, within the activity that this thread is in.
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

    /// It waits once more: what it was started in has died.
    pub(super) fn wait_again(&mut self) {
        self.phase = Phase::Wait;
        self.activity.next(Span::QueueWait);
    }

    /// Its process has been asked for.
    pub(super) fn start_up(&mut self) {
        self.go_on(Phase::StartUp, Duration::ZERO);
    }

    /// Its program began so long ago.
    pub(super) fn run(&mut self, ago: Duration) {
        self.go_on(Phase::Run, ago);
    }

    /// Its program is over: the process is ended, and what it returned is judged.
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
            // The check is one phase, from its process to its verdict.
            (Purpose::Verify, _) => (self.phase == Phase::Wait).then_some(Span::Verify),
        };
        self.phase = to;
        if let Some(span) = span {
            self.activity.next_since(span, ago);
        }
    }
}
