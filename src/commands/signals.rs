//! Keeps signals ignored that were ignored when the program started, as `nohup` requires.

#[cfg(target_os = "linux")]
use nix::sys::signal::{SigHandler, Signal, signal};

/// Signals that may have been ignored on purpose. SIGINT is not among them: a shell without job control
/// starts every background command with SIGINT ignored, and a run should still end in order when it gets one.
#[cfg(target_os = "linux")]
const KEPT: [Signal; 2] = [Signal::SIGHUP, Signal::SIGTERM];

/// Runs `install`, which sets signal handlers, and restores those of signals that were ignored.
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

/// Runs `install`. Only Linux tells which signals were ignored.
#[cfg(not(target_os = "linux"))]
pub(super) fn keeping_ignored<T>(install: impl FnOnce() -> T) -> T {
    install()
}

/// The mask of ignored signals in `/proc/PID/status`; bit 0 is signal 1.
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
