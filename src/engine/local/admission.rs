//! Who has a place in the model and pages of its memory: admission, growth, pre-emption, and what is given
//! back.

use super::{LocalEngine, Sequence, WORTH_WAITING};
use crate::engine::kv::{KvCache, Lease, PAGE_TOKENS};
use crate::engine::model::Model;
use crate::engine::scheduler::Work;
use crate::engine::{Event, EventKind, RequestId};
use crate::error::Result;
use crate::profile::Span;

/// Sees to it that there is memory for a lease of `tokens` tokens, of which `had` pages are there. Where
/// it is short, the cache goes without the pages that there is none for.
pub(super) fn provide(kv: &mut KvCache, model: &mut dyn Model, tokens: usize, had: usize) {
    let reach = kv.pages_touched_for(tokens, had);
    let there = model.provide_pages(reach);
    if there < reach {
        kv.limit(there);
    }
}

impl LocalEngine {
    /// Ends a request that the memory does not hold, and would not hold alone. It is told with the next
    /// poll's events.
    fn outgrown(&mut self, id: RequestId, tokens: usize) {
        let held = self.kv.as_ref().map_or(0, |kv| kv.stats().capacity);
        let reason = self.lengths.outgrown(tokens, held * PAGE_TOKENS);
        self.release(id);
        let kind = EventKind::Failed(reason);
        self.failed.push(Event { id, kind });
    }

    /// Forgets a request and frees its sequence; what was computed of it stays known.
    pub(super) fn release(&mut self, id: RequestId) -> Option<Sequence> {
        self.scheduler.remove(id);
        let mut sequence = self.sequences.remove(&id)?;
        self.release_memory(&mut sequence);
        Some(sequence)
    }

    /// Takes a sequence's place in the model and its memory back.
    pub(super) fn release_memory(&mut self, sequence: &mut Sequence) {
        if let Some(slot) = sequence.slot.take() {
            self.model.close(slot);
        }
        if let (Some(kv), Some(lease)) = (&mut self.kv, sequence.lease.take()) {
            kv.finish(lease, &sequence.tokens[..sequence.computed]);
        }
    }

    /// Makes waiting requests active, in their order, as far as places and memory go.
    pub(super) fn admit(&mut self) -> Result<()> {
        let waiting: Vec<RequestId> = self.scheduler.waiting().collect();
        for id in waiting {
            if !self.scheduler.has_place() {
                break;
            }
            if self.waits_for_its_fork(id) {
                continue;
            }
            let Some(sequence) = self.sequences.get(&id) else {
                continue;
            };
            let mut lease = None;
            if let Some(kv) = &mut self.kv {
                let prefilling = self.scheduler.prefilling();
                let coming = kv.pending_prefix(
                    &sequence.tokens,
                    prefilling.filter_map(|id| Some(self.sequences.get(&id)?.tokens.as_slice())),
                );
                // Somebody is computing what this one needs, too.
                if coming >= WORTH_WAITING {
                    continue;
                }
                provide(kv, self.model.as_mut(), sequence.tokens.len(), 0);
                // A page for each that runs, so that none has to give way at its next token.
                lease = kv.acquire(&sequence.tokens, self.scheduler.active());
                if lease.is_none() && self.scheduler.active() == 0 {
                    let tokens = sequence.tokens.len();
                    self.outgrown(id, tokens);
                    continue;
                }
                // First come, first served: a shorter one must not pass by.
                if lease.is_none() {
                    break;
                }
            }
            if let Some(copy) = lease.as_mut().and_then(Lease::take_copy) {
                self.model.copy_page(copy.from.number(), copy.to.number())?;
            }
            let slot = self.model.open()?;
            let computed = lease.as_ref().map_or(0, Lease::reused);
            self.scheduler.admit(id, computed);
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.slot = Some(slot);
                sequence.lease = lease;
                sequence.computed = computed;
                // At most the prompt: one that gave way finds its own tokens known, too.
                sequence.reused.get_or_insert(computed);
                sequence.phase.next(match sequence.tokens.len() {
                    known if known > sequence.prompt_tokens => Span::Decode,
                    _ => Span::Prefill,
                });
            }
        }
        Ok(())
    }

    /// The next pass, with memory for every token of it. Where it does not suffice, the sequence
    /// admitted last gives way; one that is alone has failed.
    pub(super) fn plan(&mut self) -> Vec<Work> {
        loop {
            let plan = self.scheduler.plan();
            let Some(kv) = &mut self.kv else {
                return plan;
            };
            let short = plan.iter().find(|work| {
                let lease = self.sequences.get_mut(&work.id).map(|seq| &mut seq.lease);
                let Some(Some(lease)) = lease else {
                    return true;
                };
                let tokens = work.start + work.count;
                provide(kv, self.model.as_mut(), tokens, lease.page_table().len());
                !kv.grow(lease, tokens)
            });
            let Some(&work) = short else {
                return plan;
            };
            let Some(id) = self.scheduler.preempt() else {
                self.outgrown(work.id, work.start + work.count);
                continue;
            };
            if let Some(mut sequence) = self.sequences.remove(&id) {
                self.release_memory(&mut sequence);
                sequence.computed = 0;
                sequence.phase.next(Span::QueueWait);
                self.sequences.insert(id, sequence);
            }
        }
    }
}
