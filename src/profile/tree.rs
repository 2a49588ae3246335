//! Spans that are no thread's own: a flow, its steps, a request's phases. Each has an explicit
//! parent, and ends when it ends, in any order.
//!
//! A span's own time is its duration less the **union** of its children's intervals: children that
//! overlap are taken off once, and what a child goes on with after its parent's end is nobody's
//! loss.

use std::collections::HashMap;

use super::names::Span;
use super::span::Table;

/// The open spans, and the sums of those that have ended.
#[derive(Debug)]
pub(super) struct Tree {
    next: u64,
    open: HashMap<u64, Open>,
    table: Table,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) span: Span,
    pub(super) start: u64,
    pub(super) parent: Option<u64>,
    /// What it is called in the trace.
    pub(super) label: Option<Box<str>>,
    /// Whether none of those above it has its name.
    outermost: bool,
    /// Children that are open, and since when there is one.
    children: u32,
    since: u64,
    /// Union of the children's intervals, as far as it is closed.
    covered: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            next: 1,
            open: HashMap::new(),
            table: Table::new(),
        }
    }

    /// Opens a span and returns its number, which is never 0. A parent that has ended is none.
    pub(super) fn open(&mut self, span: Span, parent: Option<u64>, now: u64) -> u64 {
        let mut above = parent;
        let mut outermost = true;
        while let Some(open) = above.and_then(|id| self.open.get(&id)) {
            outermost &= open.span != span;
            above = open.parent;
        }
        if let Some(parent) = parent.and_then(|id| self.open.get_mut(&id)) {
            if parent.children == 0 {
                parent.since = now;
            }
            parent.children += 1;
        }
        let id = self.next;
        self.next += 1;
        let open = Open {
            span,
            start: now,
            parent,
            label: None,
            outermost,
            children: 0,
            since: 0,
            covered: 0,
        };
        self.open.insert(id, open);
        id
    }

    /// Ends a span; `None` where it has ended.
    pub(super) fn close(&mut self, id: u64, now: u64) -> Option<Open> {
        let mut ended = self.open.remove(&id)?;
        if ended.children > 0 {
            ended.covered += now.saturating_sub(ended.since);
        }
        let duration = now.saturating_sub(ended.start);
        self.table.0[ended.span.index()].add(duration, ended.covered, ended.outermost);
        if let Some(parent) = ended.parent.and_then(|id| self.open.get_mut(&id)) {
            parent.children -= 1;
            if parent.children == 0 {
                parent.covered += now.saturating_sub(parent.since);
            }
        }
        Some(ended)
    }

    /// Names an open span.
    pub(super) fn label(&mut self, id: u64, label: Box<str>) {
        if let Some(open) = self.open.get_mut(&id) {
            open.label = Some(label);
        }
    }

    /// An open span.
    pub(super) fn get(&self, id: u64) -> Option<&Open> {
        self.open.get(&id)
    }

    /// The spans that are open, with their numbers, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Open)> {
        self.open.iter().map(|(id, open)| (*id, open))
    }

    /// The sums so far.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::span::Sums;
    use proptest::prelude::*;

    fn sums(tree: &Tree, span: Span) -> (u64, u64, u64) {
        let Sums {
            ncall, tsub, ttot, ..
        } = tree.table().0[span.index()];
        (ncall, tsub, ttot)
    }

    #[test]
    fn children_that_overlap_are_taken_off_once() {
        let mut tree = Tree::new();
        let flow = tree.open(Span::Flow, None, 0);
        let one = tree.open(Span::Step, Some(flow), 10);
        let two = tree.open(Span::Step, Some(flow), 20);
        tree.close(one, 60);
        tree.close(two, 70);
        let three = tree.open(Span::Step, Some(flow), 75);
        tree.close(flow, 100);
        // A child that outlives its parent takes nothing from it beyond its end.
        tree.close(three, 190);
        // 100 − (60 + 25); the children's durations would give 100 − 215.
        assert_eq!(sums(&tree, Span::Flow), (1, 15, 100));
        assert_eq!(sums(&tree, Span::Step), (3, 50 + 50 + 115, 215));
    }

    #[test]
    fn a_child_of_a_parent_that_has_ended_stands_alone() {
        let mut tree = Tree::new();
        let flow = tree.open(Span::Flow, None, 0);
        tree.close(flow, 10);
        let late = tree.open(Span::Step, Some(flow), 20);
        tree.close(late, 25);
        assert!(tree.close(late, 99).is_none(), "it has ended");
        assert_eq!(sums(&tree, Span::Flow), (1, 10, 10));
        assert_eq!(sums(&tree, Span::Step), (1, 5, 5));
        assert!(tree.open.is_empty());
    }

    #[test]
    fn a_span_below_its_own_name_is_not_counted_twice() {
        let mut tree = Tree::new();
        let outer = tree.open(Span::Step, None, 0);
        let flow = tree.open(Span::Flow, Some(outer), 10);
        let inner = tree.open(Span::Step, Some(flow), 20);
        tree.close(inner, 30);
        tree.close(flow, 40);
        tree.close(outer, 50);
        let step = tree.table().0[Span::Step.index()];
        assert_eq!((step.ncall, step.nprim), (2, 1));
        assert_eq!((step.tsub, step.ttot), (20 + 10, 50));
    }

    proptest! {
        /// Own time is the duration less the union of the children's intervals, cut to the
        /// parent's, counted tick by tick.
        #[test]
        fn own_time_is_what_no_child_covers(
            end in 1u64..60,
            children in prop::collection::vec((0u64..60, 0u64..30), 0..8),
        ) {
            // What happens at each tick: the parent ends first, children open before others end.
            let mut tree = Tree::new();
            let parent = tree.open(Span::Flow, None, 0);
            let mut ids = vec![None; children.len()];
            for now in 0..=90 {
                for (id, (start, length)) in ids.iter_mut().zip(&children) {
                    if *start == now && *start < end {
                        *id = Some(tree.open(Span::Step, Some(parent), now));
                    }
                    if start + length == now && let Some(id) = *id {
                        tree.close(id, now);
                    }
                }
                if now == end {
                    tree.close(parent, now);
                }
            }
            let covered = |tick: &u64| {
                let inside = |(start, length): &(u64, u64)| (*start..start + length).contains(tick);
                children.iter().any(inside)
            };
            let own = (0..end).filter(|tick| !covered(tick)).count() as u64;
            prop_assert_eq!(sums(&tree, Span::Flow).1, own);
        }
    }
}
