//! How many files and connections this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// macOS takes no soft limit above this (`OPEN_MAX`), whatever the hard limit says.
#[cfg(target_vendor = "apple")]
const MOST: u64 = 10_240;
/// Linux allows no more (`fs.nr_open`, as it is by default), even where the hard limit is infinite.
#[cfg(not(target_vendor = "apple"))]
const MOST: u64 = 1 << 20;

/// Raises the soft limit to the hard one. Systems keep the soft limit low (256, 1024) for programs that
/// use `select(2)`, which this one does not. Where it cannot be raised, the process goes on with what it
/// has.
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

/// The soft limit as it is now.
pub fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX))
}
