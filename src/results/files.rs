//! Writing files so that readers never see half of them, and the errors of files that cannot be written.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// Prefix and suffix of temporary files' names.
pub(super) const TEMPORARY: (&str, &str) = (".run", ".tmp");

/// Appends a line in one write, so that a concurrent reader never sees half of it. If the disk is full,
/// the part that was written is truncated.
pub(super) fn append(mut file: &File, line: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(line).inspect_err(|_| {
        let _ = file.set_len(before);
    })
}

/// How often a locked file is tried again, and the pause before each try.
const LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Locks a file against other processes. Tries for a moment, since a process that is being started holds a
/// copy of the descriptor until its program begins.
pub(super) fn lock(file: &File) -> Result<(), TryLockError> {
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            result => return result,
        }
    }
}

/// Waits until no other process holds the file's lock, and holds it. On a file system without locks nothing is
/// held: what is appended there in one write stays whole, unless a file server splits it.
pub(super) fn wait_for_lock(file: &File) {
    while file
        .lock()
        .is_err_and(|error| error.kind() == std::io::ErrorKind::Interrupted)
    {}
}

/// Whether `path` still names the open `file`, which a run that has just ended may have replaced.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::io::Result<fs::Metadata>| {
        metadata.map(|file| (file.dev(), file.ino())).ok()
    };
    identity(file.metadata()) == identity(fs::metadata(path))
}

/// Replaces a file atomically: temporary file, fsync, rename.
///
/// # Errors
/// Exit code 110 if it cannot be written.
pub fn replace(file: &Path, text: &[u8]) -> Result<()> {
    write_over(file, text, true).map_err(|source| cannot_write(file, source))
}

/// [`replace`] without the fsync: after a kill the file is the old or the new one, after a power cut
/// it may be neither.
///
/// # Errors
/// As [`replace`].
pub(super) fn replace_quickly(file: &Path, text: &[u8]) -> Result<()> {
    write_over(file, text, false).map_err(|source| cannot_write(file, source))
}

/// [`replace`] of a file that the user named with `flag`.
///
/// # Errors
/// As [`replace`].
pub fn replace_named(file: &Path, flag: &str, text: &[u8]) -> Result<()> {
    write_over(file, text, true).map_err(|source| cannot_write_file(file, flag, source))
}

/// [`replace`] with the caller's hint in the error.
///
/// # Errors
/// As [`replace`].
pub(super) fn replace_or_hint(file: &Path, hint: &str, text: &[u8]) -> Result<()> {
    write_over(file, text, true).map_err(|source| unwritten(file, source, hint))
}

/// Appends `text` in one write to the file that `variable` names; a new file if there is none.
///
/// # Errors
/// Exit code 110 if it cannot be written.
pub fn append_summary(file: &Path, variable: &str, text: &[u8]) -> Result<()> {
    let open = File::options().append(true).create(true).open(file);
    open.and_then(|open| append(&open, text))
        .map_err(|source| cannot_write_file(file, variable, source))
}

/// Resolves links in a path that the user named with `flag`. A path that does not exist stays as it is.
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

/// Replaces a file atomically, and returns it open for appending and locked: at no time is it there without a
/// lock.
pub(super) fn replace_locked(file: &Path, text: &[u8]) -> std::io::Result<File> {
    let mut temporary = temporary(file)?;
    temporary.write_all(text)?;
    temporary.as_file().sync_all()?;
    Ok(temporary.persist(file)?)
}

fn write_over(file: &Path, text: &[u8], sync: bool) -> std::io::Result<()> {
    let mut temporary = temporary(file)?;
    temporary.write_all(text)?;
    if sync {
        temporary.as_file().sync_all()?;
    }
    temporary.persist(file)?;
    Ok(())
}

/// A temporary file that is to take the place of `file`.
fn temporary(file: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // Temporary files are private by default, but others should be able to read a record as far as the
    // umask allows. An existing file keeps its permissions.
    let permissions = match fs::metadata(file) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => fs::Permissions::from_mode(0o666),
    };
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .permissions(permissions)
        .append(true)
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    // Tells it from one that a dead process left. A file system without locks has none before either.
    let _ = temporary.as_file().try_lock();
    Ok(temporary)
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

/// [`cannot_write`] for a file that the user named with `flag`.
pub(super) fn cannot_write_file(path: &Path, flag: &str, source: std::io::Error) -> Error {
    let hint = format!("let {flag} name a file that can be written, on a disk with room");
    unwritten(path, source, &hint)
}

pub(super) fn unwritten(path: &Path, source: std::io::Error, hint: &str) -> Error {
    Error::output(format!("failed to write {}", path.display()))
        .hint(hint)
        .caused_by(source)
}

/// The error for a file of a run that does not parse.
pub(super) fn not_a_record(file: &Path, source: serde_json::Error) -> Error {
    Error::usage(format!("{}: not the record of a run", file.display()))
        .hint("name a run's folder (results/RUN) or its run.json")
        .caused_by(source)
}
