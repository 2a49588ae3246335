//! What a run uses besides its engine: the pool for generated programs, the verifier, usage accounts, and
//! pinned outputs.

use std::collections::HashSet;

use crate::config::RunConfig;
use crate::engine::{Engine, Script};
use crate::error::{Error, Result};
use crate::evaluate::verify::plain::pattern;
use crate::evaluate::{Pool, Settings, Verifier, VerifierSettings};
use crate::flow::{Flow, How, Part, Verify, Work};
use crate::profile::{self, Span};
use crate::record::evaluation::{EvaluatorRecord, VerificationRecord};
use crate::report::Console;
use crate::stopwatch::{Moment, NoFence};
use crate::units::Millis;
use crate::workflow::{Accounts, Services};

/// Modules that a prompt may tell a model to use, and that Python may lack.
const MODULES: [&str; 9] = [
    "numpy", "scipy", "sympy", "networkx", "pandas", "shapely", "numba", "cvxpy", "ortools",
];

/// How many flows' prompts are searched for modules; flows of one template hardly differ in this.
const SEARCHED_FLOWS: usize = 25;

/// The module that steps of kind `verify` use.
const MATH_VERIFY: &str = "math_verify";

pub(super) struct RunServices {
    evaluator: Option<Pool>,
    verifier: Verifier,
    verifies: bool,
    pub(super) accounts: Accounts,
    pins: Option<Script>,
}

impl RunServices {
    /// Starts the services, before the engine is loaded. Returns how long the pool took to start, if the
    /// flows need one.
    ///
    /// # Errors
    /// Exit code 3 if programs cannot be run safely, 2 for a recording that cannot be read.
    pub(super) fn start(
        config: &RunConfig,
        flows: &[Flow],
        console: &mut Console,
    ) -> Result<(Self, Option<Millis>)> {
        let pins = config.job.pin_outputs.as_deref();
        let pins = pins.map(Script::read).transpose()?;
        let mut services = Self {
            evaluator: None,
            verifier: Verifier::default(),
            verifies: false,
            accounts: Accounts::new("", config.job.prices, config.job.limits),
            pins,
        };
        let any = |is: fn(&Work) -> bool| {
            let mut steps = flows.iter().flat_map(|flow| &flow.steps);
            steps.any(|step| is(&step.work))
        };
        let evaluates = any(|work| matches!(work, Work::Evaluate(_)));
        let verifies = any(|work| matches!(work, Work::Verify(verify) if verify.how == How::Math));
        check_patterns(flows)?;
        if !evaluates && !verifies {
            return Ok((services, None));
        }
        let mut settings = Settings::new(
            &config.machine.python,
            config.machine.python_environment.clone(),
        );
        settings.unsafe_eval = config.job.unsafe_eval;
        if evaluates {
            settings.wanted = modules_in_prompts(flows);
        }
        console.waiting("Starting the evaluation pool");
        let start = Moment::now(&NoFence)?;
        let span = profile::span(Span::PoolInit);
        let started = services.start_processes(settings, evaluates, verifies);
        console.idle();
        drop(span);
        started?;
        services.warn_of_missing_modules(&config.machine.python.display().to_string(), console);
        Ok((services, Some(Moment::now(&NoFence)?.since(start))))
    }

    /// Warns of modules that Python lacks: every answer that needs one would fail for the same reason.
    fn warn_of_missing_modules(&self, python: &str, console: &mut Console) {
        for module in self.missing() {
            let (package, why) = match module.as_str() {
                MATH_VERIFY => (
                    "math-verify",
                    "answers that plain numerals do not decide stay undecided",
                ),
                module => (
                    module,
                    "the prompts name it, and programs that import it fail",
                ),
            };
            console.warning(&format!(
                "warning: {python} has no {package}: {why}\n\
                 hint: `{python} -m pip install {package}`, or name another Python (PYTHON, --python)"
            ));
        }
    }

    fn missing(&self) -> Vec<String> {
        let of_programs = self
            .evaluator
            .iter()
            .flat_map(|pool| &pool.python().missing);
        let mut missing: Vec<String> = of_programs.cloned().collect();
        if self.verifies && self.verifier.library().is_err() {
            missing.push(MATH_VERIFY.to_owned());
        }
        missing
    }

    /// `None` if no step evaluates or verifies.
    pub(super) fn evaluator_record(&self) -> Option<EvaluatorRecord> {
        let python = self.evaluator.as_ref().map(Pool::python);
        (self.verifies || python.is_some()).then(|| EvaluatorRecord {
            python: python.map(|python| python.version.clone()),
            modules: python
                .map(|python| python.loaded.clone())
                .unwrap_or_default(),
            missing: self.missing(),
            fixed_addresses: python.map(|python| python.fixed_addresses),
            sandboxed: python.map(|python| python.sandboxed),
        })
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
        self.verifies = verifies;
        if verifies {
            self.verifier = Verifier::start(VerifierSettings::new(settings))?;
        }
        Ok(())
    }

    /// `None` if no answer was checked.
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

    pub(super) fn with_engine<'a>(&'a mut self, engine: &'a mut dyn Engine) -> Services<'a> {
        self.accounts.set_model(&engine.info().model);
        Services {
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

/// The [`MODULES`] that the flows' prompts name.
fn modules_in_prompts(flows: &[Flow]) -> Vec<String> {
    let mut remaining: Vec<&str> = MODULES.to_vec();
    let mut named = Vec::new();
    let mut look = |text: &str| {
        remaining.retain(|module| {
            let is_named = holds_word(text, module);
            if is_named {
                named.push((*module).to_owned());
            }
            !is_named
        });
    };
    for flow in flows.iter().take(SEARCHED_FLOWS) {
        look(flow.system.as_deref().unwrap_or_default());
        for step in &flow.steps {
            if let Work::Generate(generate) = &step.work {
                let texts = generate.prompt.iter().filter_map(Part::as_text);
                texts.for_each(&mut look);
            }
        }
    }
    named
}

fn holds_word(text: &str, word: &str) -> bool {
    let is_part = |letter: char| letter == '_' || letter.is_alphanumeric();
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// Checks the patterns of `how = "regex"`, before a model is loaded.
fn check_patterns(flows: &[Flow]) -> Result<()> {
    let mut checked = HashSet::new();
    for flow in flows {
        for step in &flow.steps {
            let Work::Verify(Verify {
                how: How::Regex,
                expected,
                ..
            }) = &step.work
            else {
                continue;
            };
            // What is read from another step is not known yet.
            let known: Option<Vec<&str>> = expected.iter().map(Part::as_text).collect();
            let Some(text) = known.map(|parts| parts.concat()) else {
                continue;
            };
            if checked.contains(&text) {
                continue;
            }
            pattern(&text).map_err(|why| {
                Error::usage(format!(
                    "flow {}, step {}: the expected text is no pattern: {why}",
                    flow.flow, step.id
                ))
                .hint("how = \"regex\" takes the syntax of https://docs.rs/regex; a backslash takes a special character as it is")
            })?;
            checked.insert(text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_as_words() {
        for (text, is_there) in [
            ("You may use numpy and math.", true),
            ("(`numpy`)", true),
            ("import numpy as np", true),
            ("numpy_like", false),
            ("", false),
        ] {
            assert_eq!(holds_word(text, "numpy"), is_there, "{text}");
        }
    }
}
