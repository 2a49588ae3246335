//! The state of a step, sample by sample.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::Message;
use crate::flow::{Readable, Scored};

/// The answer of one sample, or a result about an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct SampleResult {
    /// The answer; for a step that evaluates, the program.
    pub(crate) text: String,
    /// The conversation that the answer ends; empty unless the step generates.
    pub(crate) messages: Arc<[Message]>,
    /// Set by steps that score, and by selections among them.
    pub(crate) scored: Option<Scored>,
    /// The trial that it is or comes from.
    pub(crate) trial: Option<usize>,
    /// Step and sample that scored it; a selection keeps them.
    pub(crate) origin: Option<(usize, usize)>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct StepState {
    items: Vec<Option<SampleResult>>,
    begun: Vec<bool>,
    ended: usize,
    readable: Option<Arc<Readable>>,
}

impl StepState {
    pub(crate) fn new(samples: usize) -> Self {
        Self {
            items: vec![None; samples],
            begun: vec![false; samples],
            ended: 0,
            readable: None,
        }
    }

    /// Notes that a sample begins. Returns false if it had begun before.
    pub(crate) fn begin(&mut self, sample: usize) -> bool {
        !std::mem::replace(&mut self.begun[sample], true)
    }

    /// Sets the result of a sample. Returns whether the step has ended.
    pub(crate) fn end(&mut self, sample: usize, item: SampleResult) -> bool {
        self.begun[sample] = true;
        if self.items[sample].replace(item).is_none() {
            self.ended += 1;
        }
        if self.ended < self.items.len() {
            return false;
        }
        self.readable = Some(Arc::new(readable(self.items.iter().flatten())));
        true
    }

    /// Ends the step with these results.
    pub(crate) fn end_all(&mut self, items: Vec<SampleResult>) {
        self.begun = vec![true; items.len()];
        self.ended = items.len();
        self.readable = Some(Arc::new(readable(items.iter())));
        self.items = items.into_iter().map(Some).collect();
    }

    /// The samples that have not begun.
    pub(crate) fn open(&self) -> Vec<usize> {
        (0..self.begun.len())
            .filter(|sample| !self.begun[*sample])
            .collect()
    }

    pub(crate) fn samples(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn item(&self, sample: usize) -> Option<&SampleResult> {
        self.items.get(sample)?.as_ref()
    }

    /// The samples that have ended.
    pub(crate) fn items(&self) -> impl Iterator<Item = &SampleResult> {
        self.items.iter().flatten()
    }

    /// What later steps can read; `None` until the step has ended.
    pub(crate) fn readable(&self) -> Option<&Arc<Readable>> {
        self.readable.as_ref()
    }
}

fn readable<'a>(items: impl Iterator<Item = &'a SampleResult> + Clone) -> Readable {
    Readable {
        texts: items.clone().map(|item| item.text.clone()).collect(),
        scored: items.map(|item| item.scored.clone()).collect(),
    }
}

/// The `keep` best of `items` by score. Items without a score come last, ties keep their order, and an item
/// with the same origin counts once.
pub(crate) fn best<'a>(
    items: impl Iterator<Item = &'a SampleResult>,
    keep: usize,
) -> Vec<SampleResult> {
    let score = |item: &SampleResult| item.scored.as_ref().and_then(|scored| scored.score);
    let mut seen = BTreeSet::new();
    let is_new = |item: &&SampleResult| item.origin.is_none_or(|origin| seen.insert(origin));
    let mut sorted: Vec<&SampleResult> = items.filter(is_new).collect();
    sorted.sort_by(|one, other| match (score(one), score(other)) {
        (Some(one), Some(other)) => other.total_cmp(&one),
        (one, other) => other.is_some().cmp(&one.is_some()),
    });
    sorted.into_iter().take(keep).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(text: &str, score: Option<f64>) -> SampleResult {
        SampleResult {
            text: text.to_owned(),
            scored: Some(Scored {
                score,
                ..Scored::default()
            }),
            ..SampleResult::default()
        }
    }

    #[test]
    fn a_step_ends_with_its_last_sample_in_any_order() {
        let mut state = StepState::new(3);
        assert!(state.begin(1) && !state.begin(1));
        assert!(!state.end(2, item("c", None)));
        assert!(!state.end(0, item("a", Some(1.0))));
        assert!(state.readable().is_none());
        assert!(state.end(1, item("b", None)));
        let readable = state.readable().expect("it has ended");
        assert_eq!(readable.texts, ["a", "b", "c"]);
        assert_eq!(readable.scored.as_ref().map(Vec::len), Some(3));
    }

    #[test]
    fn duplicates_count_once() {
        let first = SampleResult {
            origin: Some((1, 0)),
            ..item("a", Some(2.0))
        };
        let other = SampleResult {
            origin: Some((1, 1)),
            ..item("b", Some(1.0))
        };
        let kept = best([&first, &other, &first].into_iter(), 3);
        let texts: Vec<&str> = kept.iter().map(|item| item.text.as_str()).collect();
        assert_eq!(texts, ["a", "b"]);
    }

    proptest! {
        #[test]
        fn best_agrees_with_a_full_sort(
            scores in prop::collection::vec(prop::option::of(0u8..4), 1..12), keep in 1usize..14,
        ) {
            let items: Vec<SampleResult> = (scores.iter().enumerate())
                .map(|(number, score)| item(&number.to_string(), score.map(f64::from)))
                .collect();
            let kept: Vec<usize> = (best(items.iter(), keep).iter())
                .map(|item| item.text.parse().expect("a number"))
                .collect();
            let mut expected: Vec<usize> = (0..scores.len()).collect();
            expected.sort_by_key(|number| (std::cmp::Reverse(scores[*number]), *number));
            expected.truncate(keep);
            prop_assert_eq!(kept, expected);
        }
    }
}
