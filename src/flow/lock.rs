//! Keeps two runs apart that expand into one folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::stopwatch::Timer;

/// The lock's file in `flows/`. It stays there: removing it would let two runs lock two files.
const FILE: &str = ".lock";

/// How often a lock that another run holds is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// How often the caller hears that the wait goes on.
const NOTICE: Duration = Duration::from_millis(100);

/// Told ten times a second, with the time waited so far, while another run holds the lock, so that
/// the user can be told (a wait of a second is worth a line) and can end it: by an error from here.
pub type OnWait<'a> = &'a dyn Fn(Duration) -> Result<()>;

/// Held until it is dropped.
///
/// Where there can be no lock (a folder that cannot be written and has no lock file, a file system
/// without locks) it holds nothing: a valid cache can still be used, and files that another run
/// changes meanwhile no longer have their digests.
pub(super) struct FolderLock {
    _file: Option<File>,
}

impl FolderLock {
    /// Waits until no other run reads or writes the folder's flows.
    pub(super) fn exclusive(folder: &Path, on_wait: OnWait) -> Result<Self> {
        let path = folder.join(FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // The lock file may be another user's.
        let file = options.open(&path).or_else(|_| File::open(&path));
        wait(file.ok(), File::try_lock, on_wait)
    }

    /// Waits until no other run writes the folder's flows; creates nothing.
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
            // No locks on this file system.
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
    fn a_second_holder_waits_hears_of_it_and_can_give_up() {
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
    fn a_folder_without_a_lock_file_is_read_without_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        FolderLock::shared(folder.path(), &|_| Ok(())).expect("nothing to wait for");
        assert!(!folder.path().join(FILE).exists());
    }
}
