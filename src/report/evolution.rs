//! The folder of an evolution, `results/<run-id>/evolution/flow_NNNNN/`: a file a trial, a summary a
//! generation, and the summary of all, which is replaced as a whole after each trial.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folder::{cannot_write, replace, replace_quickly};
use crate::error::Result;
use crate::record::RECORD_SCHEMA;
use crate::record::evaluation::{EvolutionRecord, GenerationRecord, LineageRecord, TrialRecord};

/// Outcome of a trial whose machinery failed: it says nothing about the program.
const INFRA_ERROR: &str = "infra_error";

/// The folders of a run's evolutions.
#[derive(Debug)]
pub struct EvolutionFolder {
    path: PathBuf,
    /// The settings, for each flow's `config.json`.
    config: serde_json::Value,
    flows: BTreeMap<usize, EvolutionRecord>,
}

impl EvolutionFolder {
    /// In the run's folder; nothing is made before the first trial.
    pub fn new(run: &Path, config: serde_json::Value) -> Self {
        Self {
            path: run.join("evolution"),
            config,
            flows: BTreeMap::new(),
        }
    }

    /// Keeps a trial.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be written.
    pub fn trial(&mut self, trial: &TrialRecord) -> Result<()> {
        let folder = self.flow(trial.flow);
        if !self.flows.contains_key(&trial.flow) {
            for name in ["trials", "generations"] {
                let path = folder.join(name);
                fs::create_dir_all(&path).map_err(|source| cannot_write(&path, source))?;
            }
            write(&folder.join("config.json"), &self.config)?;
        }
        write(
            &folder.join(format!("trials/{:05}.json", trial.trial)),
            trial,
        )?;
        let record = self
            .flows
            .entry(trial.flow)
            .or_insert_with(|| EvolutionRecord {
                schema: RECORD_SCHEMA,
                flow: trial.flow,
                ..EvolutionRecord::default()
            });
        add(record, trial);
        write(&folder.join("summary.json"), record)
    }

    /// Keeps a generation.
    ///
    /// # Errors
    /// As [`Self::trial`].
    pub fn generation(&mut self, generation: &GenerationRecord) -> Result<()> {
        let folder = self.flow(generation.flow);
        let Some(record) = self.flows.get_mut(&generation.flow) else {
            return Ok(());
        };
        let of_loop = match generation.r#loop {
            0 | 1 => String::new(),
            further => format!("{further}-"),
        };
        let name = format!("generations/{of_loop}{:05}.json", generation.generation);
        write(&folder.join(name), generation)?;
        record.generations.push(generation.clone());
        record
            .generations
            .sort_by_key(|generation| (generation.r#loop, generation.generation));
        write(&folder.join("summary.json"), record)
    }

    /// Notes that a flow has ended, well or badly.
    ///
    /// # Errors
    /// As [`Self::trial`].
    pub fn end(&mut self, flow: usize, well: bool) -> Result<()> {
        let folder = self.flow(flow);
        let Some(record) = self.flows.get_mut(&flow) else {
            return Ok(());
        };
        record.complete = well;
        replace(&folder.join("summary.json"), &text(&folder, record)?)
    }

    fn flow(&self, flow: usize) -> PathBuf {
        self.path.join(format!("flow_{flow:05}"))
    }
}

/// Counts a trial in. Trials may come in any order; what is told of them does not depend on it.
fn add(record: &mut EvolutionRecord, trial: &TrialRecord) {
    record.trials += 1;
    record.valid += usize::from(trial.score.is_some());
    *record.outcomes.entry(trial.outcome.clone()).or_default() += 1;
    let failed = record.outcomes.get(INFRA_ERROR).copied().unwrap_or(0);
    let judged = record.trials - failed;
    record.validity_rate = (judged > 0).then(|| record.valid as f64 / judged as f64);
    let place = record
        .lineage
        .partition_point(|known| known.trial < trial.trial);
    record.lineage.insert(
        place,
        LineageRecord {
            trial: trial.trial,
            parent: trial.parent,
            r#loop: trial.r#loop,
            generation: trial.generation,
            outcome: trial.outcome.clone(),
            score: trial.score,
        },
    );
    let scored = record
        .lineage
        .iter()
        .filter_map(|known| Some((known.score?, known.trial)));
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
    record.best_score = best.map(|(score, _)| score);
    record.best_trial = best.map(|(_, trial)| trial);
}

/// While the run goes on, files are not forced to the disk: that would be what is measured.
fn write(file: &Path, value: &impl Serialize) -> Result<()> {
    replace_quickly(file, &text(file, value)?)
}

fn text(file: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let text = serde_json::to_vec_pretty(value);
    text.map_err(|source| cannot_write(file, std::io::Error::other(source)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trial(number: usize, score: Option<f64>) -> TrialRecord {
        TrialRecord {
            flow: 1,
            trial: number,
            outcome: if score.is_some() { "ok" } else { "timeout" }.to_owned(),
            score,
            ..TrialRecord::default()
        }
    }

    #[test]
    fn files_are_kept_as_they_come() {
        let run = tempfile::tempdir().expect("a temporary folder");
        let mut folder = EvolutionFolder::new(run.path(), serde_json::json!({"seed": 0}));
        folder.end(1, true).expect("nothing to do");
        assert!(!run.path().join("evolution").exists());
        folder.trial(&trial(2, Some(1.5))).expect("writable");
        folder.trial(&trial(1, None)).expect("writable");
        folder
            .generation(&GenerationRecord {
                flow: 1,
                generation: 1,
                ..GenerationRecord::default()
            })
            .expect("writable");
        folder.end(1, true).expect("writable");
        let flow = run.path().join("evolution/flow_00001");
        for name in [
            "config.json",
            "trials/00001.json",
            "trials/00002.json",
            "generations/00001.json",
        ] {
            assert!(flow.join(name).is_file(), "{name}");
        }
        let summary = fs::read(flow.join("summary.json")).expect("written");
        let summary: EvolutionRecord = serde_json::from_slice(&summary).expect("valid");
        assert!(summary.complete);
        assert_eq!(
            (summary.trials, summary.valid, summary.best_trial),
            (2, 1, Some(2))
        );
        assert_eq!(summary.validity_rate, Some(0.5));
        let trials: Vec<usize> = summary.lineage.iter().map(|known| known.trial).collect();
        assert_eq!(trials, [1, 2]);
    }

    proptest! {
        #[test]
        fn the_summary_does_not_depend_on_the_order(
            scores in prop::collection::vec(prop::option::of(0u8..3), 1..8), seed in any::<u64>(),
        ) {
            let trials: Vec<TrialRecord> = (scores.iter().enumerate())
                .map(|(index, score)| trial(index + 1, score.map(f64::from)))
                .collect();
            let mut shuffled = trials.clone();
            let length = shuffled.len();
            for index in 0..length {
                shuffled.swap(index, (seed as usize).wrapping_mul(index + 7) % length);
            }
            let sum = |trials: &[TrialRecord]| {
                let mut record = EvolutionRecord::default();
                trials.iter().for_each(|trial| add(&mut record, trial));
                record
            };
            prop_assert_eq!(sum(&trials), sum(&shuffled));
        }
    }
}
