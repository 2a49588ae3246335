//! The dependency graph of a template's steps: their order, and which steps each may read.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

/// `needs[i]` are the steps that step `i` needs.
pub(super) struct Graph {
    needs: Vec<Vec<usize>>,
}

impl Graph {
    pub(super) fn new(needs: Vec<Vec<usize>>) -> Self {
        Self { needs }
    }

    /// A topological order; among the ready steps, the first in the template comes first. The error is a
    /// cycle: the steps along it, with the first one repeated at the end.
    pub(super) fn order(&self) -> Result<Vec<usize>, Vec<usize>> {
        let count = self.needs.len();
        let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (step, needs) in self.needs.iter().enumerate() {
            for need in needs {
                needed_by[*need].push(step);
            }
        }
        let mut missing: Vec<usize> = self.needs.iter().map(Vec::len).collect();
        let mut ready: BinaryHeap<Reverse<usize>> = (0..count)
            .filter(|step| missing[*step] == 0)
            .map(Reverse)
            .collect();
        let mut order = Vec::with_capacity(count);
        let mut done = vec![false; count];
        while let Some(Reverse(next)) = ready.pop() {
            done[next] = true;
            order.push(next);
            for &step in &needed_by[next] {
                missing[step] -= 1;
                if missing[step] == 0 {
                    ready.push(Reverse(step));
                }
            }
        }
        if order.len() < count {
            return Err(self.cycle(&done));
        }
        Ok(order)
    }

    /// A cycle among the steps that are not done, each of which needs another such step.
    fn cycle(&self, done: &[bool]) -> Vec<usize> {
        let mut path: Vec<usize> = done.iter().position(|done| !done).into_iter().collect();
        let mut place = vec![None; self.needs.len()];
        while let Some(last) = path.last() {
            place[*last] = Some(path.len() - 1);
            let Some(next) = self.needs[*last].iter().find(|need| !done[**need]) else {
                break;
            };
            path.push(*next);
            if let Some(start) = place[*next] {
                return path.split_off(start);
            }
        }
        path
    }

    /// The steps outside of `group` on a path between two steps of it, in ascending order. `order` is a
    /// topological order of the graph.
    pub(super) fn between(&self, group: impl Fn(usize) -> bool, order: &[usize]) -> Vec<usize> {
        let mut after = vec![false; self.needs.len()];
        for &step in order {
            after[step] = (self.needs[step].iter()).any(|need| group(*need) || after[*need]);
        }
        let mut before = vec![false; self.needs.len()];
        for &step in order.iter().rev() {
            if group(step) || before[step] {
                for need in &self.needs[step] {
                    before[*need] = true;
                }
            }
        }
        (0..self.needs.len())
            .filter(|step| !group(*step) && after[*step] && before[*step])
            .collect()
    }

    /// Merges the steps of each group into one: `group_of[i]` is the group of step `i`.
    pub(super) fn joined(&self, group_of: &[usize], groups: usize) -> Self {
        let mut needs = vec![Vec::new(); groups];
        for (step, of_step) in self.needs.iter().enumerate() {
            let group = group_of[step];
            let others = of_step.iter().map(|need| group_of[*need]);
            needs[group].extend(others.filter(|other| *other != group));
        }
        Self { needs }
    }

    /// Steps without any edges, if there is more than one step.
    pub(super) fn isolated(&self) -> Vec<usize> {
        let needed: HashSet<usize> = self.needs.iter().flatten().copied().collect();
        let alone = |step: &usize| self.needs[*step].is_empty() && !needed.contains(step);
        let isolated = (0..self.needs.len()).filter(alone).collect();
        if self.needs.len() > 1 {
            isolated
        } else {
            Vec::new()
        }
    }
}

/// Answers whether a step transitively needs another, without storing a set per step: in a chain, these
/// sets would take quadratic space.
pub(super) struct Ancestry<'a> {
    graph: &'a Graph,
    /// The position of each step in the topological order.
    place: Vec<usize>,
    /// A spanning forest in which the parent of a step is the last of the steps that it needs. `enter`
    /// numbers the steps in preorder, so the descendants of a step have the `size - 1` numbers after its
    /// own.
    enter: Vec<usize>,
    size: Vec<usize>,
}

impl<'a> Ancestry<'a> {
    /// `order` is a topological order of the graph.
    pub(super) fn new(graph: &'a Graph, order: &[usize]) -> Self {
        let count = graph.needs.len();
        let mut place = vec![0; count];
        for (index, step) in order.iter().enumerate() {
            place[*step] = index;
        }
        let above = |step: usize| {
            graph.needs[step]
                .iter()
                .copied()
                .max_by_key(|need| place[*need])
        };
        let mut size = vec![1; count];
        for &step in order.iter().rev() {
            if let Some(above) = above(step) {
                size[above] += size[step];
            }
        }
        let mut enter = vec![0; count];
        // The next free number among the descendants of each step.
        let mut free = vec![0; count];
        let mut roots = 0;
        for &step in order {
            let next = match above(step) {
                Some(above) => &mut free[above],
                None => &mut roots,
            };
            enter[step] = *next;
            *next += size[step];
            free[step] = enter[step] + 1;
        }
        Self {
            graph,
            place,
            enter,
            size,
        }
    }

    /// Whether `step` needs `other`, directly or transitively.
    pub(super) fn needs(&self, step: usize, other: usize) -> bool {
        // The forest usually answers at once. Otherwise the search visits only steps after `other`.
        let mut seen = HashSet::new();
        let mut open = vec![step];
        while let Some(next) = open.pop() {
            if self.is_below(next, other) {
                return true;
            }
            for &need in &self.graph.needs[next] {
                if need == other {
                    return true;
                }
                if self.place[need] > self.place[other] && seen.insert(need) {
                    open.push(need);
                }
            }
        }
        false
    }

    fn is_below(&self, step: usize, other: usize) -> bool {
        let below = self.enter[other] + 1..self.enter[other] + self.size[other];
        below.contains(&self.enter[step])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn graph(needs: &[&[usize]]) -> Graph {
        Graph::new(needs.iter().map(|needs| needs.to_vec()).collect())
    }

    #[test]
    fn the_order_is_topological_and_stable() {
        assert_eq!(graph(&[&[], &[0], &[1]]).order(), Ok(vec![0, 1, 2]));
        assert_eq!(graph(&[&[2], &[], &[1]]).order(), Ok(vec![1, 2, 0]));
        assert_eq!(
            graph(&[&[1, 2], &[], &[], &[0]]).order(),
            Ok(vec![1, 2, 0, 3])
        );
    }

    #[test]
    fn a_cycle_is_reported_without_steps_leading_to_it() {
        assert_eq!(graph(&[&[1], &[2], &[1]]).order(), Err(vec![1, 2, 1]));
        assert_eq!(graph(&[&[], &[0, 1]]).order(), Err(vec![1, 1]));
    }

    proptest! {
        /// Compares with naive implementations.
        #[test]
        fn order_and_ancestry_match_naive_implementations(
            edges in prop::collection::vec((0usize..9, 0usize..9), 0..20),
            numbers in Just((0usize..9).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut needs = vec![Vec::new(); 9];
            for (one, other) in edges {
                // Edges from greater to smaller numbers only, so there is no cycle.
                if one < other && !needs[numbers[other]].contains(&numbers[one]) {
                    needs[numbers[other]].push(numbers[one]);
                }
            }
            let graph = Graph::new(needs.clone());
            let order = graph.order().expect("no cycle");
            let mut done = [false; 9];
            for &step in &order {
                let ready = |step: &usize| !done[*step] && needs[*step].iter().all(|need| done[*need]);
                prop_assert_eq!((0..9).find(ready), Some(step));
                done[step] = true;
            }
            let ancestry = Ancestry::new(&graph, &order);
            let all = |step: usize| {
                let mut found = std::collections::BTreeSet::new();
                let mut open = needs[step].clone();
                while let Some(next) = open.pop() {
                    if found.insert(next) {
                        open.extend(&needs[next]);
                    }
                }
                found
            };
            for step in 0..9 {
                for other in 0..9 {
                    prop_assert_eq!(ancestry.needs(step, other), all(step).contains(&other));
                }
            }
            let group = |step: usize| step < 3;
            let between: Vec<usize> = (3..9)
                .filter(|step| all(*step).iter().any(|need| group(*need)))
                .filter(|step| (0..3).any(|inside| all(inside).contains(step)))
                .collect();
            prop_assert_eq!(graph.between(group, &order), between);
        }
    }

    #[test]
    fn a_long_chain_takes_linear_time() {
        let count = 100_000;
        let needs = (0..count).map(|step: usize| step.checked_sub(1).into_iter().collect());
        let graph = Graph::new(needs.collect());
        let order = graph.order().expect("no cycle");
        assert!(order.iter().copied().eq(0..count));
        let ancestry = Ancestry::new(&graph, &order);
        assert!((1..count).all(|step| ancestry.needs(step, 0) && !ancestry.needs(0, step)));
    }

    #[test]
    fn isolated_steps() {
        let graph = graph(&[&[], &[0], &[1], &[]]);
        assert_eq!(graph.isolated(), [3]);
        assert_eq!(
            self::graph(&[&[]]).isolated(),
            [0; 0],
            "a single step is a template"
        );
    }
}
