//! What a step leaves behind, sample by sample.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::Message;
use crate::flow::{Readable, Scored};

/// One answer of a step, or one result about an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Item {
    /// The answer; of a step that evaluates, the program.
    pub(crate) text: String,
    /// Of a step that generates: the conversation, this answer included.
    pub(crate) messages: Vec<Message>,
    /// Of a step that scores, or selects among what was scored.
    pub(crate) scored: Option<Scored>,
    /// The trial that it is, or that it comes from.
    pub(crate) trial: Option<usize>,
    /// The step and the sample that scored it; a selection keeps them.
    pub(crate) origin: Option<(usize, usize)>,
}

/// A step that has begun.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    items: Vec<Option<Item>>,
    begun: Vec<bool>,
    ended: usize,
    readable: Option<Arc<Readable>>,
}

impl Node {
    /// A step of so many samples.
    pub(crate) fn new(samples: usize) -> Self {
        Self {
            items: vec![None; samples],
            begun: vec![false; samples],
            ended: 0,
            readable: None,
        }
    }

    /// Notes that a sample begins; whether it had not before.
    pub(crate) fn begin(&mut self, sample: usize) -> bool {
        !std::mem::replace(&mut self.begun[sample], true)
    }

    /// Takes what has come of a sample; whether the step has ended with it.
    pub(crate) fn end(&mut self, sample: usize, item: Item) -> bool {
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

    /// All samples at once: the step has ended.
    pub(crate) fn end_all(&mut self, items: Vec<Item>) {
        self.begun = vec![true; items.len()];
        self.ended = items.len();
        self.readable = Some(Arc::new(readable(items.iter())));
        self.items = items.into_iter().map(Some).collect();
    }

    /// How many samples it has.
    pub(crate) fn samples(&self) -> usize {
        self.items.len()
    }

    /// A sample that has ended.
    pub(crate) fn item(&self, sample: usize) -> Option<&Item> {
        self.items.get(sample)?.as_ref()
    }

    /// Those samples that have ended.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().flatten()
    }

    /// What later steps can read, once it has ended.
    pub(crate) fn readable(&self) -> Option<&Arc<Readable>> {
        self.readable.as_ref()
    }
}

fn readable<'a>(items: impl Iterator<Item = &'a Item> + Clone) -> Readable {
    Readable {
        texts: items.clone().map(|item| item.text.clone()).collect(),
        scored: items.map(|item| item.scored.clone()).collect(),
    }
}

/// The best `keep` of `items`: by score, those without one last; among equals those that come first. One
/// that comes in several ways counts once.
pub(crate) fn best<'a>(items: impl Iterator<Item = &'a Item>, keep: usize) -> Vec<Item> {
    let score = |item: &Item| item.scored.as_ref().and_then(|scored| scored.score);
    let mut seen = BTreeSet::new();
    let is_new = |item: &&Item| item.origin.is_none_or(|origin| seen.insert(origin));
    let mut sorted: Vec<&Item> = items.filter(is_new).collect();
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

    fn item(text: &str, score: Option<f64>) -> Item {
        Item {
            text: text.to_owned(),
            scored: Some(Scored {
                score,
                ..Scored::default()
            }),
            ..Item::default()
        }
    }

    #[test]
    fn a_step_ends_with_its_last_sample_whatever_their_order() {
        let mut node = Node::new(3);
        assert!(node.begin(1) && !node.begin(1));
        assert!(!node.end(2, item("c", None)));
        assert!(!node.end(0, item("a", Some(1.0))));
        assert!(node.readable().is_none());
        assert!(node.end(1, item("b", None)));
        let readable = node.readable().expect("it has ended");
        assert_eq!(readable.texts, ["a", "b", "c"]);
        assert_eq!(readable.scored.as_ref().map(Vec::len), Some(3));
    }

    #[test]
    fn what_comes_twice_counts_once() {
        let first = Item {
            origin: Some((1, 0)),
            ..item("a", Some(2.0))
        };
        let other = Item {
            origin: Some((1, 1)),
            ..item("b", Some(1.0))
        };
        let kept = best([&first, &other, &first].into_iter(), 3);
        let texts: Vec<&str> = kept.iter().map(|item| item.text.as_str()).collect();
        assert_eq!(texts, ["a", "b"]);
    }

    proptest! {
        #[test]
        fn the_best_are_those_that_a_full_sort_gives(
            scores in prop::collection::vec(prop::option::of(0u8..4), 1..12), keep in 1usize..14,
        ) {
            let items: Vec<Item> = (scores.iter().enumerate())
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
