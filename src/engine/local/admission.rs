//! Admission, growth, preemption and release: which sequences have a slot in the model and pages of KV
//! memory.

use super::{LocalEngine, Sequence, WORTH_WAITING};
use crate::engine::kv::{KvCache, Lease, PAGE_TOKENS};
use crate::engine::model::Model;
use crate::engine::scheduler::{Preempted, Work};
use crate::engine::{Event, EventKind, RequestId};
use crate::error::Result;
use crate::profile::Span;

/// Ensures that memory is committed for a lease of `tokens` tokens, of which `had` pages exist. If
/// memory is short, the cache is limited to the pages that are backed by memory.
pub(super) fn provide(kv: &mut KvCache, model: &mut dyn Model, tokens: usize, had: usize) {
    let needed = kv.pages_touched_for(tokens, had);
    let provided = model.provide_pages(needed);
    if provided < needed {
        kv.limit(provided);
    }
}

impl LocalEngine {
    /// Fails a request that does not fit into memory even alone. The event is reported with the next
    /// poll.
    fn outgrown(&mut self, id: RequestId, tokens: usize) {
        let held = self.kv.as_ref().map_or(0, |kv| kv.stats().capacity);
        let reason = self.lengths.outgrown(tokens, held * PAGE_TOKENS);
        self.release(id);
        let kind = EventKind::Failed(reason);
        self.failed.push(Event { id, kind });
    }

    /// Removes a request and frees its sequence; what was computed of it stays in the cache.
    pub(super) fn release(&mut self, id: RequestId) -> Option<Sequence> {
        let computed = self.scheduler.remove(id);
        let mut sequence = self.sequences.remove(&id)?;
        self.release_memory(&mut sequence, computed);
        Some(sequence)
    }

    /// Frees a sequence's slot in the model and its pages; the keys and values of its first `computed`
    /// tokens stay in the cache.
    pub(super) fn release_memory(&mut self, sequence: &mut Sequence, computed: usize) {
        if let Some(slot) = sequence.slot.take() {
            self.model.close(slot);
        }
        if let (Some(kv), Some(lease)) = (&mut self.kv, sequence.lease.take()) {
            kv.finish(lease, &sequence.tokens[..computed]);
        }
    }

    /// Admits waiting requests in order, as far as slots and memory go.
    pub(super) fn admit(&mut self) -> Result<()> {
        let waiting: Vec<RequestId> = self.scheduler.waiting().collect();
        for id in waiting {
            if !self.scheduler.has_capacity() {
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
                // Another request is computing a prefix that this one needs.
                if coming >= WORTH_WAITING {
                    continue;
                }
                provide(kv, self.model.as_mut(), sequence.tokens.len(), 0);
                // Leave a page per running sequence, so that none has to be preempted at its next
                // token.
                lease = kv.acquire(&sequence.tokens, self.scheduler.active());
                if lease.is_none() && self.scheduler.active() == 0 {
                    let tokens = sequence.tokens.len();
                    self.outgrown(id, tokens);
                    continue;
                }
                // First come, first served: a shorter request must not overtake.
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
                // Only the first admission counts: a preempted sequence also finds its own tokens in
                // the cache.
                sequence.reused.get_or_insert(computed);
                sequence.phase.next(match sequence.tokens.len() {
                    known if known > sequence.prompt_tokens => Span::Decode,
                    _ => Span::Prefill,
                });
            }
        }
        Ok(())
    }

    /// The next pass, with memory for each of its tokens. If memory does not suffice, the sequence
    /// admitted last is preempted; a sequence that is alone fails.
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
            let Some(Preempted { id, computed }) = self.scheduler.preempt() else {
                self.outgrown(work.id, work.start + work.count);
                continue;
            };
            if let Some(mut sequence) = self.sequences.remove(&id) {
                self.release_memory(&mut sequence, computed);
                sequence.phase.next(Span::QueueWait);
                self.sequences.insert(id, sequence);
            }
        }
    }
}
