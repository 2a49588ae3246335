//! Processor time of this process and its descendants, found through `/proc/PID/task/TID/children`: a walk
//! over all processes, as [`crate::environment::LoadMeter`] does it, would cost too much every second.

use std::fs;
use std::path::{Path, PathBuf};

use super::kept::KeptFile;
use crate::environment::load::process;

/// More generations of processes are not followed.
const DEEPEST: usize = 16;

#[derive(Debug)]
pub(super) struct OwnTime {
    proc: PathBuf,
    pid: u32,
    stat: KeptFile,
}

impl OwnTime {
    /// # Errors
    /// Why it cannot be known.
    pub(super) fn open(proc: &Path, pid: u32) -> Result<Self, String> {
        let path = proc.join(format!("{pid}/stat"));
        let failed = |error| format!("failed to read {}: {error}", path.display());
        let stat = KeptFile::open(&path).map_err(failed)?;
        // Without the list, the time of evaluated programs would count as that of others.
        let children = proc.join(format!("{pid}/task/{pid}/children"));
        if let Err(error) = fs::read_to_string(&children) {
            return Err(format!("failed to read {}: {error}", children.display()));
        }
        let proc = proc.to_owned();
        Ok(Self { proc, pid, stat })
    }

    /// Kernel ticks of the process, its children that have ended, and its living descendants.
    pub(super) fn ticks(&mut self) -> Option<u64> {
        let own = process(self.stat.read().ok()?)?.ticks;
        Some(own + self.of_children(self.pid, DEEPEST))
    }

    fn of_children(&self, pid: u32, depth: usize) -> u64 {
        let tasks = self.proc.join(format!("{pid}/task"));
        let Some(depth) = depth.checked_sub(1) else {
            return 0;
        };
        // A process that has ended in between is in its parent's time.
        let tasks = fs::read_dir(tasks).into_iter().flatten().flatten();
        let mut sum = 0;
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                let Ok(child) = child.parse::<u32>() else {
                    continue;
                };
                let stat = fs::read_to_string(self.proc.join(format!("{child}/stat")));
                let stat = stat.ok().and_then(|text| process(&text));
                sum += stat.map_or(0, |stat| stat.ticks) + self.of_children(child, depth);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::host::testing::{Tree, stat_of};

    #[test]
    fn descendants_count_whichever_thread_has_started_them() {
        let tree = Tree::new();
        tree.write("5/stat", stat_of(5, 1, 100));
        let none = OwnTime::open(tree.path(), 5).expect_err("no list of children");
        assert!(none.contains("5/task/5/children"), "{none}");
        tree.write("5/task/5/children", "6 ");
        tree.write("5/task/9/children", "7 x 8");
        tree.write("6/stat", stat_of(6, 5, 20));
        tree.write("6/task/6/children", "10");
        tree.write("7/stat", stat_of(7, 5, 3));
        // 8 has ended; 10 lists an ancestor, as readings at different moments may.
        tree.write("10/stat", stat_of(10, 6, 4000));
        tree.write("10/task/10/children", "");
        let mut own = OwnTime::open(tree.path(), 5).expect("readable");
        assert_eq!(own.ticks(), Some(4123));
        tree.write("10/task/10/children", "10");
        assert!(own.ticks() > Some(4123), "a cycle ends");
        tree.write("5/stat", "garbage");
        assert_eq!(own.ticks(), None);
    }
}
