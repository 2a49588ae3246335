//! Records a run's answers as a script for `MODE=scripted` and `--pin-outputs`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{append, cannot_write_file, ordinary};
use crate::error::{Error, Result};
use crate::record::StepRecord;
use crate::units::Millis;

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

/// The file that a recording to `path` is written to until the run ends.
pub(super) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// A recording in progress. It replaces its target when it is complete.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl Recording {
    /// Starts a recording; an existing file is kept until [`Self::finish`].
    ///
    /// # Errors
    /// Exit code 110 if it cannot be written, 2 if another run is recording to it.
    pub fn create(path: &Path) -> Result<Self> {
        let path = ordinary(path, FLAG)?;
        let partial = partial(&path);
        let open = || {
            let mut options = OpenOptions::new();
            options.append(true).create(true).open(&partial)
        };
        let file = open().map_err(|source| cannot_write_file(&partial, FLAG, source))?;
        // A file system without locks refuses nobody.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
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

    /// Appends a step's answer. Steps that ask no model are skipped.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn add(&mut self, step: &StepRecord) -> Result<()> {
        if !step.asks_a_model() {
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

    /// Moves the recording to its target. An incomplete one never replaces an existing file. Returns
    /// where the recording is.
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

    /// Deletes a recording of a run that measured nothing.
    pub fn forget(self) {
        let _ = fs::remove_file(self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_recording_is_kept_until_the_new_one_is_complete() {
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
    fn an_incomplete_recording_replaces_no_file() {
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
