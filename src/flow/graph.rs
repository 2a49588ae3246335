//! The order of a template's steps, and which steps each may read.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

/// What a set of steps is, seen as a graph: `needs[i]` are the steps that step `i` needs.
pub(super) struct Graph {
    needs: Vec<Vec<usize>>,
}

impl Graph {
    pub(super) fn new(needs: Vec<Vec<usize>>) -> Self {
        Self { needs }
    }

    /// An order in which each step comes after those that it needs; among those that could come
    /// next, the first of the template. On a cycle, the steps along it, the first one repeated.
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

    /// A cycle among the steps that are not done, each of which needs one that is not.
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

    /// The steps outside of `group` that need a step of it and that a step of it needs, directly or
    /// through others; in the order of their numbers. `order` is that of the graph.
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

    /// The same graph with the steps of each group as one: `group_of[i]` is the one of step `i`.
    pub(super) fn joined(&self, group_of: &[usize], groups: usize) -> Self {
        let mut needs = vec![Vec::new(); groups];
        for (step, of_step) in self.needs.iter().enumerate() {
            let group = group_of[step];
            let others = of_step.iter().map(|need| group_of[*need]);
            needs[group].extend(others.filter(|other| *other != group));
        }
        Self { needs }
    }

    /// Steps that need nothing and that nothing needs, if there are others beside them.
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

/// Which steps need which, directly or through others, without a list of them for each step: in a
/// chain, these lists together would grow with the square of its length.
pub(super) struct Ancestry<'a> {
    graph: &'a Graph,
    /// Each step's place in the graph's order.
    place: Vec<usize>,
    /// A forest in which each step hangs below the last of those that it needs: `enter` numbers the
    /// steps so that those below a step are the `size - 1` numbers after its own.
    enter: Vec<usize>,
    size: Vec<usize>,
}

impl<'a> Ancestry<'a> {
    /// `order` is that of the graph.
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
        // The next free number below each step.
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

    /// Whether `step` needs `other`, directly or through others.
    pub(super) fn needs(&self, step: usize, other: usize) -> bool {
        // Most often the forest says so at once; else only what comes after `other` is walked.
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
    fn steps_come_after_what_they_need_and_otherwise_as_written() {
        assert_eq!(graph(&[&[], &[0], &[1]]).order(), Ok(vec![0, 1, 2]));
        assert_eq!(graph(&[&[2], &[], &[1]]).order(), Ok(vec![1, 2, 0]));
        assert_eq!(
            graph(&[&[1, 2], &[], &[], &[0]]).order(),
            Ok(vec![1, 2, 0, 3])
        );
    }

    #[test]
    fn a_cycle_is_named_without_what_leads_to_it() {
        assert_eq!(graph(&[&[1], &[2], &[1]]).order(), Err(vec![1, 2, 1]));
        assert_eq!(graph(&[&[], &[0, 1]]).order(), Err(vec![1, 1]));
    }

    proptest! {
        /// Against the plain definitions, which take longer.
        #[test]
        fn order_and_ancestry_are_what_they_are_said_to_be(
            edges in prop::collection::vec((0usize..9, 0usize..9), 0..20),
            numbers in Just((0usize..9).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut needs = vec![Vec::new(); 9];
            for (one, other) in edges {
                // No cycle: each edge goes from the greater to the smaller number.
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
    fn a_long_chain_is_ordered_and_looked_through_at_once() {
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
