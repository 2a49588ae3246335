//! Signals that were ignored when the program started stay ignored, as `nohup` wants it.

#[cfg(target_os = "linux")]
use nix::sys::signal::{SigHandler, Signal, signal};

/// Those that a handler would take over and that may have been ignored on purpose. SIGINT is not among
/// them: a shell without job control has every background command ignore it, and a run is to end in
/// order there when it is sent one.
#[cfg(target_os = "linux")]
const KEPT: [Signal; 2] = [Signal::SIGHUP, Signal::SIGTERM];

/// Runs `install`, which sets signal handlers, and takes them back for signals that were ignored.
#[cfg(target_os = "linux")]
pub(super) fn keeping_ignored<T>(install: impl FnOnce() -> T) -> T {
    let before = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let installed = install();
    for kept in KEPT {
        if before & (1 << (kept as u32 - 1)) != 0 {
            // SAFETY: no handler is installed, so none can be unsound.
            let _ = unsafe { signal(kept, SigHandler::SigIgn) };
        }
    }
    installed
}

/// Runs `install`: elsewhere than on Linux it is not known what was ignored.
#[cfg(not(target_os = "linux"))]
pub(super) fn keeping_ignored<T>(install: impl FnOnce() -> T) -> T {
    install()
}

/// The ignored signals of `/proc/PID/status`, a bit each from signal 1 on.
#[cfg(target_os = "linux")]
fn ignored(status: &str) -> u64 {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "SigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored(""), 0);
    }
}
