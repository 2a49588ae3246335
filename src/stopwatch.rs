//! The only place that reads the clock for reported times. It waits for the device to finish its
//! queued work first.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::units::Millis;

/// A device whose calls return before the work is done, such as a GPU queue.
pub trait Fence {
    /// Blocks until all queued work is done.
    fn synchronize(&self) -> Result<()>;
}

/// No fence: the work runs on the calling thread.
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
}

/// An unreported time for pacing (progress, flushing, timeouts). Does not wait for the device.
#[derive(Debug, Clone, Copy)]
pub struct Pace(Instant);

impl Pace {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
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
