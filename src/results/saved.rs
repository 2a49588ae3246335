//! Reads a saved run back from its folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::evolution;
use super::names::natural;
use super::reading::{not_a_step, parse, read, record};
use super::runs;
use crate::error::Result;
use crate::record::evaluation::EvolutionRecord;
use crate::record::{RunRecord, StepRecord};

/// A run read from its folder.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedRun {
    pub folder: PathBuf,
    /// `run.json`.
    pub record: RunRecord,
    /// `steps.jsonl`, up to the last whole line.
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
        Ok(Self {
            record: record(&file)?,
            steps: steps(&folder.join("steps.jsonl"))?,
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
