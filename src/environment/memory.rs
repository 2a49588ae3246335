//! How much more memory this process can take: what the system has available, or what is left of a
//! container's limit, whichever is less.

use std::path::{Path, PathBuf};

/// Where the kernel tells of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Memory that can still be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvailableMemory {
    /// In bytes. Caches of files that can be given up count as available.
    pub bytes: u64,
    /// What sets it, for messages: "this machine has available", "the container's limit leaves".
    pub source: &'static str,
}

/// Memory that can still be taken; `None` where the system does not tell (anywhere but on Linux).
pub fn available_memory() -> Option<AvailableMemory> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo(&text, "MemAvailable"))
        .map(|bytes| AvailableMemory {
            bytes,
            source: "this machine has available",
        });
    let container = container_remaining().map(|bytes| AvailableMemory {
        bytes,
        source: "the container's limit leaves",
    });
    machine
        .into_iter()
        .chain(container)
        .min_by_key(|available| available.bytes)
}

/// A value of `/proc/meminfo` in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the limits of this process's control group, and of those above it, leave.
fn container_remaining() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let root = Path::new(CGROUPS);
    let second = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .and_then(|path| {
            least(root, path, |folder| {
                remaining(
                    number(&folder.join("memory.max"))?,
                    number(&folder.join("memory.current"))?,
                    &stat(folder),
                    ["inactive_file", "active_file"],
                )
            })
        });
    let first = groups
        .lines()
        .find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers
                .split(',')
                .any(|name| name == "memory")
                .then_some(path)
        })
        .and_then(|path| {
            least(&root.join("memory"), path, |folder| {
                remaining(
                    number(&folder.join("memory.limit_in_bytes"))?,
                    number(&folder.join("memory.usage_in_bytes"))?,
                    &stat(folder),
                    ["total_inactive_file", "total_active_file"],
                )
            })
        });
    second.into_iter().chain(first).min()
}

/// The least of `of` for the group at `path` and all above it.
fn least(root: &Path, path: &str, of: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(of)
        .min()
}

/// Limit less usage; file caches, which the kernel gives up where memory is short, are not counted as
/// used.
fn remaining(limit: u64, usage: u64, stat: &str, caches: [&str; 2]) -> Option<u64> {
    let cached: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| caches.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    // A first-version group without a limit says a number near 2^63.
    (limit < 1 << 60).then(|| limit.saturating_sub(usage.saturating_sub(cached)))
}

fn number(path: &Path) -> Option<u64> {
    // `max` is no number: there is no limit.
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn stat(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       16303428 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(12_000_000 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo("MemAvailable: lots\n", "MemAvailable"), None);
    }

    #[test]
    fn file_caches_are_not_counted_as_used() {
        let stat = "anon 5\ninactive_file 20\nactive_file 10\n";
        let caches = ["inactive_file", "active_file"];
        assert_eq!(remaining(100, 60, stat, caches), Some(70));
        assert_eq!(remaining(100, 160, stat, caches), Some(0));
        assert_eq!(remaining(u64::MAX / 2, 60, stat, caches), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).expect("folders");
        std::fs::write(folder.path().join("a/memory.max"), "50\n").expect("written");
        std::fs::write(inner.join("memory.max"), "max\n").expect("written");
        let of = |folder: &Path| number(&folder.join("memory.max"));
        assert_eq!(least(folder.path(), "/a/b", of), Some(50));
        assert_eq!(least(folder.path(), "/", of), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells() {
        assert!(available_memory().is_some_and(|available| available.bytes > 1 << 20));
    }
}
