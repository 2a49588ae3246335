//! What a run has beside its engine: the pool for generated programs, the verifier, the accounts and
//! recorded texts.

use crate::config::RunConfig;
use crate::engine::{Engine, Script};
use crate::error::Result;
use crate::evaluate::verify::Verifier;
use crate::evaluate::{Pool, Settings};
use crate::flow::{Flow, Work};
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
        let evaluates = |flow: &Flow| {
            let mut steps = flow.steps.iter();
            steps.any(|step| matches!(step.work, Work::Evaluate(_)))
        };
        let mut support = Self {
            evaluator: None,
            verifier: Verifier::default(),
            accounts: Accounts::new("", config.workflow.prices, config.workflow.limits),
            pins,
        };
        if !flows.iter().any(evaluates) {
            return Ok((support, None));
        }
        console.waiting("Starting the evaluation pool");
        let start = Moment::now(&NoFence)?;
        let mut settings = Settings::new(
            &config.workflow.python,
            config.workflow.python_environment.clone(),
        );
        settings.unsafe_eval = config.workflow.unsafe_eval;
        let started = Pool::start(settings);
        console.idle();
        support.evaluator = Some(started?);
        Ok((support, Some(Moment::now(&NoFence)?.since(start))))
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
