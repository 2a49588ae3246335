//! A metric over the runs of a job: its levels, and where they change.

use super::changes::change_points;
use crate::record::trend::{Level, TrendRun};

/// Change points are looked for in the last runs only: the time grows with the square of their number.
pub const LONGEST: usize = 300;

/// The levels of a series of runs, oldest first; invalid runs belong to none. At most [`LONGEST`] runs.
pub fn levels(runs: &[TrendRun]) -> Vec<Level> {
    let valid: Vec<(usize, f64)> = (runs.iter().enumerate())
        .filter(|(_, run)| run.invalid.is_empty())
        .filter_map(|(index, run)| Some((index, run.value.filter(|value| *value > 0.0)?.ln())))
        .collect();
    if valid.is_empty() {
        return Vec::new();
    }
    let logs: Vec<f64> = valid.iter().map(|(_, log)| *log).collect();
    let mut starts = vec![0];
    starts.extend(change_points(&logs));
    let ends = starts.iter().skip(1).copied().chain([logs.len()]);
    let mut levels: Vec<Level> = Vec::new();
    for (start, end) in starts.iter().copied().zip(ends) {
        let spread = crate::statistics::distribution(&logs[start..end]);
        let mean = spread.as_ref().map_or(0.0, |spread| spread.mean).exp();
        let before = levels.last().map(|level: &Level| level.mean);
        levels.push(Level {
            first: valid[start].0,
            last: valid[end - 1].0,
            mean,
            deviation: spread.and_then(|spread| spread.deviation),
            change: before.map(|before| mean / before - 1.0),
            causes: Vec::new(),
            differs: Vec::new(),
        });
    }
    levels
}

/// What differs between the last run of a level and the first of the next: revision and labels, in words.
pub fn differs(before: &TrendRun, after: &TrendRun) -> Vec<String> {
    let mut all = Vec::new();
    let short = |revision: &Option<String>| {
        let text = revision.as_deref().unwrap_or("unknown");
        text.get(..10).unwrap_or(text).to_owned()
    };
    if before.revision != after.revision {
        let (before, after) = (short(&before.revision), short(&after.revision));
        all.push(format!("revision {before} → {after}"));
    }
    let names = before.labels.keys().chain(after.labels.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    for name in names {
        let [before, after] = [before, after].map(|run| {
            let value = run.labels.get(name).map(String::as_str);
            value.unwrap_or("unset")
        });
        if before != after {
            all.push(format!("{name} {before} → {after}"));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Status;

    fn runs(values: &[f64]) -> Vec<TrendRun> {
        let run = |(index, value): (usize, &f64)| TrendRun {
            run_id: format!("run-{index}"),
            started_at: String::new(),
            status: Status::Complete,
            revision: Some(format!("{index:040}")),
            labels: [("commit".to_owned(), index.to_string())].into(),
            flows: 5,
            value: Some(*value),
            invalid: Vec::new(),
            kept: false,
        };
        values.iter().enumerate().map(run).collect()
    }

    #[test]
    fn levels_leave_invalid_runs_out() {
        let mut runs = runs(&[
            100.0, 101.0, 99.0, 100.5, 100.0, 900.0, 120.0, 121.0, 119.5, 120.0, 120.5,
        ]);
        runs[5].invalid.push("flows_missing".to_owned());
        let levels = levels(&runs);
        let ends: Vec<(usize, usize)> = levels
            .iter()
            .map(|level| (level.first, level.last))
            .collect();
        assert_eq!(ends, [(0, 4), (6, 10)]);
        let change = levels[1].change.expect("a level before");
        assert!((change - 0.2).abs() < 0.01, "{change}");
        assert_eq!(
            differs(&runs[4], &runs[6]),
            ["revision 0000000000 → 0000000000", "commit 4 → 6"]
        );
        assert!(super::levels(&[]).is_empty());
    }
}
