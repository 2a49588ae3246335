//! Reads a saved run back from its folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::evolution;
use super::names::natural;
use super::reading::{not_a_step, parse, read, record};
use super::runs;
use crate::error::Result;
use crate::metrics::TaintIntervals;
use crate::record::evaluation::EvolutionRecord;
use crate::record::{RunRecord, Status, StepRecord};

/// A run read from its folder.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedRun {
    pub folder: PathBuf,
    /// `run.json`.
    pub record: RunRecord,
    /// `steps.jsonl`, up to the last whole line, without measurements that others have replaced.
    pub steps: Vec<StepRecord>,
    /// The summaries of its evolutions, by flow.
    pub evolutions: Vec<EvolutionRecord>,
}

impl SavedRun {
    /// Reads the run at `path`, a folder or its `run.json`; by default the latest run in `out`.
    ///
    /// # Errors
    /// Exit code 2 if there is no run, or it cannot be read or parsed.
    pub fn read(path: Option<&Path>, out: &Path) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => runs::latest(out)?,
        };
        let (folder, file) = if path.is_dir() {
            (path.clone(), path.join("run.json"))
        } else {
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            (folder, path.clone())
        };
        let record = record(&file)?;
        let mut steps = steps(&folder.join("steps.jsonl"))?;
        valid_only(&record, &mut steps);
        Ok(Self {
            record,
            steps,
            evolutions: evolutions(&folder.join("evolution"))?,
            folder,
        })
    }
}

/// Reads `steps.jsonl`. The last line of a killed run may be incomplete; it is skipped.
fn steps(file: &Path) -> Result<Vec<StepRecord>> {
    parse_steps(&read(file)?, file)
}

/// Parses the text of a `steps.jsonl`.
pub(super) fn parse_steps(text: &str, file: &Path) -> Result<Vec<StepRecord>> {
    let mut steps = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(step) => steps.push(step),
            Err(_) if index + 1 == text.lines().count() && !text.ends_with('\n') => {}
            Err(source) => return Err(not_a_step(file, index + 1, source)),
        }
    }
    Ok(steps)
}

/// Leaves out what is in no total. In a run that was killed, lines were not amended: measurements of flows that
/// were being run again do not count, and reasons follow from the intervals in the record.
fn valid_only(record: &RunRecord, steps: &mut Vec<StepRecord>) {
    steps.retain(|step| !step.discarded);
    let Some(validity) = (record.validity.as_ref()).filter(|_| record.status == Status::Running)
    else {
        return;
    };
    steps.retain(|step| !step.rerun);
    let taints = TaintIntervals::of(&validity.taints);
    let last = record.segments.len().max(1);
    for step in steps
        .iter_mut()
        .filter(|step| step.segment.unwrap_or(1) == last)
    {
        let start = step.start_ms.0;
        step.tainted = taints.over(start, start + step.latency_ms.0);
    }
}

/// Reads the `evolution/` folder; a run without one has no evolutions.
fn evolutions(folder: &Path) -> Result<Vec<EvolutionRecord>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort_by_cached_key(|folder| natural(folder.as_os_str()));
    let value = |file: &Path| parse(&read(file)?, file);
    (folders.iter())
        .filter_map(|folder| evolution::read(folder, &value).transpose())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::validity::{Taint, ValidityRecord};
    use crate::units::Millis;

    #[test]
    fn a_killed_runs_steps_have_the_reasons_of_its_record() {
        let step = |start: f64, rerun, discarded| StepRecord {
            start_ms: Millis(start),
            latency_ms: Millis(10.0),
            rerun,
            discarded,
            ..StepRecord::default()
        };
        let steps = vec![
            step(0.0, false, false),
            step(100.0, false, false),
            step(200.0, true, false),
            step(300.0, false, true),
        ];
        let (mut record, _) = crate::report::testing::run(1, 0.0, 1.0, 1.0);
        let mut taints = TaintIntervals::default();
        taints.add(Taint::Steal, 90.0, 105.0);
        record.validity = Some(ValidityRecord {
            taints: taints.records(),
            ..ValidityRecord::default()
        });
        let read = |status| {
            let (mut record, mut steps) = (record.clone(), steps.clone());
            record.status = status;
            valid_only(&record, &mut steps);
            let each = steps
                .into_iter()
                .map(|step| (step.start_ms.0, step.tainted));
            each.collect::<Vec<_>>()
        };
        let killed = read(Status::Running);
        assert_eq!(killed, [(0.0, vec![]), (100.0, vec![Taint::Steal])]);
        // At the end of a run its lines were amended.
        let ended = read(Status::Complete);
        assert_eq!(ended.len(), 3);
        assert!(ended.iter().all(|(_, tainted)| tainted.is_empty()));
    }
}
