//! Dependencies of a flow's steps: which may begin, given which have ended.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::flow::Flow;

/// The steps of one flow by index, and their progress.
#[derive(Debug)]
pub(crate) struct Graph<'a> {
    index: HashMap<&'a str, usize>,
    /// Direct dependents of each step.
    needed_by: Vec<Vec<usize>>,
    /// Direct dependencies of each step.
    needs: Vec<Vec<usize>>,
    /// For each step, how many of its dependencies have not ended.
    missing: Vec<usize>,
    /// Number of steps that have not ended.
    open: usize,
    visits: RefCell<Visits>,
}

/// Marks of visited steps, shared by all walks. A mark is the walk's number, so none has to be cleared.
#[derive(Debug)]
struct Visits {
    walk: usize,
    /// For each step, the last walk that visited it.
    last: Vec<usize>,
}

impl<'a> Graph<'a> {
    /// # Errors
    /// A step that needs an unknown or a later step, or a duplicate id. The expansion writes no such flow.
    pub(crate) fn new(flow: &'a Flow) -> Result<Self> {
        let mut index = HashMap::with_capacity(flow.steps.len());
        let mut needs = Vec::with_capacity(flow.steps.len());
        let mut needed_by = vec![Vec::new(); flow.steps.len()];
        for (number, step) in flow.steps.iter().enumerate() {
            let mut needed = Vec::with_capacity(step.needs.len());
            for id in &step.needs {
                let parent = *index.get(id.as_str()).ok_or_else(|| {
                    Error::flow(format!(
                        "flow {}: step {} needs {id}, which does not come before it",
                        flow.flow, step.id
                    ))
                })?;
                needed.push(parent);
                let children: &mut Vec<usize> = &mut needed_by[parent];
                children.push(number);
            }
            needs.push(needed);
            if index.insert(step.id.as_str(), number).is_some() {
                return Err(Error::flow(format!(
                    "flow {}: two steps are called {}",
                    flow.flow, step.id
                )));
            }
        }
        Ok(Self {
            missing: needs.iter().map(Vec::len).collect(),
            open: needs.len(),
            visits: RefCell::new(Visits {
                walk: 0,
                last: vec![0; needs.len()],
            }),
            index,
            needed_by,
            needs,
        })
    }

    /// Steps without dependencies, in the flow's order.
    pub(crate) fn roots(&self) -> Vec<usize> {
        (0..self.missing.len())
            .filter(|step| self.missing[*step] == 0)
            .collect()
    }

    pub(crate) fn needs(&self, step: usize) -> &[usize] {
        &self.needs[step]
    }

    pub(crate) fn index(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Direct and indirect dependencies of `step` that are `wanted`, in the flow's order.
    pub(crate) fn ancestors(&self, step: usize, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let visits = &mut *self.visits.borrow_mut();
        visits.walk += 1;
        let mut found = Vec::new();
        let mut open = vec![step];
        while let Some(next) = open.pop() {
            for &need in &self.needs[next] {
                if std::mem::replace(&mut visits.last[need], visits.walk) != visits.walk {
                    open.push(need);
                    if wanted(need) {
                        found.push(need);
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }

    /// Steps that wait for `step` alone.
    pub(crate) fn wait_only_for(&self, step: usize) -> Vec<usize> {
        let children = self.needed_by[step].iter().copied();
        children.filter(|child| self.missing[*child] == 1).collect()
    }

    /// Notes that a step has ended. Returns the steps that may begin now, in the flow's order.
    pub(crate) fn ended(&mut self, step: usize) -> Vec<usize> {
        self.open -= 1;
        let mut ready = Vec::new();
        for &child in &self.needed_by[step] {
            self.missing[child] -= 1;
            if self.missing[child] == 0 {
                ready.push(child);
            }
        }
        ready
    }

    pub(crate) fn is_done(&self) -> bool {
        self.open == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::tests::flow_of;

    #[test]
    fn a_diamond_becomes_ready_step_by_step() {
        let flow = flow_of(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])]);
        let mut graph = Graph::new(&flow).expect("a sound flow");
        assert_eq!(graph.roots(), [0]);
        assert_eq!(graph.ended(0), [1, 2]);
        assert!(graph.ended(2).is_empty());
        assert_eq!(graph.ended(1), [3]);
        assert!(!graph.is_done());
        assert!(graph.ended(3).is_empty());
        assert!(graph.is_done());
    }

    #[test]
    fn steps_that_wait_for_one_step_alone_and_ancestors() {
        let flow = flow_of(&[("a", &[]), ("b", &[]), ("c", &["a"]), ("d", &["a", "b"])]);
        let mut graph = Graph::new(&flow).expect("a sound flow");
        assert_eq!(graph.wait_only_for(0), [2]);
        graph.ended(1);
        assert_eq!(graph.wait_only_for(0), [2, 3]);
        assert_eq!(graph.ancestors(3, |_| true), [0, 1]);
        assert_eq!(graph.ancestors(3, |step| step != 0), [1]);
        assert_eq!(graph.ancestors(0, |_| true), [0; 0]);
        assert_eq!(graph.index("c"), Some(2));
    }

    #[test]
    fn unsound_flows_are_refused() {
        let later = flow_of(&[("a", &["b"]), ("b", &[])]);
        assert!(Graph::new(&later).is_err());
        let twice = flow_of(&[("a", &[]), ("a", &[])]);
        assert!(Graph::new(&twice).is_err());
    }
}
