//! A run's folder, `results/<run-id>/`: `steps.jsonl` grows by a line after every step, `run.json`
//! is replaced as a whole. A run that is killed leaves every step that had ended.

mod leftovers;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::record::{RunRecord, StepRecord};
use crate::stopwatch::Pace;

/// How often `run.json` is replaced and `steps.jsonl` is forced to disk while a run goes on: often
/// enough that a power cut loses a second, seldom enough that the disk is not what is measured.
const PERIOD: Duration = Duration::from_secs(1);

/// How the names of files begin and end that are not whole yet.
const TEMPORARY: (&str, &str) = (".run", ".tmp");

/// A record that takes long to write is written less often: all of its replacements together take a
/// twentieth of the run's time at most, however long the record gets.
const SHARE: u32 = 20;

/// The folder of a run that goes on.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    steps: File,
    saved: Pace,
    /// How long the last replacement took.
    took: Duration,
}

impl RunFolder {
    /// Creates `out/<name>`, or `<name>-2` and so on where it is taken; returns the folder and the
    /// name that it got.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be created or written.
    pub fn create(out: &Path, name: &str) -> Result<(Self, String)> {
        fs::create_dir_all(out).map_err(|source| cannot_write(out, source))?;
        // Between runs that begin at once; where folders cannot be locked, nothing is cleaned up.
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
        // Tells other runs that this one goes on; a kill releases it.
        let _ = steps.try_lock();
        let folder = Self {
            path,
            steps,
            saved: Pace::start(),
            took: Duration::ZERO,
        };
        Ok((folder, run_id))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder: nothing was measured. What cannot be removed stays.
    pub fn discard(self) {
        for file in ["steps.jsonl", "run.json"] {
            let _ = fs::remove_file(self.path.join(file));
        }
        let _ = fs::remove_dir(&self.path);
    }

    /// Adds a line to `steps.jsonl`.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be written.
    pub fn add_step(&mut self, step: &StepRecord) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut line = serde_json::to_vec(step)?;
            line.push(b'\n');
            append(&self.steps, &line)
        };
        write().map_err(|source| cannot_write(&self.path.join("steps.jsonl"), source))
    }

    /// Replaces `run.json` if the last time is some while ago.
    ///
    /// # Errors
    /// As [`RunFolder::save`].
    pub fn save_now_and_then(&mut self, run: &RunRecord) -> Result<()> {
        if self.saved.elapsed() < PERIOD.max(self.took * SHARE) {
            return Ok(());
        }
        self.save(run)
    }

    /// Replaces `run.json` (temporary file, fsync, rename) and forces `steps.jsonl` to disk.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be written.
    pub fn save(&mut self, run: &RunRecord) -> Result<()> {
        let begun = Pace::start();
        let file = self.path.join("run.json");
        let text = || -> std::io::Result<Vec<u8>> {
            let mut text = serde_json::to_vec_pretty(run)?;
            text.push(b'\n');
            self.steps.sync_data()?;
            Ok(text)
        };
        let text = text().map_err(|source| cannot_write(&file, source))?;
        replace(&file, &text)?;
        self.took = begun.elapsed();
        self.saved = Pace::start();
        Ok(())
    }
}

/// Adds a line to a file that is open for appending, in one write: a reader beside the run never sees
/// half a line. Where the disk is full, what was written of the line is taken back.
pub(super) fn append(mut file: &File, line: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(line).inspect_err(|_| {
        let _ = file.set_len(before);
    })
}

/// Replaces a file as a whole: temporary file, fsync, rename.
///
/// # Errors
/// Exit code 110 where it cannot be written.
pub fn replace(file: &Path, text: &[u8]) -> Result<()> {
    write_over(file, text, true).map_err(|source| cannot_write(file, source))
}

/// The same without the fsync: a kill leaves the old file or the new one, a power cut may leave
/// neither.
///
/// # Errors
/// As [`replace`].
pub(super) fn replace_quickly(file: &Path, text: &[u8]) -> Result<()> {
    write_over(file, text, false).map_err(|source| cannot_write(file, source))
}

/// [`replace`], of a file that the user has named with `flag`.
///
/// # Errors
/// As [`replace`].
pub(super) fn replace_named(file: &Path, flag: &str, text: &[u8]) -> Result<()> {
    write_over(file, text, true).map_err(|source| cannot_write_file(file, flag, source))
}

/// [`replace`], with a hint of the caller's where the file cannot be written.
///
/// # Errors
/// As [`replace`].
pub fn replace_or_hint(file: &Path, hint: &str, text: &[u8]) -> Result<()> {
    write_over(file, text, true).map_err(|source| unwritten(file, source, hint))
}

/// Where a file that the user has named really is: behind links, and an ordinary file, if there is
/// anything.
///
/// # Errors
/// Exit code 2 for a folder, a device or a pipe.
pub fn ordinary(path: &Path, flag: &str) -> Result<PathBuf> {
    let Ok(real) = fs::canonicalize(path) else {
        return Ok(path.to_owned());
    };
    if fs::metadata(&real).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(real);
    }
    let what = format!("{} is no ordinary file", path.display());
    Err(Error::usage(what).hint(format!("let {flag} name a file, or a new one")))
}

fn write_over(file: &Path, text: &[u8], sync: bool) -> std::io::Result<()> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // Temporary files are private by default; a record is to be read by others, as far as the umask
    // lets them. A file that is there stays as private as it is.
    let permissions = match fs::metadata(file) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => fs::Permissions::from_mode(0o666),
    };
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .permissions(permissions)
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    temporary.write_all(text)?;
    if sync {
        temporary.as_file().sync_all()?;
    }
    temporary.persist(file)?;
    Ok(())
}

pub(super) fn cannot_write(path: &Path, source: std::io::Error) -> Error {
    let hint = match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "make room on that disk, or let OUT name a folder on another one"
        }
        _ => "let OUT (--out) name a folder that can be written",
    };
    unwritten(path, source, hint)
}

/// The same of a file that the user has named.
pub(super) fn cannot_write_file(path: &Path, flag: &str, source: std::io::Error) -> Error {
    let hint = format!("let {flag} name a file that can be written, on a disk with room");
    unwritten(path, source, &hint)
}

fn unwritten(path: &Path, source: std::io::Error, hint: &str) -> Error {
    Error::output(format!("failed to write {}", path.display()))
        .hint(hint)
        .caused_by(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn two_runs_of_one_name_get_folders_of_their_own() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let (first, one) = RunFolder::create(out.path(), "run").expect("writable");
        let (second, two) = RunFolder::create(out.path(), "run").expect("writable");
        assert_eq!((one.as_str(), two.as_str()), ("run", "run-2"));
        assert_ne!(first.path(), second.path());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_output_error() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let file = out.path().join("results");
        fs::write(&file, "a file, not a folder").expect("writable");
        let error = RunFolder::create(&file, "run").expect_err("not a folder");
        assert_eq!(error.exit(), Exit::Output);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("OUT")));
    }
}
