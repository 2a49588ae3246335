//! The order of a template's steps, and which steps each may read.

use std::collections::BTreeSet;

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
        let mut order = Vec::with_capacity(self.needs.len());
        let mut done = vec![false; self.needs.len()];
        while order.len() < self.needs.len() {
            let ready =
                |step: &usize| !done[*step] && self.needs[*step].iter().all(|need| done[*need]);
            let Some(next) = (0..self.needs.len()).find(ready) else {
                return Err(self.cycle(&done));
            };
            done[next] = true;
            order.push(next);
        }
        Ok(order)
    }

    /// A cycle among the steps that are not done, each of which needs one that is not.
    fn cycle(&self, done: &[bool]) -> Vec<usize> {
        let mut path: Vec<usize> = done.iter().position(|done| !done).into_iter().collect();
        while let Some(last) = path.last() {
            let Some(next) = self.needs[*last].iter().find(|need| !done[**need]) else {
                break;
            };
            if let Some(start) = path.iter().position(|step| step == next) {
                path.push(*next);
                return path.split_off(start);
            }
            path.push(*next);
        }
        path
    }

    /// All that `step` needs, and what that needs in turn. The graph has no cycle.
    pub(super) fn ancestors(&self, step: usize) -> BTreeSet<usize> {
        ancestors(&self.needs, step)
    }

    /// Steps that need nothing and that nothing needs, if there are others beside them.
    pub(super) fn isolated(&self) -> Vec<usize> {
        let needed: BTreeSet<usize> = self.needs.iter().flatten().copied().collect();
        let alone = |step: &usize| self.needs[*step].is_empty() && !needed.contains(step);
        let isolated = (0..self.needs.len()).filter(alone).collect();
        if self.needs.len() > 1 {
            isolated
        } else {
            Vec::new()
        }
    }
}

/// All that `step` needs, and what that needs in turn; `needs[i]` are the steps that step `i` needs.
pub(crate) fn ancestors(needs: &[Vec<usize>], step: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = needs[step].clone();
    while let Some(next) = open.pop() {
        if found.insert(next) {
            open.extend(&needs[next]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn ancestors_and_isolated_steps() {
        let graph = graph(&[&[], &[0], &[1], &[]]);
        assert_eq!(graph.ancestors(2), BTreeSet::from([0, 1]));
        assert_eq!(graph.ancestors(3), BTreeSet::new());
        assert_eq!(graph.isolated(), [3]);
        assert_eq!(
            self::graph(&[&[]]).isolated(),
            [0; 0],
            "a single step is a template"
        );
    }
}
