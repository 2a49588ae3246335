//! Flags of `flowbench compare`.

use clap::Args;

use super::ResultsArgs;
use super::gates::{GateArgs, parse_share};
use crate::config::CompareFormat;
use crate::metrics::compare::{Metric, Quantity, Steps};
use crate::results::baselines;

/// `flowbench compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// The baseline: run folders, run IDs, latest~N (N runs before the latest), names of baselines, or
    /// history:N (the last N comparable runs, or as many as there are); several with commas
    pub base: String,

    /// The runs to judge, named likewise
    #[arg(default_value = "latest")]
    pub new: String,

    /// Metrics to judge, several with commas: workflow_ms, benchmark_total_ms, ttft_ms, tpot_ms, latency_ms,
    /// prefill_tokens, decode_tokens, tokens, energy_joules, reward; followed by :STEP for one step, or by :*
    /// for each step by itself
    #[arg(long, value_name = "METRIC", default_value = "workflow_ms", value_delimiter = ',', value_parser = parse_metric)]
    pub metric: Vec<Metric>,

    /// Changes up to this size do not matter
    #[arg(long, value_name = "SHARE", default_value = "3%", value_parser = parse_share)]
    pub threshold: f64,

    /// What the comparison is about, such as model,template; everything else must be equal [default: the only
    /// thing that differs]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub subject: Vec<String>,

    /// What else may differ; the verdict names it
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub allow_different: Vec<String>,

    /// By how much runs differ with nothing changed, as a standard deviation, where that is not measured
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub assume_noise: Option<f64>,

    /// When to exit with 99
    #[arg(long, value_name = "WHEN", default_value = "regression")]
    pub fail_on: FailOn,

    /// Exit with 98 if the runs do not allow a verdict
    #[arg(long)]
    pub require_verdict: bool,

    #[command(flatten)]
    pub gates: GateArgs,

    /// Let this name stand for the new runs from now on, unless the comparison fails
    #[arg(long, value_name = "NAME", value_parser = baselines::parse_name)]
    pub save_baseline: Option<String>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: CompareFormat,

    #[command(flatten)]
    pub results: ResultsArgs,
}

/// When a comparison fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FailOn {
    /// If a metric regressed.
    Regression,
    /// Never.
    Never,
}

/// `NAME`, `NAME:STEP` or `NAME:*`.
pub(super) fn parse_metric(text: &str) -> Result<Metric, String> {
    let (name, step) = match text.split_once(':') {
        Some((name, step)) => (name, Some(step)),
        None => (text, None),
    };
    let quantity: Quantity = name.parse()?;
    let steps = match step {
        None => Steps::All,
        Some("") => return Err("a step's id, or *, after the colon".to_owned()),
        Some(_) if !quantity.has_steps() => {
            return Err(format!("{quantity} is not measured by step"));
        }
        Some("*") => Steps::Each,
        Some(step) => Steps::One(step.to_owned()),
    };
    Ok(Metric { quantity, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_of_all_steps_of_one_or_of_each() {
        let steps = |text: &str| parse_metric(text).map(|metric| metric.steps);
        assert_eq!(steps("latency_ms"), Ok(Steps::All));
        assert_eq!(steps("latency_ms:*"), Ok(Steps::Each));
        assert_eq!(
            steps("tokens:child.1"),
            Ok(Steps::One("child.1".to_owned()))
        );
        for bad in [
            "latency",
            "",
            "latency_ms:",
            "workflow_ms:planner",
            "reward:*",
        ] {
            assert!(steps(bad).is_err(), "{bad}");
        }
    }
}
