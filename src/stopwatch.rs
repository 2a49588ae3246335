//! The clock. Reported times of an engine are read with [`Moment`], after the device has finished what was
//! queued on it; other durations and deadlines with [`Timer`] and [`now`]. Only the profile's ticks and the
//! spin of the kernels' pool are read elsewhere; `tests/it/layers.rs` checks that.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::Result;
use crate::units::Millis;

/// Something that may still be working when a call on it returns, as a GPU's queue.
pub trait Fence {
    /// Returns when everything queued is done.
    fn synchronize(&self) -> Result<()>;
}

/// For work on the calling thread: there is nothing to wait for.
#[derive(Debug, Clone, Copy)]
pub struct NoFence;

impl Fence for NoFence {
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// A reading of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Instant);

impl Moment {
    /// Waits for the device, then reads the clock.
    pub fn now(fence: &(impl Fence + ?Sized)) -> Result<Self> {
        fence.synchronize()?;
        Ok(Self(Instant::now()))
    }

    /// Time elapsed since `earlier`; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Self) -> Millis {
        self.0.saturating_duration_since(earlier.0).into()
    }

    /// A timer that counts from this moment.
    pub fn timer(self) -> Timer {
        Timer(self.0)
    }
}

/// Time since a start, without waiting for a device: for pacing (progress, flushing, time-outs).
#[derive(Debug, Clone, Copy)]
pub struct Timer(Instant);

impl Timer {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// The wall clock in milliseconds since 1970, which may be set: to compare with the monotonic one, not for
/// durations.
pub fn wall_ms() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// Reads the clock without waiting for a device: for deadlines, and for times of other processes.
pub fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::cell::Cell;

    struct Counting(Cell<usize>);

    impl Fence for Counting {
        fn synchronize(&self) -> Result<()> {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }

    struct Broken;

    impl Fence for Broken {
        fn synchronize(&self) -> Result<()> {
            Err(Error::preflight("the device is gone"))
        }
    }

    #[test]
    fn each_reading_is_fenced_once() {
        let fence = Counting(Cell::new(0));
        let start = Moment::now(&fence).expect("a counter cannot fail");
        let end = Moment::now(&fence).expect("a counter cannot fail");
        assert_eq!(fence.0.get(), 2);
        assert!(end.since(start).0 >= 0.0);
        assert_eq!(start.since(end), Millis(0.0));
    }

    #[test]
    fn a_device_error_yields_no_time() {
        assert!(Moment::now(&Broken).is_err());
    }
}
