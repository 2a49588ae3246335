//! Serializes runs that expand into the same folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::stopwatch::Timer;

/// The lock file in `flows/`. It is never removed: otherwise two runs could lock two different files.
const FILE: &str = ".lock";

/// Interval between attempts to take a lock held by another run.
const RETRY: Duration = Duration::from_millis(10);

/// Interval between calls of [`OnWait`].
const NOTICE: Duration = Duration::from_millis(100);

/// Called ten times a second while another run holds the lock, with the time waited so far. It can inform
/// the user, and end the wait by returning an error.
pub type OnWait<'a> = &'a dyn Fn(Duration) -> Result<()>;

/// A lock that is held until dropped.
///
/// If locking is impossible (a read-only folder without a lock file, a file system without locks), it holds
/// nothing. A valid cache is still usable then, and files changed concurrently by another run fail their
/// digest check.
pub(super) struct FolderLock {
    _file: Option<File>,
}

impl FolderLock {
    /// Waits until no other run reads or writes the flows of the folder.
    pub(super) fn exclusive(folder: &Path, on_wait: OnWait) -> Result<Self> {
        let path = folder.join(FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // The lock file may belong to another user and be read-only.
        let file = options.open(&path).or_else(|_| File::open(&path));
        wait(file.ok(), File::try_lock, on_wait)
    }

    /// Waits until no other run writes the flows of the folder. Creates nothing.
    pub(super) fn shared(folder: &Path, on_wait: OnWait) -> Result<Self> {
        let file = File::open(folder.join(FILE));
        wait(file.ok(), File::try_lock_shared, on_wait)
    }
}

fn wait(
    file: Option<File>,
    try_lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    on_wait: OnWait,
) -> Result<FolderLock> {
    let Some(file) = file else {
        return Ok(FolderLock { _file: None });
    };
    let waiting = Timer::start();
    let mut next_notice = NOTICE;
    loop {
        match try_lock(&file) {
            Ok(()) => return Ok(FolderLock { _file: Some(file) }),
            // This file system has no locks.
            Err(TryLockError::Error(_)) => return Ok(FolderLock { _file: None }),
            Err(TryLockError::WouldBlock) => std::thread::sleep(RETRY),
        }
        if waiting.elapsed() >= next_notice {
            on_wait(waiting.elapsed())?;
            next_notice += NOTICE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::cell::Cell;

    #[test]
    fn a_waiting_run_is_notified_and_can_give_up() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let unheard: OnWait = &|_| panic!("nobody holds it");
        let first = FolderLock::exclusive(folder.path(), unheard).expect("it is free");

        let heard = Cell::new(0);
        let given_up = FolderLock::shared(folder.path(), &|waited| {
            heard.set(heard.get() + 1);
            assert!(waited >= NOTICE);
            Err(Error::usage("enough"))
        });
        assert_eq!(
            given_up.err().map(|error| error.to_string()).as_deref(),
            Some("enough")
        );
        assert_eq!(heard.get(), 1);

        drop(first);
        let _reader = FolderLock::shared(folder.path(), unheard).expect("it is free again");
        let _beside = FolderLock::shared(folder.path(), unheard).expect("readers share it");
    }

    #[test]
    fn reading_creates_no_lock_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        FolderLock::shared(folder.path(), &|_| Ok(())).expect("nothing to wait for");
        assert!(!folder.path().join(FILE).exists());
    }
}
