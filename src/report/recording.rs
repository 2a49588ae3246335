//! A run's answers as a script, for `MODE=scripted` and for `--pin-outputs`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folder::{append, cannot_write_file, ordinary};
use crate::error::{Error, Result};
use crate::record::StepRecord;
use crate::units::Millis;

/// The flag that names the file.
const FLAG: &str = "--record";

/// A line of a script.
#[derive(Serialize)]
struct Line<'a> {
    flow: usize,
    row: &'a str,
    step: &'a str,
    sample: usize,
    output: &'a str,
    queue_ms: Option<Millis>,
    ttft_ms: Option<Millis>,
    latency_ms: Millis,
}

/// Where the recording that is to get to `path` grows.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// A recording that grows beside its file, and takes its place at the end.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl Recording {
    /// Begins one; a file that is there stays until the end.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let path = ordinary(path, FLAG)?;
        let partial = partial(&path);
        let open = || {
            let mut options = OpenOptions::new();
            options.append(true).create(true).open(&partial)
        };
        let file = open().map_err(|source| cannot_write_file(&partial, FLAG, source))?;
        if file.try_lock().is_err() {
            let what = format!("another run records to {}", path.display());
            return Err(Error::usage(what).hint("wait for its end, or name another file"));
        }
        file.set_len(0)
            .map_err(|source| cannot_write_file(&partial, FLAG, source))?;
        Ok(Self {
            path,
            partial,
            file,
        })
    }

    /// Adds what the model has answered; other steps are left out.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn add(&mut self, step: &StepRecord) -> Result<()> {
        if !matches!(step.kind(), "generate" | "judge") {
            return Ok(());
        }
        let line = Line {
            flow: step.flow,
            row: &step.row,
            step: &step.step,
            sample: step.sample.unwrap_or(1),
            output: &step.output,
            queue_ms: step.queue_ms,
            ttft_ms: step.ttft_ms,
            latency_ms: step.latency_ms,
        };
        let write = || -> std::io::Result<()> {
            let mut line = serde_json::to_vec(&line)?;
            line.push(b'\n');
            append(&self.file, &line)
        };
        write().map_err(|source| cannot_write_file(&self.partial, FLAG, source))
    }

    /// Puts it into its place; one that is not `complete` only where there is none before. Returns where
    /// it is.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn finish(self, complete: bool) -> Result<PathBuf> {
        let replaces = complete || !self.path.exists();
        let end = || -> std::io::Result<()> {
            self.file.sync_all()?;
            match replaces {
                true => fs::rename(&self.partial, &self.path),
                false => Ok(()),
            }
        };
        end().map_err(|source| cannot_write_file(&self.path, FLAG, source))?;
        Ok(if replaces { self.path } else { self.partial })
    }

    /// Leaves nothing behind: nothing was recorded.
    pub fn forget(self) {
        let _ = fs::remove_file(self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_a_script_and_an_old_one_stays_until_then() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("base.jsonl");
        fs::write(&path, "old").expect("writable");
        let mut recording = Recording::create(&path).expect("writable");
        let step = StepRecord {
            flow: 2,
            row: "r".to_owned(),
            step: "plan".to_owned(),
            output: "a \"b\"".to_owned(),
            latency_ms: Millis(5.0),
            ..StepRecord::default()
        };
        recording.add(&step).expect("writable");
        let evaluated = StepRecord {
            kind: Some("evaluate".to_owned()),
            ..step
        };
        recording.add(&evaluated).expect("writable");
        assert_eq!(fs::read_to_string(&path).expect("there"), "old");
        let second = Recording::create(&path).expect_err("taken");
        assert!(second.report().contains("another run records"));
        recording.finish(true).expect("writable");
        let text = fs::read_to_string(&path).expect("there");
        assert_eq!(
            text,
            "{\"flow\":2,\"row\":\"r\",\"step\":\"plan\",\"sample\":1,\"output\":\"a \\\"b\\\"\",\
             \"queue_ms\":null,\"ttft_ms\":null,\"latency_ms\":5.0}\n"
        );
    }

    #[test]
    fn half_a_recording_replaces_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("base.jsonl");
        let finish = |complete| {
            let recording = Recording::create(&path).expect("writable");
            recording.finish(complete).expect("writable")
        };
        assert_eq!(finish(false), path, "there is none yet");
        fs::write(&path, "whole").expect("writable");
        assert_eq!(finish(false), folder.path().join("base.jsonl.partial"));
        assert_eq!(fs::read_to_string(&path).expect("there"), "whole");
        assert_eq!(finish(true), path);
        Recording::create(&path).expect("writable").forget();
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1);
    }
}
