//! A folder that stands for `/proc` or `/sys`.

use std::path::Path;

use tempfile::TempDir;

pub(in crate::environment) struct Tree(TempDir);

impl Tree {
    pub(in crate::environment) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(in crate::environment) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file in place, as the kernel changes what an open file reads.
    pub(in crate::environment) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("in the folder")).expect("writable");
        std::fs::write(path, text).expect("writable");
    }
}

/// `/proc/PID/stat` of a process that has used `ticks`.
pub(in crate::environment) fn stat_of(pid: u32, parent: u32, ticks: u64) -> String {
    format!("{pid} (a) b) S {parent} 1 1 0 -1 0 1 2 3 4 {ticks} 0 0 0 20 0 1 0 99 0 0\n")
}
