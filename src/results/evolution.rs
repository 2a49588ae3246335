//! The folder of an evolution, `results/<run-id>/evolution/flow_NNNNN/`: one file per trial, one per
//! generation, and a summary. The summary is rewritten at growing intervals; [`read`] completes that of a
//! killed run from the other files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{cannot_write, not_a_record, replace, replace_quickly};
use crate::error::Result;
use crate::record::RECORD_SCHEMA;
use crate::record::evaluation::{EvolutionRecord, GenerationRecord, LineageRecord, TrialRecord};

/// Outcome of a trial in which the evaluator failed, which says nothing about the program.
const INFRA_ERROR: &str = "infra_error";

/// The summary is rewritten when it has grown by 1 / `GROWTH`. All of its versions together are then
/// about five times as long as the last one, however many trials there are.
const GROWTH: usize = 4;

#[derive(Debug)]
pub struct EvolutionFolder {
    path: PathBuf,
    /// Written to each flow's `config.json`.
    config: serde_json::Value,
    flows: BTreeMap<usize, Growing>,
}

#[derive(Debug, Default)]
struct Growing {
    record: EvolutionRecord,
    /// Number of trials and generations in the file.
    written: usize,
}

impl Growing {
    fn len(&self) -> usize {
        self.record.lineage.len() + self.record.generations.len()
    }

    /// Rewrites the file if the summary has grown enough.
    fn write_now_and_then(&mut self, folder: &Path) -> Result<()> {
        if self.len() - self.written <= self.written / GROWTH {
            return Ok(());
        }
        write(&folder.join("summary.json"), &self.record)?;
        self.written = self.len();
        Ok(())
    }
}

impl EvolutionFolder {
    /// Creates nothing before the first trial.
    pub fn new(run: &Path, config: serde_json::Value) -> Self {
        Self {
            path: run.join("evolution"),
            config,
            flows: BTreeMap::new(),
        }
    }

    /// # Errors
    /// Exit code 110 if a file cannot be written.
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
        let growing = self.growing(trial.flow);
        add(&mut growing.record, trial);
        growing.write_now_and_then(&folder)
    }

    /// A trial of an earlier segment of the run. Its file is written if it is not there.
    ///
    /// # Errors
    /// As [`Self::trial`].
    pub fn trial_kept(&mut self, trial: &TrialRecord) -> Result<()> {
        let folder = self.flow(trial.flow);
        if !folder
            .join(format!("trials/{:05}.json", trial.trial))
            .is_file()
        {
            return self.trial(trial);
        }
        add(&mut self.growing(trial.flow).record, trial);
        Ok(())
    }

    /// A generation of an earlier segment of the run. What its file says counts, if it is there.
    ///
    /// # Errors
    /// As [`Self::trial`].
    pub fn generation_kept(&mut self, generation: &GenerationRecord) -> Result<()> {
        let folder = self.flow(generation.flow).join("generations");
        let text = fs::read(folder.join(generation_file(generation)));
        let written = text
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        match written {
            Some(written) => {
                let growing = self.growing(generation.flow);
                add_generation(&mut growing.record, written);
                Ok(())
            }
            None => self.generation(generation),
        }
    }

    fn growing(&mut self, flow: usize) -> &mut Growing {
        self.flows.entry(flow).or_insert_with(|| Growing {
            record: EvolutionRecord {
                schema: RECORD_SCHEMA,
                flow,
                ..EvolutionRecord::default()
            },
            written: 0,
        })
    }

    /// # Errors
    /// As [`Self::trial`].
    pub fn generation(&mut self, generation: &GenerationRecord) -> Result<()> {
        let folder = self.flow(generation.flow);
        let Some(growing) = self.flows.get_mut(&generation.flow) else {
            return Ok(());
        };
        let name = generation_file(generation);
        write(&folder.join("generations").join(name), generation)?;
        add_generation(&mut growing.record, generation.clone());
        growing.write_now_and_then(&folder)
    }

    /// Notes that a flow has ended, `well` or with an error.
    ///
    /// # Errors
    /// As [`Self::trial`].
    pub fn end(&mut self, flow: usize, well: bool) -> Result<()> {
        let folder = self.flow(flow);
        let Some(growing) = self.flows.get_mut(&flow) else {
            return Ok(());
        };
        growing.record.complete = well;
        let file = folder.join("summary.json");
        replace(&file, &text(&file, &growing.record)?)?;
        growing.written = growing.len();
        Ok(())
    }

    /// Writes the summaries of flows that were cancelled.
    ///
    /// # Errors
    /// As [`Self::trial`].
    pub fn finish(&mut self) -> Result<()> {
        for (flow, growing) in &mut self.flows {
            if growing.written < growing.len() {
                let folder = self.path.join(format!("flow_{flow:05}"));
                write(&folder.join("summary.json"), &growing.record)?;
                growing.written = growing.len();
            }
        }
        Ok(())
    }

    fn flow(&self, flow: usize) -> PathBuf {
        self.path.join(format!("flow_{flow:05}"))
    }
}

fn generation_file(generation: &GenerationRecord) -> String {
    let of_loop = match generation.r#loop {
        0 | 1 => String::new(),
        further => format!("{further}-"),
    };
    format!("{of_loop}{:05}.json", generation.generation)
}

/// Adds a trial. The result does not depend on the order of trials.
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
    let best = record.best_score.zip(record.best_trial);
    if let Some(score) = trial.score
        && best.is_none_or(|(best, first)| score > best || (score == best && trial.trial < first))
    {
        record.best_score = Some(score);
        record.best_trial = Some(trial.trial);
    }
}

/// Inserts a generation in order.
fn add_generation(record: &mut EvolutionRecord, generation: GenerationRecord) {
    let key = |generation: &GenerationRecord| (generation.r#loop, generation.generation);
    let own = key(&generation);
    let place = (record.generations).partition_point(|known| key(known) <= own);
    record.generations.insert(place, generation);
}

/// Reads an evolution: its summary and, unless the flow ended well, the trials and generations that the
/// summary does not have yet. `read` reads a file. `None` if there is no summary.
pub(super) fn read(
    folder: &Path,
    read: &dyn Fn(&Path) -> Result<serde_json::Value>,
) -> Result<Option<EvolutionRecord>> {
    let file = folder.join("summary.json");
    if !file.is_file() {
        return Ok(None);
    }
    let mut record: EvolutionRecord = parse(read(&file)?, &file)?;
    if record.complete {
        return Ok(Some(record));
    }
    let known: BTreeSet<String> = (record.lineage.iter())
        .map(|trial| format!("{:05}.json", trial.trial))
        .collect();
    for file in further(&folder.join("trials"), &known) {
        add(&mut record, &parse(read(&file)?, &file)?);
    }
    let known: BTreeSet<String> = record.generations.iter().map(generation_file).collect();
    for file in further(&folder.join("generations"), &known) {
        add_generation(&mut record, parse(read(&file)?, &file)?);
    }
    Ok(Some(record))
}

/// JSON files in a folder that are not `known`, by name.
fn further(folder: &Path, known: &BTreeSet<String>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<String> = names
        // Temporary files begin with a dot.
        .filter(|name| name.ends_with(".json") && !name.starts_with('.') && !known.contains(name))
        .collect();
    files.sort_by_key(|name| (name.len(), name.clone()));
    files.into_iter().map(|name| folder.join(name)).collect()
}

fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value, file: &Path) -> Result<T> {
    serde_json::from_value(value).map_err(|source| not_a_record(file, source))
}

/// Writes without an fsync, whose time would be part of the measurement.
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
    fn every_trial_and_generation_has_a_file() {
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
        let summary = summary(run.path());
        assert!(summary.complete);
        assert_eq!(
            (summary.trials, summary.valid, summary.best_trial),
            (2, 1, Some(2))
        );
        assert_eq!(summary.validity_rate, Some(0.5));
        let trials: Vec<usize> = summary.lineage.iter().map(|known| known.trial).collect();
        assert_eq!(trials, [1, 2]);
    }

    fn summary(run: &Path) -> EvolutionRecord {
        let file = run.join("evolution/flow_00001/summary.json");
        let text = fs::read(file).expect("written");
        serde_json::from_slice(&text).expect("valid")
    }

    fn read_back(run: &Path) -> EvolutionRecord {
        let file = |file: &Path| {
            let text = fs::read(file).expect("there");
            Ok(serde_json::from_slice(&text).expect("valid"))
        };
        let read = read(&run.join("evolution/flow_00001"), &file).expect("sound");
        read.expect("there")
    }

    /// Total size of all versions of a summary, and the size of the last one, in bytes.
    fn bytes_written(trials: usize) -> (u64, u64) {
        let run = tempfile::tempdir().expect("a temporary folder");
        let mut folder = EvolutionFolder::new(run.path(), serde_json::Value::Null);
        let file = run.path().join("evolution/flow_00001/summary.json");
        let (mut all, mut written) = (0, 0);
        for number in 1..=trials {
            folder.trial(&trial(number, Some(1.0))).expect("writable");
            let now = folder.flows[&1].written;
            if now > written {
                written = now;
                all += fs::metadata(&file).expect("there").len();
            }
        }
        folder.end(1, true).expect("writable");
        let last = fs::metadata(&file).expect("there").len();
        (all + last, last)
    }

    #[test]
    fn all_versions_of_the_summary_together_are_a_few_times_the_last() {
        for trials in [1, 10, 100, 1000] {
            let (all, last) = bytes_written(trials);
            assert!(
                all <= 7 * last,
                "{trials} trials: {all} bytes, the last of {last}"
            );
        }
    }

    #[test]
    fn a_killed_run_loses_no_trial() {
        let run = tempfile::tempdir().expect("a temporary folder");
        let mut folder = EvolutionFolder::new(run.path(), serde_json::Value::Null);
        let add = |folder: &mut EvolutionFolder, number: usize| {
            let of_it = TrialRecord {
                generation: number,
                r#loop: 1,
                ..trial(number, Some((number % 7) as f64))
            };
            folder.trial(&of_it).expect("writable");
            let generation = GenerationRecord {
                flow: 1,
                r#loop: 1 + number / 30,
                generation: number,
                ..GenerationRecord::default()
            };
            folder.generation(&generation).expect("writable");
        };
        (1..=50).for_each(|number| add(&mut folder, number));
        let before = summary(run.path());
        assert!(before.trials < 50, "not after each");
        let killed = read_back(run.path());
        assert_eq!((killed.trials, killed.valid), (50, 50));
        assert_eq!((killed.best_trial, killed.generations.len()), (Some(6), 50));
        folder.finish().expect("writable");
        assert_eq!(summary(run.path()), killed);
        assert_eq!(read_back(run.path()), killed);
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
