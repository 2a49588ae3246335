//! Reads a saved run back from its folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::evolution;
use super::files::not_a_record;
use super::names::{natural, start_time};
use crate::error::{Error, Result};
use crate::record::evaluation::EvolutionRecord;
use crate::record::{RECORD_SCHEMA, RunRecord, StepRecord};
use crate::text_file;

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
    text_file::read_text(file).map_err(|source| {
        Error::usage(format!("failed to read {}", file.display()))
            .hint("name a run's folder (results/RUN) or its run.json, or none for the latest run")
            .caused_by(source)
    })
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str, file: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|source| not_a_record(file, source))
}

/// Reads `steps.jsonl`. The last line of a killed run may be incomplete; it is skipped.
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

/// The folder of the latest run.
///
/// Run names begin with the second of their start. Within a second `started_at` of the record decides,
/// then the number of the name. Runs that were renamed are compared by `started_at` alone.
fn latest(out: &Path) -> Result<PathBuf> {
    let hint = "run something first, or let OUT (--out) name the folder where runs are kept";
    let entries = fs::read_dir(out).map_err(|source| {
        Error::usage(format!("failed to read {}", out.display()))
            .hint(hint)
            .caused_by(source)
    })?;
    let runs: Vec<(Option<String>, PathBuf)> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("run.json").is_file())
        .map(|path| (start_time(&path), path))
        .collect();
    let last = runs.iter().filter_map(|(second, _)| second.clone()).max();
    let candidates = runs
        .into_iter()
        .filter(|(second, _)| second.is_none() || *second == last);
    let latest = candidates
        .map(|(_, path)| {
            let name = natural(path.file_name().unwrap_or_default());
            (started_at(&path), name, path)
        })
        .max()
        .map(|(_, _, path)| path);
    latest.ok_or_else(|| Error::usage(format!("{} holds no run", out.display())).hint(hint))
}

/// `started_at` of the record; `None`, which sorts first, if it cannot be read.
fn started_at(run: &Path) -> Option<jiff::Timestamp> {
    #[derive(serde::Deserialize)]
    struct Started {
        started_at: String,
    }
    let text = fs::read(run.join("run.json")).ok()?;
    let started: Started = serde_json::from_slice(&text).ok()?;
    started.started_at.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latest_of(runs: &[(&str, &str)]) -> String {
        let out = tempfile::tempdir().expect("a temporary folder");
        for (name, started_at) in runs {
            let folder = out.path().join(name);
            fs::create_dir(&folder).expect("writable");
            let record = format!("{{\"schema\": 1, \"started_at\": \"{started_at}\"}}");
            fs::write(folder.join("run.json"), record).expect("writable");
        }
        let found = latest(out.path()).expect("there are runs");
        found.file_name().expect("a name").display().to_string()
    }

    #[test]
    fn the_latest_run_is_the_one_that_began_last() {
        let at = "2026-01-31T09:30:00.5Z";
        let copies: Vec<String> = ["", "-2", "-9", "-10", "-11"]
            .map(|number| format!("20260131T093000Z-scripted{number}"))
            .into();
        let copies: Vec<(&str, &str)> = copies.iter().map(|name| (name.as_str(), at)).collect();
        assert_eq!(latest_of(&copies), "20260131T093000Z-scripted-11");
        // Two modes in a second.
        let modes = [
            ("20260131T093000Z-standalone", "2026-01-31T09:30:00.1Z"),
            ("20260131T093000Z-reuse", "2026-01-31T09:30:00.12Z"),
        ];
        assert_eq!(latest_of(&modes), "20260131T093000Z-reuse");
        let renamed = [
            ("20260131T093000Z-reuse", "2026-01-31T09:30:00Z"),
            ("baseline", "2026-01-30T09:30:00Z"),
        ];
        assert_eq!(latest_of(&renamed), "20260131T093000Z-reuse");
        let renamed = [renamed[1], ("zero", "2026-01-30T09:29:59Z")];
        assert_eq!(latest_of(&renamed), "baseline");
    }
}
