//! The environment of a run: processor, memory, operating system and git revision.

pub(crate) mod host;
mod load;

use std::path::Path;
use std::process::{Command, Stdio};

use crate::hash::PartsHasher;
use crate::record::Environment;

pub use load::LoadMeter;

/// Describes the machine and the build. `root` is the checkout whose revision is recorded.
pub fn capture(root: &Path) -> Environment {
    Environment {
        flowbench: env!("CARGO_PKG_VERSION").to_owned(),
        git_revision: git_revision(root),
        os: os(),
        cpu: cpu_name(),
        cpu_threads: cpu_threads(),
        cpu_features: cpu_features(),
        memory_bytes: memory_bytes(),
        // One program for both; the GPU's driver is loaded where there is one.
        build: "cpu+cuda".to_owned(),
        hostname_hash: hostname_hash(rustix::system::uname().nodename().to_bytes()),
        load: None,
    }
}

/// Pseudonym of the host name: a hash. Its constant prefix makes it differ from the hash of the
/// bare name, which other tools may have published.
fn hostname_hash(name: &[u8]) -> Option<String> {
    let mut hasher = PartsHasher::default();
    hasher.part(b"flowbench hostname");
    hasher.part(name);
    (!name.is_empty()).then(|| hasher.finish()[..16].to_owned())
}

/// Operating system, kernel and architecture: `Linux 6.1.0 x86_64`.
pub fn os() -> String {
    let name = rustix::system::uname();
    [name.sysname(), name.release(), name.machine()]
        .map(|part| part.to_string_lossy().into_owned())
        .join(" ")
}

/// The processor's name as it reports it.
pub fn cpu_name() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
                .map(|(_, name)| name.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

pub fn cpu_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Vector extensions of this processor that are relevant to the engine.
pub fn cpu_features() -> Vec<String> {
    let mut found = Vec::new();
    macro_rules! detect {
        ($detected:ident: $($name:tt),*) => {
            $(if std::arch::$detected!($name) { found.push($name.to_owned()); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    detect!(is_x86_feature_detected: "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw",
        "avx512vnni", "avx512bf16");
    #[cfg(target_arch = "aarch64")]
    detect!(is_aarch64_feature_detected: "neon", "dotprod", "i8mm", "bf16", "sve");
    found
}

/// Physical memory in bytes.
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    // The kernel sets the unit. The number is as wide as a pointer.
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// Mean number of runnable processes over the last minute; `None` if unknown.
pub fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Bytes available to an unprivileged user on the file system of `path`.
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(path).ok()?;
    Some(status.f_bavail * status.f_frsize)
}

/// The checkout's revision, with `-dirty` appended if tracked files have changes.
fn git_revision(root: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(root)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let revision = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() {
        revision
    } else {
        format!("{revision}-dirty")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let environment = capture(Path::new("/"));
        assert!(environment.cpu_threads >= 1);
        assert!(environment.memory_bytes > 1 << 20);
        assert!(!environment.cpu.is_empty() && !environment.os.is_empty());
        assert_eq!(environment.git_revision, None, "no checkout there");
        let hash = environment.hostname_hash.expect("a host has a name");
        assert_eq!(
            Some(&hash),
            hostname_hash(rustix::system::uname().nodename().to_bytes()).as_ref()
        );
        assert!(hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_eq!(hostname_hash(b""), None);
        assert_ne!(hostname_hash(b"a"), hostname_hash(b"b"));
        assert!(free_disk_bytes(&std::env::temp_dir()).is_some());
        assert_eq!(free_disk_bytes(Path::new("/no/such/folder")), None);
    }
}
