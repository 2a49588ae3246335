//! Memory that this process can still allocate: the system's available memory or what remains of
//! the container's limit, whichever is smaller.

use std::path::{Path, PathBuf};

/// Mount point of the control group file systems.
const CGROUPS: &str = "/sys/fs/cgroup";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvailableMemory {
    /// In bytes. File caches that the kernel can reclaim count as available.
    pub bytes: u64,
    /// What sets the limit, for messages: "this machine has" or "the container's limit leaves",
    /// followed by the amount.
    pub source: &'static str,
}

/// Memory that can still be allocated; `None` if unknown (on systems other than Linux).
pub fn available_memory() -> Option<AvailableMemory> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo(&text, "MemAvailable"))
        .map(|bytes| AvailableMemory {
            bytes,
            source: "this machine has",
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

/// What the limits of this process's control group and of its ancestors leave. Handles cgroup v2
/// and v1.
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

/// The minimum of `of` over the group at `path` and its ancestors.
fn least(root: &Path, path: &str, of: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(of)
        .min()
}

/// Limit minus usage. File caches do not count as used, since the kernel reclaims them when memory
/// is short.
fn remaining(limit: u64, usage: u64, stat: &str, caches: [&str; 2]) -> Option<u64> {
    let cached: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| caches.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    // A cgroup v1 group without a limit reports a number near 2^63.
    (limit < 1 << 60).then(|| limit.saturating_sub(usage.saturating_sub(cached)))
}

fn number(path: &Path) -> Option<u64> {
    // `max`, the value without a limit, does not parse.
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
    fn the_tightest_group_limit_wins() {
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
    fn available_memory_is_known_on_linux() {
        assert!(available_memory().is_some_and(|available| available.bytes > 1 << 20));
    }
}
