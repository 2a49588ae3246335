//! Loops of a template, as steps and unrolling see them.

use std::collections::BTreeSet;

/// The name by which a loop's steps and expressions refer to what the generation starts from.
pub(super) const PREVIOUS: &str = "previous";

/// A loop of a template, its steps as indices.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) generations: usize,
    pub(super) steps: BTreeSet<usize>,
    /// The step that the first generation knows as `previous`.
    pub(super) start: usize,
    /// The step of the loop that the next generation knows as `previous`.
    pub(super) carry: usize,
}

/// The number of the loop, from 0, that each of so many steps is in.
pub(super) fn loops_of(loops: &[Loop], steps: usize) -> Vec<Option<usize>> {
    let mut loop_of = vec![None; steps];
    for (number, of) in loops.iter().enumerate() {
        for step in &of.steps {
            loop_of[*step] = Some(number);
        }
    }
    loop_of
}
