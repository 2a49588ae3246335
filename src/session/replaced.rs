//! Which measurements count, of flows that were run again.

use std::collections::BTreeSet;

use crate::record::StepRecord;

/// Which flows were run again, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Reruns {
    /// Whether flows are being, or were, run again.
    pub(super) begun: bool,
    /// Flows whose second measurement counts.
    pub(super) replaced: BTreeSet<usize>,
}

impl Reruns {
    /// Whether another measurement of the step's flow counts.
    pub(super) fn is_discarded(&self, step: &StepRecord) -> bool {
        step.rerun != self.replaced.contains(&step.flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_measurement_of_a_flow_counts() {
        let mut reruns = Reruns::default();
        let step = |flow, rerun| StepRecord {
            flow,
            rerun,
            ..StepRecord::default()
        };
        assert!(!reruns.is_discarded(&step(1, false)));
        // One that did not end, or failed, replaces nothing.
        assert!(reruns.is_discarded(&step(1, true)));
        reruns.replaced.insert(1);
        assert!(reruns.is_discarded(&step(1, false)));
        assert!(!reruns.is_discarded(&step(1, true)));
        assert!(!reruns.is_discarded(&step(2, false)));
    }
}
