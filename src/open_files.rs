//! The limit on open files and connections of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// macOS rejects a higher soft limit (`OPEN_MAX`), whatever the hard limit is.
#[cfg(target_vendor = "apple")]
const MOST: u64 = 10_240;
/// The default of `fs.nr_open` on Linux. It applies even if the hard limit is infinite.
#[cfg(not(target_vendor = "apple"))]
const MOST: u64 = 1 << 20;

/// Raises the soft limit to the hard limit. Systems keep the soft limit low (256, 1024) for
/// programs that use `select(2)`, which this one does not. On failure, the process continues with
/// the current limit.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(u64::MAX).min(MOST);
    if current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum,
        };
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// The current soft limit.
pub fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX))
}
