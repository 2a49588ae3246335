//! A run's folder, `results/<run-id>/`: `steps.jsonl` grows by a line after every step, `run.json`
//! is replaced as a whole. A killed run leaves every step that had ended.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{append, cannot_write, replace, replace_quickly};
use super::leftovers;
use crate::error::Result;
use crate::record::{RunRecord, StepRecord};
use crate::stopwatch::Timer;

/// How often a running run replaces `run.json` and syncs `steps.jsonl`: a power cut loses about a
/// second, and the disk is not what is measured.
const PERIOD: Duration = Duration::from_secs(1);

/// A long record is written less often: at least this many times the duration of a write lies between
/// two writes, so that they take at most a twentieth of the run.
const SHARE: u32 = 20;

/// The folder of a run in progress.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    pub(super) steps: File,
    saved: Timer,
    /// Duration of the last write of `run.json`.
    took: Duration,
}

impl RunFolder {
    /// Creates `out/<name>`, or `<name>-2` and so on if it exists. Returns the folder and its name.
    ///
    /// # Errors
    /// Exit code 110 if it cannot be created or written.
    pub fn create(out: &Path, name: &str) -> Result<(Self, String)> {
        fs::create_dir_all(out).map_err(|source| cannot_write(out, source))?;
        // Held against runs that start at the same time. Without a lock, nothing is cleaned up.
        let lock = File::open(out).and_then(|folder| folder.lock().map(|()| folder));
        if lock.is_ok() {
            leftovers::remove(out);
        }
        let mut number = 1;
        let (path, run_id) = loop {
            let run_id = match number {
                1 => name.to_owned(),
                number => format!("{name}-{number}"),
            };
            let path = out.join(&run_id);
            match fs::create_dir(&path) {
                Ok(()) => break (path, run_id),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(cannot_write(&path, error)),
            }
        };
        let file = path.join("steps.jsonl");
        let steps = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&file)
            .map_err(|source| cannot_write(&file, source))?;
        // Marks the run as alive; the lock is released when the process dies.
        let _ = steps.try_lock();
        Ok((Self::of(path, steps), run_id))
    }

    /// The folder at `path` with its `steps.jsonl`, open for appending and locked.
    pub(super) fn of(path: PathBuf, steps: File) -> Self {
        Self {
            path,
            steps,
            saved: Timer::start(),
            took: Duration::ZERO,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder of a run that measured nothing, as far as it can be removed.
    pub fn discard(self) {
        for file in ["steps.jsonl", "run.json"] {
            let _ = fs::remove_file(self.path.join(file));
        }
        let _ = fs::remove_dir(&self.path);
    }

    /// Appends a line to `steps.jsonl`.
    ///
    /// # Errors
    /// Exit code 110 if it cannot be written.
    pub fn add_step(&mut self, step: &StepRecord) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut line = serde_json::to_vec(step)?;
            line.push(b'\n');
            append(&self.steps, &line)
        };
        write().map_err(|source| cannot_write(&self.path.join("steps.jsonl"), source))
    }

    /// Replaces `run.json` unless that was done a moment ago.
    ///
    /// # Errors
    /// As [`RunFolder::save`].
    pub fn save_now_and_then(&mut self, run: &RunRecord) -> Result<()> {
        if self.saved.elapsed() < PERIOD.max(self.took * SHARE) {
            return Ok(());
        }
        self.save(run)
    }

    /// Replaces `run.json` without an fsync, which would take part of the time that is measured. It survives the
    /// process, but not a power cut; [`Self::save_now_and_then`] makes up for it.
    ///
    /// # Errors
    /// As [`RunFolder::save`].
    pub fn save_quickly(&self, run: &RunRecord) -> Result<()> {
        let file = self.path.join("run.json");
        replace_quickly(
            &file,
            &text(run).map_err(|source| cannot_write(&file, source))?,
        )
    }

    /// Replaces `run.json` (temporary file, fsync, rename) and syncs `steps.jsonl`.
    ///
    /// # Errors
    /// Exit code 110 if it cannot be written.
    pub fn save(&mut self, run: &RunRecord) -> Result<()> {
        let begun = Timer::start();
        let file = self.path.join("run.json");
        let text = text(run).and_then(|text| self.steps.sync_data().map(|()| text));
        let text = text.map_err(|source| cannot_write(&file, source))?;
        replace(&file, &text)?;
        self.took = begun.elapsed();
        self.saved = Timer::start();
        Ok(())
    }
}

/// Whether a run still writes to `folder`.
pub(super) fn is_in_use(folder: &Path) -> bool {
    let steps = File::open(folder.join("steps.jsonl"));
    steps.is_ok_and(|steps| matches!(steps.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The text of `run.json`.
fn text(run: &RunRecord) -> std::io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(run)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn two_runs_of_one_name_get_different_folders() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let (first, one) = RunFolder::create(out.path(), "run").expect("writable");
        let (second, two) = RunFolder::create(out.path(), "run").expect("writable");
        assert_eq!((one.as_str(), two.as_str()), ("run", "run-2"));
        assert_ne!(first.path(), second.path());
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_an_output_error() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let file = out.path().join("results");
        fs::write(&file, "a file, not a folder").expect("writable");
        let error = RunFolder::create(&file, "run").expect_err("not a folder");
        assert_eq!(error.exit(), Exit::Output);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("OUT")));
    }
}
