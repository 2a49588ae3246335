//! Decides what the next forward pass computes: continuous batching with chunked prefill, first
//! come, first served.
//!
//! Requests wait in the order in which they came and are admitted while there is a place and, as
//! the caller finds out, memory. A pass takes one token of every sequence that decodes, then fills
//! up with prompt tokens of those that prefill, oldest first, to a budget: a long prompt cannot
//! hold back the others' next tokens for longer than one chunk, and an interrupt is noticed after
//! one chunk. Where memory runs short, the sequence admitted last gives way and waits first in line.

use std::collections::VecDeque;

use super::RequestId;

/// What is computed of one sequence in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Whose sequence.
    pub(crate) id: RequestId,
    /// Position of the first token to compute.
    pub(crate) start: usize,
    /// How many tokens; at least 1.
    pub(crate) count: usize,
    /// Whether these are the last tokens known, so that their logits give the next one.
    pub(crate) last: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    id: RequestId,
    /// Tokens known: the prompt and what was generated.
    known: usize,
    /// Tokens computed.
    computed: usize,
}

/// The queue and the active batch; it knows lengths only.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    /// In the order of their admission.
    active: Vec<Sequence>,
    max_sequences: usize,
    /// Most tokens a pass.
    budget: usize,
}

impl Scheduler {
    /// A scheduler for a model that holds `max_sequences` at once, with at most `budget` tokens a
    /// pass (at least one a sequence is always computed).
    pub(crate) fn new(max_sequences: usize, budget: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            active: Vec::new(),
            max_sequences: max_sequences.max(1),
            budget: budget.max(1),
        }
    }

    /// Queues a request whose prompt has `tokens` tokens (at least 1).
    pub(crate) fn submit(&mut self, id: RequestId, tokens: usize) {
        self.waiting.push_back(Sequence {
            id,
            known: tokens.max(1),
            computed: 0,
        });
    }

    /// Whether one more sequence may be active.
    pub(crate) fn has_place(&self) -> bool {
        self.active.len() < self.max_sequences
    }

    /// How many sequences are active.
    pub(crate) fn active(&self) -> usize {
        self.active.len()
    }

    /// Those that wait, in their order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.iter().map(|sequence| sequence.id)
    }

    /// Those whose prompts are still being computed, in the order of their admission.
    pub(crate) fn prefilling(&self) -> impl Iterator<Item = RequestId> {
        let prefilling = |sequence: &&Sequence| sequence.known - sequence.computed > 1;
        self.active
            .iter()
            .filter(prefilling)
            .map(|sequence| sequence.id)
    }

    /// Makes a waiting request active; `computed` of its tokens are there already.
    pub(crate) fn admit(&mut self, id: RequestId, computed: usize) {
        if let Some(place) = self.waiting.iter().position(|sequence| sequence.id == id)
            && let Some(mut sequence) = self.waiting.remove(place)
        {
            sequence.computed = computed;
            self.active.push(sequence);
        }
    }

    /// The sequence that was admitted last gives way: it waits first in line, with the tokens that
    /// it has, and nothing of it computed. `None` where fewer than two are active: one alone has
    /// nobody to make room for.
    pub(crate) fn preempt(&mut self) -> Option<RequestId> {
        if self.active.len() < 2 {
            return None;
        }
        let mut sequence = self.active.pop()?;
        sequence.computed = 0;
        self.waiting.push_front(sequence);
        Some(sequence.id)
    }

    /// The next pass; empty where nothing is active. Decoding sequences come first, so that their
    /// place in the batch does not depend on who prefills.
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

    /// Notes that the work was computed.
    pub(crate) fn computed(&mut self, work: Work) {
        if let Some(sequence) = self.find(work.id) {
            sequence.computed = work.start + work.count;
        }
    }

    /// Notes that a further token of the sequence is known.
    pub(crate) fn extended(&mut self, id: RequestId) {
        if let Some(sequence) = self.find(id) {
            sequence.known += 1;
        }
    }

    /// Forgets a request, wherever it stands.
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

    /// Admits what there is a place for.
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
    fn prefill_is_cut_into_chunks_and_decoding_goes_on_beside_it() {
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
        // A prompt of one token is work for a decode place; it comes first.
        assert_eq!(
            scheduler.plan(),
            [work(3, 0, 1, true), work(2, 11, 7, false)]
        );
    }

    #[test]
    fn what_is_known_already_is_not_computed() {
        let mut scheduler = Scheduler::new(2, 8);
        scheduler.submit(RequestId(1), 20);
        scheduler.admit(RequestId(1), 15);
        assert_eq!(scheduler.plan(), [work(1, 15, 5, true)]);
    }

    #[test]
    fn the_last_admitted_gives_way_and_comes_back_first() {
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
        // Its prompt and the token that it had generated.
        assert!(scheduler.plan().contains(&work(2, 0, 11, true)));
    }

    proptest! {
        /// Every request is computed once, in order, without a gap, whatever the budget and the
        /// number of places, and with its logits asked for exactly once a generated token.
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
