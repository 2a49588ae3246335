//! The profile's files: `profile.log` and `trace.json` in the run's folder, and the copy in `PROFILE_DIR`.
//! They are written when the run ends, and also in a panic and at the second Ctrl-C.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::ProfileConfig;
use crate::error::{Context as _, Exit, Result};
use crate::profile;
use crate::record::profile::Profile;

use super::files;

/// Files that are still to be written. Global, so that the signal handler can write them.
static PENDING: Mutex<PendingFiles> = Mutex::new(PendingFiles {
    tables: Vec::new(),
    trace: None,
});

#[derive(Default)]
struct PendingFiles {
    tables: Vec<PathBuf>,
    trace: Option<PathBuf>,
}

/// The copy of the table in `PROFILE_DIR`.
pub(super) fn copy_path(config: &ProfileConfig, run_id: &str) -> Option<PathBuf> {
    let name = config.profile_name.as_deref().unwrap_or(run_id);
    let folder = config.profile_dir.as_ref()?;
    Some(folder.join(format!("{name}.log")))
}

/// The profile's files until they are written. Dropping it writes them, as far as possible.
#[derive(Debug)]
pub struct ProfileFiles(());

impl ProfileFiles {
    pub fn new(config: &ProfileConfig, folder: &Path, run_id: &str) -> Self {
        let mut files = PendingFiles::default();
        if config.profile {
            files.tables.push(folder.join("profile.log"));
            files.trace = Some(folder.join("trace.json"));
        }
        files.tables.extend(copy_path(config, run_id));
        *pending() = files;
        Self(())
    }

    /// Writes the profile of the run's record.
    ///
    /// # Errors
    /// Exit code 110 if a file cannot be written; the others are written all the same.
    pub fn write(&self, profile: Option<&Profile>) -> Result<()> {
        profile.map_or(Ok(()), |profile| write(&mut pending(), profile))
    }

    /// Writes nothing: there is no run.
    pub fn forget(self) {
        std::mem::take(&mut *pending());
    }
}

impl Drop for ProfileFiles {
    fn drop(&mut self) {
        // The run already ends with another error.
        let _ = write_pending();
    }
}

/// Writes the profile as it is now, unless it has been written.
///
/// # Errors
/// Exit code 110 if a file cannot be written; the others are written all the same.
pub fn write_pending() -> Result<()> {
    let mut files = pending();
    match profile::snapshot() {
        Some(profile) if !files.tables.is_empty() => write(&mut files, &profile),
        _ => Ok(()),
    }
}

/// Locked until the files are written: the process may exit as soon as another thread finds none.
fn pending() -> MutexGuard<'static, PendingFiles> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes `files` and forgets them.
fn write(files: &mut PendingFiles, profile: &Profile) -> Result<()> {
    let files = std::mem::take(files);
    let text = profile::text(profile);
    let mut result = Ok(());
    for file in files.tables {
        result = result.and(write_file(&file, &text));
    }
    if let (Some(file), Some(trace)) = (files.trace, profile::trace()) {
        result = result.and(write_file(&file, &trace));
    }
    result
}

/// Writes atomically.
fn write_file(file: &Path, text: &str) -> Result<()> {
    const HINT: &str = "let PROFILE_DIR (--profile-dir) and OUT (--out) name folders that can be written, on a disk with room";
    let made = file.parent().map_or(Ok(()), fs::create_dir_all);
    made.or_exit(Exit::Output, || {
        format!("failed to write {}", file.display())
    })
    .map_err(|error| error.hint(HINT))?;
    let file = files::ordinary(file, "PROFILE_NAME (--profile-name)")?;
    files::replace_or_hint(&file, HINT, text.as_bytes())
}
