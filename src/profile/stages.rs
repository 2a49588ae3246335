//! Divides the wall time among the stages, by a sweep over their start and end events as they
//! occur.
//!
//! Each stage has three times. **Union**: the stage was open at least once. **Exposed**: only this
//! stage was active, an upper bound on what removing it could save. **Split**: time with n active
//! stages counts 1/n for each, so that the split times of all stages and the idle time add up to
//! the wall time, to the tick.
//!
//! A waiting stage ([`Kind::Wait`]) is not active: it has exposed and split time only while no
//! other stage is open. Otherwise a queued request would appear to slow down those that are being
//! computed.

use super::names::{Kind, Span};

/// Times of a stage, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) calls: u64,
    pub(super) union: u64,
    pub(super) exposed: u64,
    pub(super) split: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Sweep {
    start: u64,
    /// Time before this is attributed.
    last: u64,
    shares: [Share; Span::COUNT],
    open: [u32; Span::COUNT],
    /// Bit mask of the active stages.
    work: u64,
    /// Bit mask of the open waits.
    wait: u64,
    idle: u64,
}

impl Sweep {
    /// A sweep that starts at `start` with nothing open.
    pub(super) const fn new(start: u64) -> Self {
        let none = Share {
            calls: 0,
            union: 0,
            exposed: 0,
            split: 0,
        };
        Self {
            start,
            last: start,
            shares: [none; Span::COUNT],
            open: [0; Span::COUNT],
            work: 0,
            wait: 0,
            idle: 0,
        }
    }

    pub(super) fn count(&mut self, span: Span) {
        self.shares[span.index()].calls += 1;
    }

    /// Opens a stage; stages may be open several times.
    pub(super) fn open(&mut self, span: Span, now: u64) {
        self.advance(now);
        let index = span.index();
        self.open[index] += 1;
        match span.kind() {
            Kind::Wait => self.wait |= 1 << index,
            _ => self.work |= 1 << index,
        }
    }

    /// Closes a stage once. Closing a stage that is not open has no effect.
    pub(super) fn close(&mut self, span: Span, now: u64) {
        self.advance(now);
        let index = span.index();
        self.open[index] = self.open[index].saturating_sub(1);
        if self.open[index] == 0 {
            self.work &= !(1 << index);
            self.wait &= !(1 << index);
        }
    }

    /// Attributes the time up to `now`. Readings from other threads may be out of order; an earlier
    /// one counts as the last one.
    pub(super) fn advance(&mut self, now: u64) {
        let span = now.saturating_sub(self.last);
        if span == 0 {
            return;
        }
        self.last = now;
        for index in bits(self.work | self.wait) {
            self.shares[index].union += span;
        }
        let shared = if self.work != 0 { self.work } else { self.wait };
        let count = u64::from(shared.count_ones());
        match count {
            0 => self.idle += span,
            1 => {
                let share = &mut self.shares[shared.trailing_zeros() as usize];
                share.exposed += span;
                share.split += span;
            }
            _ => {
                for index in bits(shared) {
                    self.shares[index].split += span / count;
                }
                // The remainder goes to one stage, so that the sum is exact.
                self.shares[shared.trailing_zeros() as usize].split += span % count;
            }
        }
    }

    /// Ticks from the start to the last reading.
    pub(super) fn wall(&self) -> u64 {
        self.last - self.start
    }

    /// Ticks in which no stage was open.
    pub(super) fn idle(&self) -> u64 {
        self.idle
    }

    pub(super) fn share(&self, span: Span) -> Share {
        self.shares[span.index()]
    }
}

/// Indices of the set bits.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split_and_idle(sweep: &Sweep) -> u64 {
        let split: u64 = Span::ALL.iter().map(|span| sweep.share(*span).split).sum();
        split + sweep.idle()
    }

    #[test]
    fn overlapping_stages_share_and_a_single_one_is_exposed() {
        let mut sweep = Sweep::new(100);
        sweep.open(Span::Prefill, 110);
        sweep.open(Span::Decode, 130);
        sweep.close(Span::Prefill, 161);
        sweep.close(Span::Decode, 170);
        sweep.advance(175);
        let prefill = sweep.share(Span::Prefill);
        assert_eq!(
            (prefill.union, prefill.exposed, prefill.split),
            (51, 20, 36)
        );
        let decode = sweep.share(Span::Decode);
        assert_eq!((decode.union, decode.exposed, decode.split), (40, 9, 24));
        assert_eq!((sweep.idle(), sweep.wall()), (15, 75));
        assert_eq!(split_and_idle(&sweep), 75);
    }

    #[test]
    fn a_stage_that_is_open_twice_counts_once() {
        let mut sweep = Sweep::new(0);
        sweep.open(Span::EvaluateRun, 0);
        sweep.open(Span::EvaluateRun, 10);
        sweep.close(Span::EvaluateRun, 20);
        sweep.close(Span::EvaluateRun, 30);
        let share = sweep.share(Span::EvaluateRun);
        assert_eq!((share.union, share.exposed, share.split), (30, 30, 30));
    }

    #[test]
    fn a_wait_does_not_reduce_the_share_of_work() {
        let mut sweep = Sweep::new(0);
        sweep.open(Span::QueueWait, 0);
        sweep.open(Span::Decode, 10);
        sweep.close(Span::Decode, 40);
        sweep.close(Span::QueueWait, 45);
        let wait = sweep.share(Span::QueueWait);
        assert_eq!((wait.union, wait.exposed, wait.split), (45, 15, 15));
        assert_eq!(sweep.share(Span::Decode).exposed, 30);
        assert_eq!(split_and_idle(&sweep), sweep.wall());
    }

    #[test]
    fn backward_clocks_and_unmatched_closes_are_harmless() {
        let mut sweep = Sweep::new(50);
        sweep.close(Span::Verify, 40);
        sweep.open(Span::Verify, 60);
        sweep.open(Span::Sample, 55);
        sweep.close(Span::Verify, 58);
        sweep.close(Span::Sample, 70);
        assert_eq!(sweep.wall(), 20);
        assert_eq!(split_and_idle(&sweep), 20);
    }

    proptest! {
        /// For any sequence: split + idle = wall, and exposed ≤ split ≤ union ≤ wall.
        #[test]
        fn the_shares_add_up(
            steps in prop::collection::vec((0..Span::COUNT, any::<bool>(), 0u64..50), 0..200),
        ) {
            let mut sweep = Sweep::new(7);
            let mut now = 7;
            for (index, opens, wait) in steps {
                now += wait;
                let span = Span::ALL[index];
                if opens { sweep.open(span, now) } else { sweep.close(span, now) }
            }
            sweep.advance(now + 3);
            prop_assert_eq!(split_and_idle(&sweep), sweep.wall());
            prop_assert_eq!(sweep.wall(), now + 3 - 7);
            for span in Span::ALL {
                let share = sweep.share(*span);
                prop_assert!(share.exposed <= share.split && share.split <= share.union);
                prop_assert!(share.union <= sweep.wall());
            }
        }
    }
}
