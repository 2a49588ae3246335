//! Runs that were kept: reads `run.json` and `steps.jsonl` again.

use std::fs;
use std::path::{Path, PathBuf};

use super::evolution;
use crate::error::{Error, Result};
use crate::record::evaluation::EvolutionRecord;
use crate::record::{RECORD_SCHEMA, RunRecord, StepRecord};

/// A run as its folder has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedRun {
    /// The run's folder.
    pub folder: PathBuf,
    /// `run.json`.
    pub record: RunRecord,
    /// `steps.jsonl`, as far as it was written.
    pub steps: Vec<StepRecord>,
    /// The summaries of its evolutions, by flow.
    pub evolutions: Vec<EvolutionRecord>,
}

impl SavedRun {
    /// Reads a run: a folder, its `run.json`, or without a path the latest run in `out`.
    ///
    /// # Errors
    /// Exit code 2 where there is none, or it cannot be read or understood.
    pub fn read(path: Option<&Path>, out: &Path) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => latest(out)?,
        };
        let (folder, file) = if path.is_dir() {
            (path.clone(), path.join("run.json"))
        } else {
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            (folder, path.clone())
        };
        let text = read(&file)?;
        let version: Version = parse(&text, &file)?;
        if version.schema != RECORD_SCHEMA {
            return Err(Error::usage(format!(
                "{}: the record's schema is {}, this program reads {RECORD_SCHEMA}",
                file.display(),
                version.schema
            ))
            .hint("use the flowbench that wrote it"));
        }
        Ok(Self {
            record: parse(&text, &file)?,
            steps: steps(&folder.join("steps.jsonl"))?,
            evolutions: evolutions(&folder.join("evolution"))?,
            folder,
        })
    }
}

#[derive(serde::Deserialize)]
struct Version {
    schema: u32,
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|source| {
        Error::usage(format!("failed to read {}", file.display()))
            .hint("name a run's folder (results/RUN) or its run.json, or none for the latest run")
            .caused_by(source)
    })
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str, file: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|source| not_a_record(file, source))
}

/// A file of a run that holds something else.
pub(super) fn not_a_record(file: &Path, source: serde_json::Error) -> Error {
    Error::usage(format!("{}: not the record of a run", file.display()))
        .hint("name a run's folder (results/RUN) or its run.json")
        .caused_by(source)
}

/// The lines of `steps.jsonl`. The last one may be cut off, where the run was killed.
fn steps(file: &Path) -> Result<Vec<StepRecord>> {
    let text = read(file)?;
    let mut steps = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(step) => steps.push(step),
            Err(_) if index + 1 == text.lines().count() && !text.ends_with('\n') => {}
            Err(source) => {
                return Err(
                    Error::usage(format!("{}:{}: not a step", file.display(), index + 1))
                        .hint("each line is one step, as a run wrote it")
                        .caused_by(source),
                );
            }
        }
    }
    Ok(steps)
}

/// The evolutions in a folder of them; none where there is no such folder.
fn evolutions(folder: &Path) -> Result<Vec<EvolutionRecord>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    let value = |file: &Path| parse(&read(file)?, file);
    (folders.iter())
        .filter_map(|folder| evolution::read(folder, &value).transpose())
        .collect()
}

/// The latest run's folder: their names begin with their time.
fn latest(out: &Path) -> Result<PathBuf> {
    let hint = "run something first, or let OUT (--out) name the folder where runs are kept";
    let entries = fs::read_dir(out).map_err(|source| {
        Error::usage(format!("failed to read {}", out.display()))
            .hint(hint)
            .caused_by(source)
    })?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("run.json").is_file())
        .max()
        .ok_or_else(|| Error::usage(format!("{} holds no run", out.display())).hint(hint))
}
