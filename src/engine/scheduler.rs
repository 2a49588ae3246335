//! Decides what the next forward pass computes: continuous batching with chunked prefill, first
//! come, first served.
//!
//! Requests wait in order of arrival. They are admitted while there is a free place in the batch
//! and, as the caller checks, enough memory. A pass computes one token of every decoding sequence,
//! then fills the remaining token budget with prompt tokens, oldest sequence first. So a long
//! prompt delays the other sequences' next tokens by at most one chunk, and an interrupt is noticed
//! after one chunk. When memory runs short, the most recently admitted sequence is preempted and
//! goes to the head of the queue.

use std::collections::VecDeque;

use super::RequestId;

/// One sequence's part of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) id: RequestId,
    /// Position of the first token to compute.
    pub(crate) start: usize,
    /// Number of tokens; at least 1.
    pub(crate) count: usize,
    /// Whether these are the last known tokens, so that their logits give the next token.
    pub(crate) last: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    id: RequestId,
    /// Number of known tokens: the prompt and the generated ones.
    known: usize,
    /// Number of computed tokens.
    computed: usize,
}

/// The queue and the active batch. Knows only sequence lengths, no tokens.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    active: Vec<Sequence>,
    max_sequences: usize,
    /// Upper bound on the tokens of a pass.
    budget: usize,
}

impl Scheduler {
    /// `max_sequences` is the model's limit on active sequences, `budget` the maximum tokens per
    /// pass. Decoding sequences get their token even beyond the budget.
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

    /// Whether one more sequence can be admitted.
    pub(crate) fn has_place(&self) -> bool {
        self.active.len() < self.max_sequences
    }

    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    /// Waiting requests in queue order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.iter().map(|sequence| sequence.id)
    }

    /// Sequences whose prompt is still being computed, in order of admission.
    pub(crate) fn prefilling(&self) -> impl Iterator<Item = RequestId> {
        let prefilling = |sequence: &&Sequence| sequence.known - sequence.computed > 1;
        self.active
            .iter()
            .filter(prefilling)
            .map(|sequence| sequence.id)
    }

    /// Activates a waiting request whose first `computed` tokens are already computed.
    pub(crate) fn admit(&mut self, id: RequestId, computed: usize) {
        if let Some(place) = self.waiting.iter().position(|sequence| sequence.id == id)
            && let Some(mut sequence) = self.waiting.remove(place)
        {
            sequence.computed = computed;
            self.active.push(sequence);
        }
    }

    /// Moves the most recently admitted sequence to the head of the queue. It keeps its tokens, but
    /// all of them have to be computed again. `None` if fewer than two sequences are active:
    /// preempting the only one would free memory for nobody.
    pub(crate) fn preempt(&mut self) -> Option<RequestId> {
        if self.active.len() < 2 {
            return None;
        }
        let mut sequence = self.active.pop()?;
        sequence.computed = 0;
        self.waiting.push_front(sequence);
        Some(sequence.id)
    }

    /// The next pass; empty if no sequence is active. Decoding sequences come first, so that their
    /// place in the batch does not depend on prefills.
    pub(crate) fn plan(&self) -> Vec<Work> {
        let mut left = self.budget;
        let mut plan = Vec::new();
        for decodes in [true, false] {
            for sequence in &self.active {
                let missing = sequence.known - sequence.computed;
                if (missing == 1) != decodes {
                    continue;
                }
                let count = if decodes { 1 } else { missing.min(left) };
                if count == 0 {
                    continue;
                }
                left = left.saturating_sub(count);
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

    /// Records that the sequence has one more known token.
    pub(crate) fn extended(&mut self, id: RequestId) {
        if let Some(sequence) = self.find(id) {
            sequence.known += 1;
        }
    }

    /// Removes a request from the queue or the batch.
    pub(crate) fn remove(&mut self, id: RequestId) {
        self.waiting.retain(|sequence| sequence.id != id);
        self.active.retain(|sequence| sequence.id != id);
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

    /// Admits waiting requests while there is a place.
    fn fill(scheduler: &mut Scheduler) -> Vec<RequestId> {
        let mut admitted = Vec::new();
        while scheduler.has_place() {
            let Some(id) = scheduler.waiting().next() else {
                break;
            };
            scheduler.admit(id, 0);
            admitted.push(id);
        }
        admitted
    }

    #[test]
    fn prefill_is_chunked_and_decoding_continues_in_the_same_pass() {
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
        // A prompt of one token is scheduled like a decode, so it comes first.
        assert_eq!(
            scheduler.plan(),
            [work(3, 0, 1, true), work(2, 11, 7, false)]
        );
    }

    #[test]
    fn cached_tokens_are_not_computed_again() {
        let mut scheduler = Scheduler::new(2, 8);
        scheduler.submit(RequestId(1), 20);
        scheduler.admit(RequestId(1), 15);
        assert_eq!(scheduler.plan(), [work(1, 15, 5, true)]);
    }

    #[test]
    fn the_last_admitted_is_preempted_and_waits_at_the_head() {
        let mut scheduler = Scheduler::new(2, 64);
        for id in 1..=3 {
            scheduler.submit(RequestId(id), 10);
        }
        fill(&mut scheduler);
        for work in scheduler.plan() {
            scheduler.computed(work);
        }
        scheduler.extended(RequestId(2));
        assert_eq!(scheduler.preempt(), Some(RequestId(2)));
        assert_eq!(scheduler.preempt(), None, "one alone goes on");
        let order: Vec<_> = scheduler.waiting().collect();
        assert_eq!(order, [RequestId(2), RequestId(3)]);
        scheduler.admit(RequestId(2), 0);
        // The prompt and the token it had generated.
        assert!(scheduler.plan().contains(&work(2, 0, 11, true)));
    }

    proptest! {
        /// Every request is computed once, in order and without gaps, for any budget and number of
        /// places. Logits are requested exactly once per generated token.
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
