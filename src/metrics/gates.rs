//! Limits that a run must keep by itself: a metric's maximum, and goodput, the share of requests that keep all
//! objectives of their service level.

use std::str::FromStr;

use super::compare::{Metric, Quantity, RunMetric, Steps, of_run};
use crate::config::Gates;
use crate::record::compare::{GateResult, MeasuredRun, MeasuredStep};
use crate::units::Millis;

/// `METRIC:VALUE`: the metric's mean must not be larger.
#[derive(Debug, Clone, PartialEq)]
pub struct Max {
    metric: Metric,
    limit: f64,
    text: String,
}

/// An objective of a service level, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    what: Latency,
    limit: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Latency {
    Ttft,
    Tpot,
    E2el,
}

impl FromStr for Max {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected METRIC:VALUE, such as ttft_ms:200, not {text:?}");
        let (metric, limit) = text.rsplit_once(':').ok_or_else(expected)?;
        let limit: f64 = limit.parse().map_err(|_| expected())?;
        if !(limit.is_finite() && limit > 0.0) {
            return Err(format!("{text}: the limit must be above 0"));
        }
        let (name, step) = match metric.split_once(':') {
            Some((name, step)) => (name, Some(step)),
            None => (metric, None),
        };
        let quantity: Quantity = name.parse()?;
        let steps = match step {
            None => Steps::All,
            Some(step) if quantity.has_steps() && !step.is_empty() && step != "*" => {
                Steps::One(step.to_owned())
            }
            Some(step) => return Err(format!("{quantity} has no step {step:?}")),
        };
        Ok(Self {
            metric: Metric { quantity, steps },
            limit,
            text: text.to_owned(),
        })
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected ttft:TIME, tpot:TIME or e2el:TIME, not {text:?}");
        let (what, limit) = text.split_once(':').ok_or_else(expected)?;
        let what = match what {
            "ttft" => Latency::Ttft,
            "tpot" => Latency::Tpot,
            "e2el" => Latency::E2el,
            _ => return Err(expected()),
        };
        let (number, unit) = match limit.strip_suffix("ms") {
            Some(number) => (number, 1.0),
            None => (limit.strip_suffix('s').ok_or_else(expected)?, 1e3),
        };
        let number: f64 = number.parse().map_err(|_| expected())?;
        if !(number.is_finite() && number > 0.0) {
            return Err(format!("{text}: the time must be above 0"));
        }
        let limit = Millis(number * unit);
        Ok(Self { what, limit })
    }
}

impl Objective {
    fn is_met(self, step: &MeasuredStep) -> bool {
        let value = match self.what {
            Latency::Ttft => step.ttft_ms,
            // A single token has none, and keeps any limit.
            Latency::Tpot => Some(step.tpot_ms.unwrap_or_default()),
            Latency::E2el => Some(step.latency_ms),
        };
        value.is_some_and(|value| value <= self.limit)
    }
}

impl Max {
    /// Whether a run with these metrics keeps the limit; `None` if it does not have the metric.
    fn check(&self, metrics: &[RunMetric]) -> Option<GateResult> {
        let step = match &self.metric.steps {
            Steps::One(step) => Some(step),
            _ => None,
        };
        let found = metrics.iter().find(|metric| {
            metric.selected.quantity == self.metric.quantity
                && metric.selected.step.as_ref() == step
        })?;
        Some(GateResult {
            gate: "max".to_owned(),
            limit: self.text.clone(),
            value: found.mean,
            passed: found.mean <= self.limit,
        })
    }
}

/// What comes of all limits of `settings`.
///
/// # Errors
/// In words, if a limit is malformed or the run does not have its metric.
pub fn check(run: &MeasuredRun, settings: &Gates) -> Result<Vec<GateResult>, String> {
    let mut results = Vec::new();
    let metrics = match settings.max.is_empty() {
        true => Vec::new(),
        false => of_run(run),
    };
    for text in &settings.max {
        let result = text.parse::<Max>()?.check(&metrics);
        results.push(result.ok_or_else(|| format!("the run does not have the metric of {text}"))?);
    }
    if !settings.goodput.is_empty() {
        let objectives = settings.goodput.iter().map(|text| text.parse());
        let objectives = objectives.collect::<Result<Vec<Objective>, String>>()?;
        let workflows = run.record.workflows.iter();
        let failed = workflows.filter(|workflow| workflow.error.is_some());
        let missing = failed.map(|workflow| workflow.steps.saturating_sub(workflow.steps_done));
        let text = settings.goodput.join(",");
        let least = settings.min_goodput.unwrap_or(0.0);
        results.push(goodput(run, &objectives, least, missing.sum(), text));
    }
    Ok(results)
}

/// The share of requests that keep all objectives. Requests of workflows that failed, and requests that failed,
/// keep none: `missing` is their number.
fn goodput(
    run: &MeasuredRun,
    objectives: &[Objective],
    least: f64,
    missing: usize,
    text: String,
) -> GateResult {
    let requests: Vec<&MeasuredStep> = run.steps.iter().filter(|step| step.generates()).collect();
    let good = requests
        .iter()
        .filter(|step| objectives.iter().all(|objective| objective.is_met(step)));
    let all = (requests.len() + missing).max(1);
    let value = good.count() as f64 / all as f64;
    GateResult {
        gate: "goodput".to_owned(),
        limit: text,
        value,
        passed: value >= least,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::compare::made::run;

    #[test]
    fn limits_and_objectives_are_read() {
        for good in [
            "ttft_ms:200",
            "latency_ms:planner:1.5",
            "benchmark_total_ms:1e6",
        ] {
            assert!(good.parse::<Max>().is_ok(), "{good}");
        }
        for bad in [
            "ttft_ms",
            "ttft_ms:",
            "ttft_ms:-1",
            "x:1",
            "workflow_ms:planner:1",
            "ttft_ms:NaN",
            "ttft_ms:*:1",
        ] {
            assert!(bad.parse::<Max>().is_err(), "{bad}");
        }
        let objective = "e2el:1.5s".parse::<Objective>().expect("sound");
        assert_eq!(objective.limit, Millis(1500.0));
        for bad in [
            "e2el",
            "e2el:1",
            "e2el:0s",
            "itl:2ms",
            "ttft:-1ms",
            "ttft:xs",
        ] {
            assert!(bad.parse::<Objective>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_maximum_is_kept_or_not() {
        // Two steps of 100 ms a flow.
        let run = run("a", 4, |_, _| 1.0);
        let metrics = of_run(&run);
        let check = |text: &str| text.parse::<Max>().expect("sound").check(&metrics);
        assert!(check("latency_ms:101").is_some_and(|gate| gate.passed));
        let failed = check("latency_ms:executor:99").expect("measured");
        assert!(
            !failed.passed && (failed.value - 100.0).abs() < 1e-9,
            "{failed:?}"
        );
        assert_eq!(check("energy_joules:1"), None);
        assert_eq!(check("latency_ms:other:1"), None);
    }

    #[test]
    fn goodput_counts_requests_that_keep_every_objective() {
        let slow = |flow: usize, _: usize| if flow == 1 { 3.0 } else { 1.0 };
        let run = run("a", 4, slow);
        let share = |objectives: &[&str], missing: usize| {
            let objectives: Vec<Objective> = objectives
                .iter()
                .map(|text| text.parse().expect("sound"))
                .collect();
            goodput(&run, &objectives, 0.9, missing, String::new())
        };
        assert_eq!(share(&["e2el:150ms"], 0).value, 0.75);
        assert!(!share(&["e2el:150ms"], 0).passed);
        assert!(share(&["e2el:1s", "ttft:1s"], 0).passed);
        assert_eq!(share(&["e2el:150ms"], 8).value, 6.0 / 16.0);
    }
}
