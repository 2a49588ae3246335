//! Synchronous spans: the stack of open spans of a thread, and the sums of finished ones.
//!
//! The own time of a span (`tsub`) is its duration minus that of its child spans. In nested spans
//! of the same name, only the outermost counts towards the inclusive time (`ttot`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::names::{Kind, Span};

/// Sums over the calls of a span, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) ncall: u64,
    /// Calls that were not nested in a call of the same span.
    pub(super) nprim: u64,
    /// Time in the span itself.
    pub(super) tsub: u64,
    /// Time in the span and its children.
    pub(super) ttot: u64,
}

impl Sums {
    /// Adds a call; `children` is the time spent in child spans.
    pub(super) fn add(&mut self, duration: u64, children: u64, outermost: bool) {
        self.ncall += 1;
        self.tsub += duration.saturating_sub(children);
        if outermost {
            self.nprim += 1;
            self.ttot += duration;
        }
    }
}

/// Sums of all spans, by [`Span::index`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Table(pub(super) [Sums; Span::COUNT]);

impl Table {
    pub(super) const fn new() -> Self {
        Self(
            [Sums {
                ncall: 0,
                nprim: 0,
                tsub: 0,
                ttot: 0,
            }; Span::COUNT],
        )
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (sums, other) in self.0.iter_mut().zip(&other.0) {
            sums.ncall += other.ncall;
            sums.nprim += other.nprim;
            sums.tsub += other.tsub;
            sums.ttot += other.ttot;
        }
    }
}

/// Sums of a thread. Only that thread writes them; others may read at any time, and may see the
/// four numbers of one call partly updated.
#[derive(Debug)]
pub(super) struct Rows([[AtomicU64; 4]; Span::COUNT]);

impl Rows {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Default::default()))
    }

    fn add(&self, span: Span, duration: u64, children: u64, outermost: bool) {
        let [ncall, nprim, tsub, ttot] = &self.0[span.index()];
        // Single writer: a load and a store suffice, without a locked addition.
        let add = |to: &AtomicU64, value: u64| {
            to.store(to.load(Ordering::Relaxed) + value, Ordering::Relaxed);
        };
        add(ncall, 1);
        add(tsub, duration.saturating_sub(children));
        if outermost {
            add(nprim, 1);
            add(ttot, duration);
        }
    }

    pub(super) fn read(&self) -> Table {
        Table(std::array::from_fn(|index| {
            let [ncall, nprim, tsub, ttot] =
                std::array::from_fn(|field| self.0[index][field].load(Ordering::Relaxed));
            Sums {
                ncall,
                nprim,
                tsub,
                ttot,
            }
        }))
    }
}

/// Open spans of a thread.
#[derive(Debug)]
pub(super) struct Stack {
    frames: Vec<Frame>,
    /// Nesting count per span.
    open: [u32; Span::COUNT],
    /// Innermost open stage.
    stage: Option<Span>,
    rows: Arc<Rows>,
}

#[derive(Debug)]
struct Frame {
    span: Span,
    start: u64,
    /// Time spent in child spans.
    children: u64,
    outer_stage: Option<Span>,
}

/// A finished span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) span: Span,
    pub(super) start: u64,
    /// Enclosing stage.
    pub(super) outer_stage: Option<Span>,
}

impl Stack {
    pub(super) fn new() -> Self {
        Self {
            frames: Vec::with_capacity(32),
            open: [0; Span::COUNT],
            stage: None,
            rows: Arc::new(Rows::new()),
        }
    }

    /// The thread's sums, shared with readers.
    pub(super) fn rows(&self) -> &Arc<Rows> {
        &self.rows
    }

    /// Number of open spans.
    pub(super) fn depth(&self) -> usize {
        self.frames.len()
    }

    /// Opens a span and returns the enclosing stage.
    #[inline]
    pub(super) fn open(&mut self, span: Span, now: u64) -> Option<Span> {
        let outer_stage = self.stage;
        self.frames.push(Frame {
            span,
            start: now,
            children: 0,
            outer_stage,
        });
        self.open[span.index()] += 1;
        if span.kind() == Kind::Work {
            self.stage = Some(span);
        }
        outer_stage
    }

    /// Closes the innermost span; `None` if none is open.
    #[inline]
    pub(super) fn close(&mut self, now: u64) -> Option<Ended> {
        let Frame {
            span,
            start,
            children,
            outer_stage,
        } = self.frames.pop()?;
        let duration = now.saturating_sub(start);
        let open = &mut self.open[span.index()];
        *open -= 1;
        self.rows.add(span, duration, children, *open == 0);
        if let Some(outer) = self.frames.last_mut() {
            outer.children += duration;
        }
        self.stage = outer_stage;
        Some(Ended {
            span,
            start,
            outer_stage,
        })
    }
}

impl Stack {
    /// What the open spans would add to the sums if they all ended now.
    pub(super) fn open_sums(&self, now: u64) -> Table {
        let mut table = Table::new();
        let mut open = self.open;
        let mut inside = 0;
        for frame in self.frames.iter().rev() {
            let index = frame.span.index();
            open[index] -= 1;
            let duration = now.saturating_sub(frame.start);
            table.0[index].add(duration, frame.children + inside, open[index] == 0);
            inside = duration;
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sums(stack: &Stack, span: Span) -> (u64, u64, u64, u64) {
        let Sums {
            ncall,
            nprim,
            tsub,
            ttot,
        } = stack.rows().read().0[span.index()];
        (ncall, nprim, tsub, ttot)
    }

    #[test]
    fn own_time_excludes_children() {
        let mut stack = Stack::new();
        stack.open(Span::Run, 0);
        stack.open(Span::Forward, 10);
        stack.open(Span::Linear, 12);
        stack.close(20);
        stack.open(Span::Linear, 25);
        stack.close(30);
        stack.close(40);
        stack.close(100);
        assert_eq!(sums(&stack, Span::Run), (1, 1, 70, 100));
        assert_eq!(sums(&stack, Span::Forward), (1, 1, 17, 30));
        assert_eq!(sums(&stack, Span::Linear), (2, 2, 13, 13));
    }

    #[test]
    fn recursion_counts_the_outermost_call_once() {
        let mut stack = Stack::new();
        stack.open(Span::Verify, 0);
        stack.open(Span::Verify, 10);
        stack.open(Span::Linear, 12);
        stack.open(Span::Verify, 15);
        stack.close(18);
        stack.close(20);
        stack.close(30);
        stack.close(50);
        // Adding up the calls would give 50 + 20 + 3; the outermost lasts 50.
        assert_eq!(sums(&stack, Span::Verify), (3, 1, 45, 50));
        assert_eq!(sums(&stack, Span::Linear), (1, 1, 5, 8));
    }

    #[test]
    fn the_enclosing_stage_is_tracked() {
        let mut stack = Stack::new();
        assert_eq!(stack.open(Span::Run, 0), None);
        assert_eq!(stack.open(Span::EngineInit, 0), None);
        assert_eq!(stack.open(Span::Forward, 0), Some(Span::EngineInit));
        assert_eq!(stack.open(Span::Sample, 0), Some(Span::EngineInit));
        let sample = stack.close(1).expect("open");
        assert_eq!(sample.outer_stage, Some(Span::EngineInit));
        stack.close(2);
        stack.close(3);
        assert_eq!(stack.open(Span::Sample, 4), None);
    }

    #[test]
    fn open_spans_count_as_if_they_ended_now() {
        let mut stack = Stack::new();
        stack.open(Span::Run, 0);
        stack.open(Span::Linear, 2);
        stack.close(5);
        stack.open(Span::Verify, 10);
        stack.open(Span::Verify, 11);
        let mut early = stack.rows().read();
        early.merge(&stack.open_sums(20));
        for _ in 0..3 {
            stack.close(20);
        }
        assert_eq!(early.0, stack.rows().read().0);
    }

    #[test]
    fn closing_an_empty_stack_returns_none() {
        assert_eq!(Stack::new().close(1), None);
    }

    proptest! {
        /// For any nesting, the own times add up to the root's inclusive time.
        #[test]
        fn own_times_add_up(
            steps in prop::collection::vec((0..Span::COUNT, any::<bool>(), 0u64..50), 0..200),
        ) {
            let mut stack = Stack::new();
            let mut now = 5;
            stack.open(Span::Run, now);
            for (index, opens, wait) in steps {
                now += wait;
                let span = Span::ALL[index];
                if opens && span != Span::Run {
                    stack.open(span, now);
                } else if stack.depth() > 1 {
                    stack.close(now);
                }
            }
            while stack.depth() > 0 {
                stack.close(now);
            }
            let table = stack.rows().read();
            let own: u64 = table.0.iter().map(|sums| sums.tsub).sum();
            let root = table.0[Span::Run.index()];
            prop_assert_eq!(own, root.ttot);
            prop_assert_eq!(root.ttot, now - 5);
            for sums in table.0 {
                prop_assert!(sums.tsub <= sums.ttot && sums.nprim <= sums.ncall);
            }
        }
    }
}
