//! Whether a run may be judged by: reasons why its figures would pass a gate, or fail it, for the wrong cause.

use crate::record::compare::{Invalid, MeasuredRun, MeasuredStep};
use crate::record::gpu::is_setting;
use crate::record::validity::Taint;
use crate::units::plural;

/// A baseline with this many times the new run's tokens for the same steps: the work is gone.
const FEW_TOKENS: f64 = 0.5;

/// Throttled steps above this share: fewer hardly move a mean, and a card at its power limit is throttled now and
/// then.
const THROTTLED_SHARE: f64 = 0.1;

/// No change of a program makes a run this much faster.
const IMPLAUSIBLE: f64 = 10.0;

/// Reasons that a run shows by itself.
pub fn invalid(run: &MeasuredRun) -> Vec<Invalid> {
    let record = &run.record;
    let mut found = Found::new(&record.run_id);
    let flows = record.expansion.num_flows;
    let expected = record.shard.map_or(flows, |shard| shard.count(flows));
    let done = record.totals.workflows_done;
    let rounds = record
        .comparison
        .as_ref()
        .map_or(1, |_| 2 * setting(run, "rounds"));
    if done < expected * rounds {
        let expected = plural(expected * rounds, "workflow");
        found.add("flows_missing", format!("{done} of {expected} ended well"));
    }
    let generates = run.steps.iter().any(MeasuredStep::generates);
    if done > 0 && generates && record.totals.tokens.decode == 0 {
        found.add("no_tokens", "no token was generated".to_owned());
    }
    let is_standalone = |step: &&MeasuredStep| {
        let mode = step.mode.as_deref();
        mode.or_else(|| record.settings.get("mode")?.as_str()) == Some("standalone")
    };
    let local = record.engine.get("kind").and_then(|kind| kind.as_str()) == Some("local");
    let standalone = run.steps.iter().filter(is_standalone);
    let reused: usize = standalone.map(|step| step.tokens.reused).sum();
    if local && reused > 0 {
        let tokens = plural(reused, "token");
        let detail = format!("{tokens} reused in MODE=standalone, which keeps nothing");
        found.add("reused_tokens", detail);
    }
    watched(run, &mut found);
    // What a thread has watched over the whole run says more than the two readings.
    let gpu = record.gpu.as_ref();
    if let Some(gpu) = gpu.filter(|_| record.validity.is_none()) {
        let reasons = gpu.throttle.iter().map(String::as_str);
        let reasons: Vec<&str> = reasons.filter(|reason| !is_setting(reason)).collect();
        if !reasons.is_empty() {
            found.add(
                "throttled",
                format!("the GPU was throttled: {}", reasons.join(", ")),
            );
        }
        if !gpu.other_processes.is_empty() {
            let others = plural(gpu.other_processes.len(), "other process");
            found.add("gpu_shared", format!("{others} on the GPU"));
        }
    }
    found.all
}

/// Reasons that were seen while the run went on.
fn watched(run: &MeasuredRun, found: &mut Found) {
    const THROTTLED: [Taint; 5] = [
        Taint::SwPowerCap,
        Taint::SwThermal,
        Taint::HwSlowdown,
        Taint::HwThermal,
        Taint::HwPowerBrake,
    ];
    let with = |taints: &[Taint]| {
        let is_one = |step: &&MeasuredStep| step.tainted.iter().any(|taint| taints.contains(taint));
        run.steps.iter().filter(is_one).count()
    };
    let steps = plural(run.steps.len(), "step");
    let throttled = with(&THROTTLED);
    if throttled as f64 > THROTTLED_SHARE * run.steps.len() as f64 {
        let detail = format!("the GPU was throttled in {throttled} of {steps}");
        found.add("throttled", detail);
    }
    let any = [
        (
            Taint::OtherProcess,
            "gpu_shared",
            "another process used the GPU",
        ),
        (Taint::GpuLost, "gpu_lost", "the GPU was lost"),
        (
            Taint::ClockJump,
            "clock_jump",
            "the wall clock was set, or the machine suspended,",
        ),
    ];
    for (taint, reason, what) in any {
        match with(&[taint]) {
            0 => {}
            tainted => found.add(reason, format!("{what} in {tainted} of {steps}")),
        }
    }
}

/// Reasons that show only beside a baseline. `explained`: the subject of the comparison explains another
/// amount of work.
pub fn invalid_beside(base: &[MeasuredRun], new: &MeasuredRun, explained: bool) -> Vec<Invalid> {
    let mut found = Found::new(&new.record.run_id);
    let mean = |value: &dyn Fn(&MeasuredRun) -> Option<f64>| {
        let values: Option<Vec<f64>> = base.iter().map(value).collect();
        crate::statistics::mean(&values?)
    };
    let tokens = |run: &MeasuredRun| -> Option<f64> {
        let done = run.record.totals.workflows_done;
        (done > 0).then(|| run.record.totals.tokens.decode as f64 / done as f64)
    };
    if let (Some(before), Some(after)) = (mean(&tokens), tokens(new))
        && after < before * FEW_TOKENS
    {
        found.add(
            "few_tokens",
            format!("{after:.0} generated tokens a flow, {before:.0} in the baseline"),
        );
    }
    let time = |run: &MeasuredRun| run.record.totals.avg_workflow_ms.map(|ms| ms.0);
    if let (Some(before), Some(after)) = (mean(&time), time(new))
        && after * IMPLAUSIBLE < before
        && !explained
    {
        found.add(
            "implausible",
            format!("{before:.1} ms a workflow became {after:.1} ms, and nothing explains it"),
        );
    }
    let warm = |run: &MeasuredRun| warm_start(run);
    if let (Some(cold), Some(tokens)) = (base.iter().find(|run| warm(run) == Some(0)), warm(new))
        && tokens > 0
    {
        let base = &cold.record.run_id;
        let tokens = plural(tokens, "token");
        let detail = format!(
            "the server had {tokens} of the first request in its cache, and none when {base} began"
        );
        found.add("warm_cache", detail);
    }
    found.all
}

/// How many tokens of its first request a server had cached; `None` if the run used no server.
fn warm_start(run: &MeasuredRun) -> Option<usize> {
    let kind = run.record.engine.get("kind")?.as_str()?;
    // A later segment of a resumed run finds what the ones before it left there.
    let is_first = |step: &&MeasuredStep| step.generates() && step.segment.is_none();
    let steps = run.steps.iter().filter(is_first);
    let first = steps.min_by(|a, b| a.start_ms.0.total_cmp(&b.start_ms.0))?;
    (kind == "remote").then_some(first.tokens.reused)
}

fn setting(run: &MeasuredRun, name: &str) -> usize {
    let value = run
        .record
        .settings
        .get(name)
        .and_then(|value| value.as_u64());
    value
        .and_then(|value| usize::try_from(value).ok())
        .unwrap_or(1)
}

/// Reasons, with the run that they are about.
struct Found<'a> {
    run_id: &'a str,
    all: Vec<Invalid>,
}

impl<'a> Found<'a> {
    fn new(run_id: &'a str) -> Self {
        Self {
            run_id,
            all: Vec::new(),
        }
    }

    fn add(&mut self, reason: &str, detail: String) {
        self.all.push(Invalid {
            reason: reason.to_owned(),
            run_id: self.run_id.to_owned(),
            detail,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::compare::made::run;
    use crate::record::gpu::{GpuProcess, GpuRecord};
    use crate::record::validity::ValidityRecord;
    use serde_json::json;

    fn reasons(run: &MeasuredRun) -> Vec<String> {
        let all = invalid(run).into_iter();
        all.map(|invalid| invalid.reason).collect()
    }

    #[test]
    fn a_sound_run_is_valid() {
        assert_eq!(reasons(&run("a", 3, |_, _| 1.0)), Vec::<String>::new());
    }

    #[test]
    fn a_run_with_a_flaw_is_invalid() {
        let flawed = |name: &str, flaw: &dyn Fn(&mut MeasuredRun)| {
            let mut run = run("a", 3, |_, _| 1.0);
            flaw(&mut run);
            assert_eq!(reasons(&run), [name], "{:?}", invalid(&run));
        };
        flawed("flows_missing", &|run| run.record.totals.workflows_done = 2);
        flawed("no_tokens", &|run| run.record.totals.tokens.decode = 0);
        flawed("reused_tokens", &|run| {
            run.record.engine = json!({"kind": "local"});
            run.record
                .settings
                .insert("mode".to_owned(), json!("standalone"));
            run.steps[0].tokens.reused = 5;
        });
        flawed("throttled", &|run| {
            run.record.gpu = Some(GpuRecord {
                throttle: vec![
                    "applications_clocks_setting".to_owned(),
                    "sw_power_cap".to_owned(),
                ],
                ..GpuRecord::default()
            });
        });
        flawed("gpu_shared", &|run| {
            run.record.gpu = Some(GpuRecord {
                other_processes: vec![GpuProcess::default()],
                ..GpuRecord::default()
            });
        });
    }

    #[test]
    fn what_was_watched_makes_a_run_invalid() {
        let with = |taint: Taint, steps: usize| {
            let mut run = run("a", 10, |_, _| 1.0);
            assert!(run.steps.len() >= 10, "a step is at most a tenth of them");
            for step in &mut run.steps[..steps] {
                step.tainted = vec![Taint::Steal, taint];
            }
            // The two readings are not asked where there are more.
            run.record.validity = Some(ValidityRecord::default());
            run.record.gpu = Some(GpuRecord {
                throttle: vec!["sw_power_cap".to_owned()],
                ..GpuRecord::default()
            });
            reasons(&run)
        };
        assert_eq!(with(Taint::SwPowerCap, 1), [""; 0]);
        assert_eq!(with(Taint::SwPowerCap, 10), ["throttled"]);
        assert_eq!(with(Taint::OtherProcess, 1), ["gpu_shared"]);
        assert_eq!(with(Taint::GpuLost, 1), ["gpu_lost"]);
        assert_eq!(with(Taint::ClockJump, 1), ["clock_jump"]);
        assert_eq!(
            with(Taint::OtherProcesses, 10),
            [""; 0],
            "the run alone decides"
        );
    }

    #[test]
    fn some_flaws_show_beside_a_baseline() {
        let base = [run("base", 3, |_, _| 1.0)];
        let beside = |explained: bool, flaw: &dyn Fn(&mut MeasuredRun)| -> Vec<String> {
            let mut new = run("new", 3, |_, _| 1.0);
            flaw(&mut new);
            let all = invalid_beside(&base, &new, explained).into_iter();
            all.map(|invalid| invalid.reason).collect()
        };
        assert!(beside(false, &|_| {}).is_empty());
        let half = |run: &mut MeasuredRun| run.record.totals.tokens.decode /= 3;
        assert_eq!(beside(true, &half), ["few_tokens"]);
        let fast = |run: &mut MeasuredRun| {
            let mean = &mut run.record.totals.avg_workflow_ms;
            *mean = mean.map(|ms| crate::units::Millis(ms.0 / 11.0));
        };
        assert_eq!(beside(false, &fast), ["implausible"]);
        assert!(beside(true, &fast).is_empty());
    }

    #[test]
    fn a_warm_server_is_no_match_for_a_cold_one() {
        let remote = |reused: usize| {
            let mut run = run("a", 3, |_, _| 1.0);
            run.record.engine = json!({"kind": "remote"});
            run.steps[0].tokens.reused = reused;
            run
        };
        let reasons = |base: usize, new: usize| {
            let all = invalid_beside(&[remote(base)], &remote(new), false);
            all.into_iter()
                .map(|invalid| invalid.reason)
                .collect::<Vec<_>>()
        };
        assert_eq!(reasons(0, 64), ["warm_cache"]);
        assert!(reasons(64, 64).is_empty() && reasons(64, 0).is_empty());
    }
}
