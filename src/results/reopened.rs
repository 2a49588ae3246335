//! The folder of an earlier run, opened to go on with it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::files::{is_at, lock, replace_locked, unwritten};
use super::{RunFolder, leftovers, reading, runs, saved};
use crate::error::{Error, Result};
use crate::record::{RunRecord, StepRecord};

/// An earlier run. Its `steps.jsonl` is locked, and nothing has been changed.
#[derive(Debug)]
pub struct Reopened {
    path: PathBuf,
    file: File,
    /// `steps.jsonl` up to the last whole line.
    text: String,
    /// Bytes of the file, with a line that was cut off.
    length: u64,
    /// `run.json`.
    pub record: RunRecord,
    /// The lines of `text`.
    pub steps: Vec<StepRecord>,
}

impl Reopened {
    /// Opens the run that `name` names, as [`runs::resolve`] understands it.
    ///
    /// # Errors
    /// Exit code 2 if there is no such run, it cannot be read, or it is still going on; 110 if it cannot be
    /// written.
    pub fn open(name: &str, out: &Path) -> Result<Self> {
        let path = find(name, out)?;
        let steps = path.join("steps.jsonl");
        let hold = hold(&path);
        let mut file = (OpenOptions::new().read(true).append(true).open(&steps))
            .map_err(|source| cannot_open(&steps, source))?;
        if matches!(lock(&file), Err(TryLockError::WouldBlock)) || !is_at(&file, &steps) {
            let what = format!("the run in {} is still going on", path.display());
            return Err(Error::usage(what).hint("wait for its end, or stop it, and resume it then"));
        }
        drop(hold);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|source| cannot_open(&steps, source))?;
        let length = bytes.len() as u64;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |last| last + 1));
        let text = String::from_utf8(bytes).map_err(|source| {
            Error::usage(format!("{} is not UTF-8", steps.display()))
                .hint("the file was changed after the run: start a new one")
                .caused_by(source)
        })?;
        let record = reading::record(&path.join("run.json"))?;
        let steps = saved::parse_steps(&text, &steps)?;
        Ok(Self {
            path,
            file,
            text,
            length,
            record,
            steps,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes all steps from `steps.jsonl` but those that `keep` keeps, a line that was cut off, and temporary
    /// files. Returns
    /// the folder, the steps that are left, and how many whole lines were removed.
    ///
    /// # Errors
    /// Exit code 110 if the file cannot be written.
    pub fn keep(
        self,
        keep: impl Fn(&StepRecord) -> bool,
    ) -> Result<(RunFolder, Vec<StepRecord>, usize)> {
        leftovers::remove_temporary(&self.path);
        let before = self.steps.len();
        let mut kept = String::new();
        let mut steps = Vec::with_capacity(before);
        for (line, step) in self.text.split_inclusive('\n').zip(self.steps) {
            if keep(&step) {
                kept.push_str(line);
                steps.push(step);
            }
        }
        let path = self.path.join("steps.jsonl");
        let length = kept.len() as u64;
        let file = if !self.text.starts_with(&kept) {
            replace_locked(&path, kept.as_bytes())
        } else if length < self.length {
            (self
                .file
                .set_len(length)
                .and_then(|()| self.file.sync_all()))
            .map(|()| self.file)
        } else {
            Ok(self.file)
        };
        let file = file.map_err(|source| cannot_open(&path, source))?;
        let dropped = before - steps.len();
        Ok((RunFolder::of(self.path, file), steps, dropped))
    }
}

/// The folder of the run that `name` names.
fn find(name: &str, out: &Path) -> Result<PathBuf> {
    let is_incomplete =
        |path: &PathBuf| path.join("steps.jsonl").is_file() && !path.join("run.json").exists();
    if let Some(path) = [PathBuf::from(name), out.join(name)]
        .into_iter()
        .find(is_incomplete)
    {
        let what = format!("{} has no run.json", path.display());
        return Err(
            Error::usage(what).hint("without its settings it cannot go on: start a new run")
        );
    }
    let mut folders = runs::resolve(name, out)?;
    match (folders.pop(), folders.is_empty()) {
        (Some(folder), true) => Ok(folder),
        _ => Err(Error::usage(format!("{name} names several runs"))
            .hint("name the one run to go on with")),
    }
}

/// Holds the folder above a run, as a run that starts does, so that neither takes the other's folder for that of
/// a dead run. Without locks, there is nothing to hold.
fn hold(run: &Path) -> Option<File> {
    let above = run.canonicalize().ok()?.parent()?.to_owned();
    let folder = File::open(&above).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// The error for a `steps.jsonl` that cannot be opened or written.
fn cannot_open(path: &Path, source: std::io::Error) -> Error {
    let hint = match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "make room on that disk"
        }
        _ => "a run is resumed in its own folder, which must be writable",
    };
    unwritten(path, source, hint)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::Exit;

    const RECORD: &str = r#"{"schema": 1, "run_id": "r", "started_at": "2026-01-31T09:30:00Z",
        "status": "running", "error": null, "settings": {}, "environment": {"flowbench": "0",
        "git_revision": null, "os": "", "cpu": "", "cpu_threads": 1, "cpu_features": [], "memory_bytes": 1,
        "build": ""}, "expansion": {"template": "t", "fixture_hash": "", "template_hash": "",
        "fixture_bytes": 0, "fixture_files": 0, "num_flows": 1, "cached": false, "miss": null,
        "flow_expansion_ms": 1.0}, "engine": null, "engine_init_ms": null, "engine_starts": 0,
        "workflows": [], "totals": {"workflows_done": 0, "workflows_failed": 0, "steps_done": 0,
        "prompt_tokens": 0, "prefill_tokens": 0, "reused_tokens": 0, "decode_tokens": 0,
        "benchmark_total_ms": null, "avg_workflow_ms": null}}"#;

    /// A folder with a run `r` of these bytes of steps.
    fn run(steps: &[u8]) -> tempfile::TempDir {
        let out = tempfile::tempdir().expect("a temporary folder");
        let folder = out.path().join("r");
        fs::create_dir(&folder).expect("writable");
        fs::write(folder.join("run.json"), RECORD).expect("writable");
        fs::write(folder.join("steps.jsonl"), steps).expect("writable");
        out
    }

    fn line(flow: usize, output: &str) -> String {
        let step = StepRecord {
            flow,
            output: output.to_owned(),
            score: Some(1.0 / 3.0 + flow as f64),
            ..StepRecord::default()
        };
        serde_json::to_string(&step).expect("plain fields") + "\n"
    }

    #[test]
    fn whole_lines_stay_byte_for_byte_wherever_the_last_one_was_cut_off() {
        let first = line(1, "é");
        let whole = first.clone() + &line(2, "é");
        for end in first.len()..whole.len() {
            let out = run(&whole.as_bytes()[..end]);
            let reopened = Reopened::open("r", out.path()).expect("sound");
            let (_folder, steps, dropped) = reopened.keep(|_| true).expect("writable");
            assert_eq!((steps.len(), dropped), (1, 0));
            assert_eq!(steps[0].score, Some(1.0 / 3.0 + 1.0));
            let left = fs::read(out.path().join("r/steps.jsonl")).expect("there");
            assert_eq!(left, first.as_bytes());
        }
    }

    #[test]
    fn steps_are_removed_from_the_middle_and_the_file_stays_locked() {
        let all: Vec<String> = (1..=4).map(|flow| line(flow, "x")).collect();
        for kept in [vec![1, 2], vec![1, 3], vec![], vec![1, 2, 3, 4]] {
            let out = run(all.concat().as_bytes());
            let reopened = Reopened::open("r", out.path()).expect("sound");
            let (mut folder, steps, dropped) = reopened
                .keep(|step| kept.contains(&step.flow))
                .expect("writable");
            assert_eq!((steps.len(), dropped), (kept.len(), 4 - kept.len()));
            let refused = Reopened::open("r", out.path()).expect_err("taken");
            assert!(refused.report().contains("is still going on"));
            folder.add_step(&steps_of(5)).expect("writable");
            let left = fs::read_to_string(out.path().join("r/steps.jsonl")).expect("there");
            let expected: String = kept.iter().map(|flow| all[flow - 1].as_str()).collect();
            assert!(left.starts_with(&expected), "{left}");
            assert_eq!(left.lines().count(), kept.len() + 1);
        }
    }

    fn steps_of(flow: usize) -> StepRecord {
        StepRecord {
            flow,
            ..StepRecord::default()
        }
    }

    #[test]
    fn a_run_has_several_names() {
        let out = run(b"");
        let folder = out.path().join("r").display().to_string();
        for name in ["r", "latest", &folder, &format!("{folder}/run.json")] {
            let reopened = Reopened::open(name, out.path()).expect(name);
            assert_eq!(reopened.record.run_id, "r");
        }
        let missing = Reopened::open("s", out.path()).expect_err("none");
        assert_eq!(missing.exit(), Exit::Usage);
        assert!(
            missing
                .report()
                .contains("no run or baseline is called \"s\"")
        );
        fs::remove_file(out.path().join("r/run.json")).expect("there");
        let lost = Reopened::open("r", out.path()).expect_err("incomplete");
        assert!(lost.report().contains("has no run.json"));
    }
}
