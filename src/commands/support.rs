//! What a run has beside its engine: the pool for generated programs, the verifier, the accounts and
//! recorded texts.

use crate::config::RunConfig;
use crate::engine::{Engine, Script};
use crate::error::Result;
use crate::evaluate::{Pool, Settings, Verifier, VerifierSettings};
use crate::flow::{Flow, Work};
use crate::profile::{self, Span};
use crate::record::evaluation::VerificationRecord;
use crate::report::Console;
use crate::stopwatch::{Moment, NoFence};
use crate::units::Millis;
use crate::workflow::{Accounts, Means};

/// What a run has beside its engine.
pub(super) struct Support {
    evaluator: Option<Pool>,
    verifier: Verifier,
    pub(super) accounts: Accounts,
    pins: Option<Script>,
}

impl Support {
    /// Makes it ready, before the engine is loaded. Returns how long the start of the pool took, where
    /// the flows need one.
    ///
    /// # Errors
    /// Exit code 3 where programs cannot be run safely, 2 for a recording that cannot be read.
    pub(super) fn start(
        config: &RunConfig,
        flows: &[Flow],
        console: &mut Console,
    ) -> Result<(Self, Option<Millis>)> {
        let pins = config.workflow.pin_outputs.as_deref();
        let pins = pins.map(Script::read).transpose()?;
        let mut support = Self {
            evaluator: None,
            verifier: Verifier::default(),
            accounts: Accounts::new("", config.workflow.prices, config.workflow.limits),
            pins,
        };
        let any = |is: fn(&Work) -> bool| {
            let mut steps = flows.iter().flat_map(|flow| &flow.steps);
            steps.any(|step| is(&step.work))
        };
        let evaluates = any(|work| matches!(work, Work::Evaluate(_)));
        let verifies = any(|work| matches!(work, Work::Verify(_)));
        if !evaluates && !verifies {
            return Ok((support, None));
        }
        let mut settings = Settings::new(
            &config.workflow.python,
            config.workflow.python_environment.clone(),
        );
        settings.unsafe_eval = config.workflow.unsafe_eval;
        console.waiting("Starting the evaluation pool");
        let start = Moment::now(&NoFence)?;
        let span = profile::span(Span::PoolInit);
        let started = support.start_processes(settings, evaluates, verifies);
        console.idle();
        drop(span);
        started?;
        Ok((support, Some(Moment::now(&NoFence)?.since(start))))
    }

    fn start_processes(
        &mut self,
        settings: Settings,
        evaluates: bool,
        verifies: bool,
    ) -> Result<()> {
        if evaluates {
            self.evaluator = Some(Pool::start(settings.clone())?);
        }
        if verifies {
            self.verifier = Verifier::start(VerifierSettings::new(settings))?;
        }
        Ok(())
    }

    /// How answers were checked, where any were.
    pub(super) fn verification(&self) -> Option<VerificationRecord> {
        let counts = self.verifier.counts();
        let library = self.verifier.library();
        let asked = counts.in_process + counts.by_library + counts.hits;
        (asked > 0).then(|| VerificationRecord {
            library: library.ok().map(|version| format!("math-verify {version}")),
            no_library: library.err().map(str::to_owned),
            in_process: counts.in_process,
            by_library: counts.by_library,
            cached: counts.hits,
        })
    }

    /// The means of a run on `engine`.
    pub(super) fn means<'a>(&'a mut self, engine: &'a mut dyn Engine) -> Means<'a> {
        self.accounts.set_model(&engine.info().model);
        Means {
            engine,
            evaluator: match &mut self.evaluator {
                Some(evaluator) => Some(evaluator),
                None => None,
            },
            verifier: &mut self.verifier,
            accounts: &mut self.accounts,
            pins: self.pins.as_ref(),
        }
    }
}
