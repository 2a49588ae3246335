//! Workflow flags of `run`: parameters, programs, input and output rows, limits, recordings.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::{ProcessEnv, parse_count};
use crate::config::{Limits, Prices, RolloutFiles, RolloutRows, Rollouts};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Args)]
pub(super) struct WorkflowArgs {
    /// Override template parameters: max_generations=5,timeout_ms=2000
    #[arg(long = "set", env = "PARAMS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = parse_setting)]
    set: Vec<(String, String)>,

    /// Python interpreter for generated programs
    #[arg(long, env, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,

    /// 1: run generated programs without a sandbox if this machine does not support one; only for
    /// programs that you trust
    #[arg(long, env, value_name = "UNSAFE_EVAL", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    unsafe_eval: bool,

    /// JSON Lines file of rows to use in place of the template's suite; each row gets one flow, or
    /// --repeats flows
    #[arg(long, env = "ROLLOUT_INPUT", value_name = "INPUT")]
    input: Option<PathBuf>,

    /// Write each row of --input to this file, with its response, usage, reward and outcome
    #[arg(
        long,
        env = "ROLLOUT_OUTPUT",
        value_name = "OUTPUT",
        requires = "input"
    )]
    output: Option<PathBuf>,

    /// Use only the first N rows of --input
    #[arg(long, env = "ROLLOUT_LIMIT", value_name = "LIMIT", requires = "input", value_parser = parse_count)]
    limit: Option<usize>,

    /// Flows per row of --input
    #[arg(long, env = "ROLLOUT_REPEATS", value_name = "REPEATS", default_value = "1", value_parser = parse_count)]
    repeats: usize,

    /// Go on with an interrupted run in its folder: RUN is the folder, its run.json, the run's ID in OUT, or
    /// latest. What has ended is kept, the rest is run. Without RUN: start a new run that skips the rows that
    /// are already in --output (ROLLOUT_RESUME=1)
    #[arg(long, env, value_name = "RUN", value_parser = parse_resume, num_args = 0..=1, default_missing_value = "1")]
    resume: Option<Resume>,

    /// Stop when prompt and output tokens together reach this number
    #[arg(long, env, value_name = "MAX_TOKENS_TOTAL", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens_total: Option<u64>,

    /// Stop when the cost of the requests reaches this amount, at the prices below
    #[arg(long, env, value_name = "MAX_COST", value_parser = parse_positive)]
    max_cost: Option<f64>,

    /// Stop this long after the engine was requested: seconds, or with a unit (90s, 30m, 2h)
    #[arg(long, env, value_name = "DEADLINE", value_parser = parse_duration)]
    deadline: Option<Duration>,

    /// Price per million prompt tokens
    #[arg(long, env, value_name = "PRICE_PROMPT", value_parser = parse_price)]
    price_prompt: Option<f64>,

    /// Price per million prompt tokens served from the prefix cache [default: --price-prompt]
    #[arg(long, env, value_name = "PRICE_CACHED", value_parser = parse_price)]
    price_cached: Option<f64>,

    /// Price per million generated tokens
    #[arg(long, env, value_name = "PRICE_DECODE", value_parser = parse_price)]
    price_decode: Option<f64>,

    /// Save the answers to this file, as a script for MODE=scripted and --pin-outputs
    #[arg(long, env, value_name = "RECORD")]
    record: Option<PathBuf>,

    /// Pass the texts of this recording to later steps, in place of the generated ones
    #[arg(long, env, value_name = "PIN_OUTPUTS")]
    pin_outputs: Option<PathBuf>,
}

/// [`WorkflowArgs`], checked.
pub(super) struct WorkflowSettings {
    pub(super) params: Vec<(String, String)>,
    pub(super) python: PathBuf,
    pub(super) unsafe_eval: bool,
    pub(super) rollouts: Option<Rollouts>,
    pub(super) limits: Limits,
    pub(super) prices: Option<Prices>,
    pub(super) record: Option<PathBuf>,
    pub(super) pin_outputs: Option<PathBuf>,
    /// The run to go on with.
    pub(super) resume: Option<String>,
}

/// The value of `--resume`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Resume {
    /// `0`, as in a variable.
    Off,
    /// No value: the rows of `--output`.
    Rows,
    Run(String),
}

impl WorkflowArgs {
    /// # Errors
    /// Exit code 2 for settings that need one another, or an invalid variable.
    pub(super) fn resolve(self, environment: &ProcessEnv) -> Result<WorkflowSettings> {
        let resumes_rows = match self.resume {
            None => environment.resumes_rows()?,
            Some(Resume::Off | Resume::Run(_)) => false,
            Some(Resume::Rows) => true,
        };
        let resume = match self.resume {
            Some(Resume::Run(run)) => Some(run),
            _ => None,
        };
        let prices = match (self.price_prompt, self.price_decode) {
            (None, None) if self.price_cached.is_none() => None,
            (Some(prompt), Some(decode)) => Some(Prices {
                prompt,
                cached: self.price_cached.unwrap_or(prompt),
                decode,
            }),
            _ => {
                return Err(Error::usage("only some of the prices are given")
                    .hint("give --price-prompt and --price-decode, each per million tokens"));
            }
        };
        if self.max_cost.is_some() && prices.is_none() {
            return Err(Error::usage("--max-cost is given without prices")
                .hint("give --price-prompt and --price-decode, each per million tokens"));
        }
        if resumes_rows && self.output.is_none() {
            return Err(Error::usage("--resume is given without --output").hint(
                "--resume RUN goes on with a run (latest: the last one); without RUN, it \
                     continues the file given with --output",
            ));
        }
        if self.repeats > 1 && self.input.is_none() {
            return Err(Error::usage("--repeats is given without --input")
                .hint("without --input, NUM_FLOWS sets the number of flows"));
        }
        Ok(WorkflowSettings {
            params: self.set,
            python: self.python,
            unsafe_eval: self.unsafe_eval,
            rollouts: self.input.map(|input| Rollouts {
                rows: RolloutRows {
                    limit: self.limit,
                    repeats: self.repeats,
                },
                files: RolloutFiles {
                    input,
                    output: self.output,
                    resume: resumes_rows,
                },
            }),
            limits: Limits {
                tokens: self.max_tokens_total,
                cost: self.max_cost,
                deadline_s: self.deadline.map(|time| time.as_secs_f64()),
            },
            prices,
            record: self.record,
            pin_outputs: self.pin_outputs,
            resume,
        })
    }
}

pub(super) fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// `1` and `0` are the values that ROLLOUT_RESUME has; a run with such a name can be given as a path.
fn parse_resume(text: &str) -> Result<Resume, String> {
    match switch(text) {
        _ if text.is_empty() => Ok(Resume::Off),
        Some(true) => Ok(Resume::Rows),
        Some(false) => Ok(Resume::Off),
        None => Ok(Resume::Run(text.to_owned())),
    }
}

/// A value of a switch.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn parse_positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn parse_price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a price per million tokens, at least 0".to_owned()),
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time such as 90, 90s, 30m or 2h".to_owned();
    let (number, unit) = match text.trim_end_matches(['s', 'm', 'h']) {
        number if number.len() + 1 >= text.len() => (number, &text[number.len()..]),
        _ => return Err(wrong()),
    };
    let seconds = match unit {
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => 3600.0,
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_a_unit() {
        let seconds = |text| parse_duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("90"), Ok(90.0));
        assert_eq!(seconds("1.5s"), Ok(1.5));
        assert_eq!(seconds("30m"), Ok(1800.0));
        assert_eq!(seconds("2h"), Ok(7200.0));
        for bad in ["", "s", "0", "-1", "1d", "1ms", "nan", "1e300h", "5mm"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resume_takes_a_run_or_no_value() {
        for (text, expected) in [
            ("", Resume::Off),
            ("0", Resume::Off),
            ("1", Resume::Rows),
            ("True", Resume::Rows),
            ("latest", Resume::Run("latest".to_owned())),
            ("./1", Resume::Run("./1".to_owned())),
        ] {
            assert_eq!(parse_resume(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn parameters_are_name_value_pairs() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(parse_setting("a=1"), pair("a", "1"));
        assert_eq!(parse_setting("a = x=y"), pair("a", "x=y"));
        assert!(parse_setting("=1").is_err() && parse_setting("a").is_err());
    }
}
