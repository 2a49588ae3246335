//! Spans that are not bound to a thread: a flow, its steps, the phases of a request. Each has an
//! explicit parent, and they end in any order.
//!
//! The own time of a span is its duration minus the **union** of its children's intervals:
//! overlapping children are subtracted once, and time of a child after the end of its parent is
//! ignored.

use std::collections::HashMap;

use super::names::Span;
use super::span::Table;

/// Open spans, and the sums of finished ones.
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
    /// Label in the trace.
    pub(super) label: Option<Box<str>>,
    /// Whether no ancestor has the same span.
    outermost: bool,
    /// Number of open children, and since when there has been at least one.
    children: u32,
    since: u64,
    /// Closed part of the union of the children's intervals.
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

    /// Opens a span and returns its ID, which is never 0. A parent that has ended is ignored.
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

    /// Ends a span; `None` if it has ended already.
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

    /// Labels an open span.
    pub(super) fn label(&mut self, id: u64, label: Box<str>) {
        if let Some(open) = self.open.get_mut(&id) {
            open.label = Some(label);
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<&Open> {
        self.open.get(&id)
    }

    /// Open spans with their IDs, in arbitrary order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Open)> {
        self.open.iter().map(|(id, open)| (*id, open))
    }

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
    fn overlapping_children_are_subtracted_once() {
        let mut tree = Tree::new();
        let flow = tree.open(Span::Flow, None, 0);
        let one = tree.open(Span::Step, Some(flow), 10);
        let two = tree.open(Span::Step, Some(flow), 20);
        tree.close(one, 60);
        tree.close(two, 70);
        let three = tree.open(Span::Step, Some(flow), 75);
        tree.close(flow, 100);
        // Only the time before the end of the parent is subtracted.
        tree.close(three, 190);
        // 100 − (60 + 25); the children's durations would give 100 − 215.
        assert_eq!(sums(&tree, Span::Flow), (1, 15, 100));
        assert_eq!(sums(&tree, Span::Step), (3, 50 + 50 + 115, 215));
    }

    #[test]
    fn a_child_of_an_ended_parent_becomes_a_root() {
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
    fn nested_spans_of_the_same_name_count_once() {
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
        /// Own time is the duration minus the union of the children's intervals, clamped to the
        /// parent and counted tick by tick.
        #[test]
        fn own_time_is_the_time_without_children(
            end in 1u64..60,
            children in prop::collection::vec((0u64..60, 0u64..30), 0..8),
        ) {
            // Within a tick, each child opens and then closes, in order, and the parent closes
            // last.
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
