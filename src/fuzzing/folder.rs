//! A folder in memory for the files of an input.

use std::fs;
use std::path::{Path, PathBuf};

/// Removed when it is dropped.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        // In memory where there is such a file system: a fuzzer makes a thousand of them a second.
        let folder = match Path::new("/dev/shm").is_dir() {
            true => tempfile::tempdir_in("/dev/shm"),
            false => tempfile::tempdir(),
        };
        Self(folder.expect("a temporary folder"))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.file(name);
        let folder = path.parent().expect("it is below the folder");
        fs::create_dir_all(folder).expect("a folder is made");
        fs::write(path, content).expect("a file is written");
    }
}
