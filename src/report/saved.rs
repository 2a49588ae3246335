//! Runs that were kept: reads `run.json` and `steps.jsonl` again.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::evolution;
use crate::error::{Error, Result};
use crate::record::evaluation::EvolutionRecord;
use crate::record::{RECORD_SCHEMA, RunRecord, StepRecord};
use crate::text_file;

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
    text_file::read_text(file).map_err(|source| {
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
    folders.sort_by_cached_key(|folder| natural(folder.as_os_str()));
    let value = |file: &Path| parse(&read(file)?, file);
    (folders.iter())
        .filter_map(|folder| evolution::read(folder, &value).transpose())
        .collect()
}

/// The latest run's folder.
///
/// The names of runs begin with the second of their start. Within a second the record's own time
/// decides, and among copies of one run their number (`-10` comes after `-9`). The record is read, too,
/// where a run was given another name.
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
        .map(|path| (second(&path), path))
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

/// The time at the beginning of a run's name, such as `20260131T093000Z`.
pub(super) fn second(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let time = name.split('-').next()?;
    let shape: String = (time.chars())
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    (shape == "00000000T000000Z").then(|| time.to_owned())
}

/// When the record says that the run began; before everything else where it says nothing.
fn started_at(run: &Path) -> Option<jiff::Timestamp> {
    #[derive(serde::Deserialize)]
    struct Started {
        started_at: String,
    }
    let text = fs::read(run.join("run.json")).ok()?;
    let started: Started = serde_json::from_slice(&text).ok()?;
    started.started_at.parse().ok()
}

/// A name in parts that sort as people count: digits by the number that they are.
fn natural(name: &OsStr) -> Vec<(String, u128)> {
    let name = name.to_string_lossy();
    let mut parts = Vec::new();
    let mut rest = &*name;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, from_digits) = rest.split_at(digits);
        let end = from_digits.find(|c: char| !c.is_ascii_digit());
        let (number, after) = from_digits.split_at(end.unwrap_or(from_digits.len()));
        // More digits than a number has are no number of a run.
        parts.push((text.to_owned(), number.parse().unwrap_or(0)));
        rest = after;
    }
    parts
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

    #[test]
    fn names_sort_as_people_count() {
        let mut names = ["x-10", "x-9", "x", "x-2", "flow_100000", "flow_99999"];
        names.sort_by_key(|name| natural(OsStr::new(name)));
        assert_eq!(
            names,
            ["flow_99999", "flow_100000", "x", "x-2", "x-9", "x-10"]
        );
    }
}
