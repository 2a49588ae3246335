//! `history.jsonl`: a line for each run that ended. It is appended to in one write and synced, so that a kill
//! leaves whole lines and at most a torn last one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::{append, cannot_write, wait_for_lock};
use super::identity::Identity;
use super::reading;
use crate::error::{Error, Result};
use crate::metrics::compare::{Earlier, RunMetric, Selected};
use crate::record::compare::MeasuredRun;
use crate::record::history::{HistoryMetric, HistoryRecord};
use crate::record::{RECORD_SCHEMA, Status};

/// Name of the file.
pub const FILE: &str = "history.jsonl";

/// Stands for all steps.
pub const ALL_STEPS: &str = "*";

/// The runs that ended, in the order in which they ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    pub runs: Vec<HistoryRecord>,
    /// Lines that were skipped, in words.
    pub notes: Vec<String>,
}

impl History {
    /// Reads the history in `out`; empty if there is none. A line that cannot be read is skipped and noted.
    ///
    /// # Errors
    /// Exit code 2 if the file exists and cannot be read.
    pub fn read(out: &Path) -> Result<Self> {
        let file = out.join(FILE);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => return Err(reading::cannot_read(&file, source)),
        };
        let mut history = Self::default();
        let mut broken = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<HistoryRecord>(line) {
                Ok(run) if run.schema == RECORD_SCHEMA => history.runs.push(run),
                _ => broken.push((index + 1).to_string()),
            }
        }
        if let Some(first) = broken.first() {
            let count = broken.len();
            history.notes.push(format!(
                "{}: {} skipped, the first is line {first}: not a run of this program",
                file.display(),
                crate::units::plural(count, "line"),
            ));
        }
        Ok(history)
    }

    /// Appends a run to the history in `out`.
    ///
    /// # Errors
    /// Exit code 110 if it cannot be written.
    pub fn append(out: &Path, run: &HistoryRecord) -> Result<()> {
        let path = out.join(FILE);
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .open(&path)?;
            // Held against other runs that end now; released when the file is closed.
            wait_for_lock(&file);
            let mut line = Vec::new();
            if is_torn(&mut file)? {
                line.push(b'\n');
            }
            serde_json::to_writer(&mut line, run)?;
            line.push(b'\n');
            append(&file, &line)?;
            file.sync_data()
        };
        write().map_err(|source| cannot_write(&path, source))
    }

    /// The means of a metric in earlier runs of a job on a machine, by group, without the runs `except`.
    pub fn earlier(
        &self,
        identity: &Identity,
        selected: &Selected,
        except: &[&str],
    ) -> Vec<Earlier> {
        let step = selected.step.as_deref().unwrap_or(ALL_STEPS);
        let mut calibrations: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut others = Vec::new();
        for run in self.comparable(identity) {
            let of_metric = run.metrics.get(selected.quantity.name());
            let Some(metric) = of_metric.and_then(|steps| steps.get(step)) else {
                continue;
            };
            if metric.mean <= 0.0 || except.contains(&run.run_id.as_str()) {
                continue;
            }
            let mean = metric.mean.ln();
            match &run.calibration {
                Some(name) => calibrations.entry(name).or_default().push(mean),
                None => others.push(mean),
            }
        }
        let mut groups: Vec<Earlier> = (calibrations.into_values())
            .map(|means| Earlier {
                means,
                drifting: false,
            })
            .collect();
        groups.push(Earlier {
            means: others,
            drifting: true,
        });
        groups.retain(|group| group.means.len() > 1);
        groups
    }

    /// The folders of the last runs that can be compared with `new`: `count`, or as many as there are.
    ///
    /// # Errors
    /// Exit code 2 if there is none.
    pub fn last(
        &self,
        count: usize,
        identity: &Identity,
        new: &[MeasuredRun],
        out: &Path,
    ) -> Result<Vec<PathBuf>> {
        let is_new = |run: &&HistoryRecord| new.iter().any(|new| new.record.run_id == run.run_id);
        let folder = |run: &HistoryRecord| out.join(&run.folder);
        let mut folders: Vec<PathBuf> = (self.comparable(identity))
            .filter(|run| !is_new(run))
            .map(folder)
            .filter(|folder| folder.join("run.json").is_file())
            .collect();
        if folders.is_empty() {
            let message = format!(
                "the history in {} has no other valid run of this job on this machine",
                out.display()
            );
            let hint = "run the job again; another setting, template or model makes another job";
            return Err(Error::usage(message).hint(hint));
        }
        Ok(folders.split_off(folders.len().saturating_sub(count)))
    }

    /// Valid, complete runs of a job on a machine.
    fn comparable(&self, identity: &Identity) -> impl Iterator<Item = &HistoryRecord> {
        let (job, machine) = (identity.job_digest(), identity.machine_digest());
        self.runs.iter().filter(move |run| {
            let is_same = run.job == job && run.machine == machine;
            is_same && run.status == Status::Complete && run.invalid.is_empty()
        })
    }
}

/// Whether the last line has no end: its run was killed while it was written.
fn is_torn(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last[0] != b'\n')
}

/// The metrics of a run as the history keeps them.
pub fn metrics(of_run: Vec<RunMetric>) -> BTreeMap<String, BTreeMap<String, HistoryMetric>> {
    let mut metrics: BTreeMap<String, BTreeMap<String, HistoryMetric>> = BTreeMap::new();
    for metric in of_run {
        let step = metric.selected.step.unwrap_or(ALL_STEPS.to_owned());
        let of_step = HistoryMetric {
            mean: metric.mean,
            median: metric.median,
            scatter: metric.scatter,
        };
        let name = metric.selected.quantity.name().to_owned();
        metrics.entry(name).or_default().insert(step, of_step);
    }
    metrics
}
