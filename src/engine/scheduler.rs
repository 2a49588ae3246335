//! Decides what the next forward pass computes: continuous batching with chunked prefill, first come,
//! first served.
//!
//! Requests wait in order of arrival. The caller admits them in that order while a sequence slot and enough
//! memory are free, and passes over those that wait for a prefix that another request computes. A pass takes one token of every decoding sequence, then fills up
//! to a budget with prompt tokens of prefilling ones, oldest first: so a long prompt delays the others'
//! next tokens by at most one chunk, and an interrupt is noticed after one chunk. If memory runs short,
//! the sequence admitted last is preempted and goes to the head of the queue.

use std::collections::VecDeque;

use super::RequestId;

/// One sequence's share of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) id: RequestId,
    /// Position of the first token to compute.
    pub(crate) start: usize,
    /// Tokens to compute; at least 1.
    pub(crate) count: usize,
    /// Whether these are the last known tokens, so that their logits give the next one.
    pub(crate) last: bool,
}

/// A preempted sequence, and how many of its tokens had been computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preempted {
    pub(crate) id: RequestId,
    pub(crate) computed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    id: RequestId,
    /// Known tokens: the prompt and what was generated.
    known: usize,
    computed: usize,
}

/// The queue and the active batch. Knows only lengths, not tokens.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    active: Vec<Sequence>,
    max_sequences: usize,
    /// Maximum tokens per pass.
    budget: usize,
}

impl Scheduler {
    /// A scheduler for at most `max_sequences` active sequences and `budget` tokens per pass (at least
    /// one token per decoding sequence is always computed).
    pub(crate) fn new(max_sequences: usize, budget: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            active: Vec::new(),
            max_sequences: max_sequences.max(1),
            budget: budget.max(1),
        }
    }

    /// Queues a request with a prompt of `tokens` tokens (at least 1).
    pub(crate) fn submit(&mut self, id: RequestId, tokens: usize) {
        self.waiting.push_back(Sequence {
            id,
            known: tokens.max(1),
            computed: 0,
        });
    }

    /// From now on admits at most `max_sequences`; those that are active stay.
    pub(crate) fn limit(&mut self, max_sequences: usize) {
        self.max_sequences = max_sequences.max(1);
    }

    pub(crate) fn has_capacity(&self) -> bool {
        self.active.len() < self.max_sequences
    }

    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    /// Waiting requests, in order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.iter().map(|sequence| sequence.id)
    }

    /// Active sequences with more than one known token left to compute, in order of admission: prompts, and
    /// tokens of preempted sequences.
    pub(crate) fn prefilling(&self) -> impl Iterator<Item = RequestId> {
        let prefilling = |sequence: &&Sequence| sequence.known - sequence.computed > 1;
        self.active
            .iter()
            .filter(prefilling)
            .map(|sequence| sequence.id)
    }

    /// Makes a waiting request active; `computed` of its tokens are already in the cache.
    pub(crate) fn admit(&mut self, id: RequestId, computed: usize) {
        if let Some(place) = self.waiting.iter().position(|sequence| sequence.id == id)
            && let Some(mut sequence) = self.waiting.remove(place)
        {
            sequence.computed = computed;
            self.active.push(sequence);
        }
    }

    /// Preempts the sequence admitted last: it keeps its tokens, loses what was computed of them, and
    /// goes to the head of the queue. `None` if fewer than two are active, since preempting would free
    /// nothing for another.
    pub(crate) fn preempt(&mut self) -> Option<Preempted> {
        if self.active.len() < 2 {
            return None;
        }
        let mut sequence = self.active.pop()?;
        let preempted = Preempted {
            id: sequence.id,
            computed: std::mem::take(&mut sequence.computed),
        };
        self.waiting.push_front(sequence);
        Some(preempted)
    }

    /// The next pass; empty if nothing is active. Decoding sequences come first, so that their rows in
    /// the batch do not depend on prefilling ones.
    pub(crate) fn plan(&self) -> Vec<Work> {
        let mut remaining = self.budget;
        let mut plan = Vec::new();
        for decodes in [true, false] {
            for sequence in &self.active {
                let missing = sequence.known - sequence.computed;
                if (missing == 1) != decodes {
                    continue;
                }
                let count = if decodes { 1 } else { missing.min(remaining) };
                if count == 0 {
                    continue;
                }
                remaining = remaining.saturating_sub(count);
                plan.push(Work {
                    id: sequence.id,
                    start: sequence.computed,
                    count,
                    last: count == missing,
                });
            }
        }
        plan
    }

    /// Records that the work was computed.
    pub(crate) fn computed(&mut self, work: Work) {
        if let Some(sequence) = self.find(work.id) {
            sequence.computed = work.start + work.count;
        }
    }

    /// Records that another token of the sequence is known.
    pub(crate) fn extended(&mut self, id: RequestId) {
        if let Some(sequence) = self.find(id) {
            sequence.known += 1;
        }
    }

    /// Removes a request in any state. Returns how many of its tokens had been computed.
    pub(crate) fn remove(&mut self, id: RequestId) -> usize {
        let computed = self.computed_tokens(id);
        self.waiting.retain(|sequence| sequence.id != id);
        self.active.retain(|sequence| sequence.id != id);
        computed
    }

    /// Computed tokens of a sequence; 0 unless it is active.
    pub(crate) fn computed_tokens(&self, id: RequestId) -> usize {
        let mut active = self.active.iter();
        let sequence = active.find(|sequence| sequence.id == id);
        sequence.map_or(0, |sequence| sequence.computed)
    }

    fn find(&mut self, id: RequestId) -> Option<&mut Sequence> {
        self.active.iter_mut().find(|sequence| sequence.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn work(id: u64, start: usize, count: usize, last: bool) -> Work {
        Work {
            id: RequestId(id),
            start,
            count,
            last,
        }
    }

    /// Admits as many requests as there are free slots.
    fn fill(scheduler: &mut Scheduler) -> Vec<RequestId> {
        let mut admitted = Vec::new();
        while scheduler.has_capacity() {
            let Some(id) = scheduler.waiting().next() else {
                break;
            };
            scheduler.admit(id, 0);
            admitted.push(id);
        }
        admitted
    }

    #[test]
    fn prefill_is_chunked_and_decoding_continues() {
        let mut scheduler = Scheduler::new(2, 8);
        scheduler.submit(RequestId(1), 4);
        scheduler.submit(RequestId(2), 20);
        scheduler.submit(RequestId(3), 1);
        assert_eq!(fill(&mut scheduler), [RequestId(1), RequestId(2)]);

        assert_eq!(
            scheduler.plan(),
            [work(1, 0, 4, true), work(2, 0, 4, false)]
        );
        for work in scheduler.plan() {
            scheduler.computed(work);
        }
        scheduler.extended(RequestId(1));
        assert_eq!(
            scheduler.plan(),
            [work(1, 4, 1, true), work(2, 4, 7, false)]
        );
        for work in scheduler.plan() {
            scheduler.computed(work);
        }
        scheduler.remove(RequestId(1));
        assert_eq!(fill(&mut scheduler), [RequestId(3)]);
        // A prompt of one token counts as decode; it comes first.
        assert_eq!(
            scheduler.plan(),
            [work(3, 0, 1, true), work(2, 11, 7, false)]
        );
    }

    #[test]
    fn cached_tokens_are_not_computed() {
        let mut scheduler = Scheduler::new(2, 8);
        scheduler.submit(RequestId(1), 20);
        scheduler.admit(RequestId(1), 15);
        assert_eq!(scheduler.plan(), [work(1, 15, 5, true)]);
    }

    #[test]
    fn the_last_admitted_is_preempted_and_readmitted_first() {
        let mut scheduler = Scheduler::new(2, 64);
        for id in 1..=3 {
            scheduler.submit(RequestId(id), 10);
        }
        fill(&mut scheduler);
        for work in scheduler.plan() {
            scheduler.computed(work);
        }
        scheduler.extended(RequestId(2));
        let preempted = Preempted {
            id: RequestId(2),
            computed: 10,
        };
        assert_eq!(scheduler.preempt(), Some(preempted));
        assert_eq!(scheduler.computed_tokens(RequestId(2)), 0);
        assert_eq!(scheduler.preempt(), None, "one alone goes on");
        let order: Vec<_> = scheduler.waiting().collect();
        assert_eq!(order, [RequestId(2), RequestId(3)]);
        scheduler.admit(RequestId(2), 0);
        // The prompt and the token it had generated.
        assert!(scheduler.plan().contains(&work(2, 0, 11, true)));
    }

    proptest! {
        /// Every token is computed once, in order, without a gap, whatever the budget and the number of
        /// slots, and logits are requested exactly once per generated token.
        #[test]
        fn every_token_is_computed_once(
            prompts in prop::collection::vec((1usize..60, 1usize..12), 1..12),
            places in 1usize..6,
            budget in 1usize..40,
        ) {
            let mut scheduler = Scheduler::new(places, budget);
            let mut generated = BTreeMap::new();
            let mut next = BTreeMap::new();
            for (index, (prompt, _)) in prompts.iter().enumerate() {
                scheduler.submit(RequestId(index as u64), *prompt);
            }
            for _ in 0..2_000 {
                fill(&mut scheduler);
                let plan = scheduler.plan();
                if plan.is_empty() {
                    break;
                }
                prop_assert!(plan.len() <= places);
                let prefill: usize = plan.iter().filter(|w| w.count > 1).map(|w| w.count).sum();
                prop_assert!(prefill <= budget);
                for work in plan {
                    let (prompt, wanted) = prompts[work.id.0 as usize];
                    let position = next.entry(work.id).or_insert(0);
                    prop_assert_eq!(work.start, *position);
                    *position += work.count;
                    scheduler.computed(work);
                    let count = generated.entry(work.id).or_insert(0);
                    prop_assert_eq!(work.last, *position == prompt + *count);
                    if work.last {
                        *count += 1;
                        if *count == wanted {
                            scheduler.remove(work.id);
                        } else {
                            scheduler.extended(work.id);
                        }
                    }
                }
            }
            for (index, (_, wanted)) in prompts.iter().enumerate() {
                prop_assert_eq!(generated.get(&RequestId(index as u64)), Some(wanted));
            }
        }
    }
}
