//! Samples of one prompt: the prompt is computed once, and the other samples fork from its pages.

use super::admission::provide;
use super::results::Row;
use super::{LocalEngine, RequestId};
use crate::engine::kv::{KvCache, Lease, PAGE_TOKENS};
use crate::engine::{Event, EventKind};
use crate::error::Result;

impl LocalEngine {
    /// Whether a waiting request's prompt is about to be computed by the sample that it forks from.
    pub(super) fn waits_for_its_fork(&self, id: RequestId) -> bool {
        let forks_from = |id| self.sequences.get(&id)?.forks_from;
        forks_from(id)
            .and_then(|first| self.sequences.get(&first))
            .is_some_and(|first| first.tokens.len() == first.prompt_tokens)
    }

    /// Forks the samples that wait for this one's prompt, which has just been computed. `logits` are
    /// those after the prompt, from which each samples its first token. Samples for which no slot or
    /// memory is available keep waiting, and compute the prompt themselves.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn fork_samples(
        &mut self,
        first: RequestId,
        row: Row<'_>,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let Some(sequence) = self.sequences.get(&first) else {
            return Ok(());
        };
        if !sequence.has_forks || sequence.tokens.len() > sequence.prompt_tokens {
            return Ok(());
        }
        let waits = |id: &RequestId| {
            let forks_from = self.sequences.get(id).map(|sequence| sequence.forks_from);
            forks_from == Some(Some(first))
        };
        let samples: Vec<RequestId> = self.scheduler.waiting().filter(waits).collect();
        for id in samples {
            let lease = match self.scheduler.has_capacity() {
                true => self.fork_lease(first)?,
                false => None,
            };
            let slot = match lease {
                Some(_) => Some(self.model.open()?),
                None => None,
            };
            let Some(sequence) = self.sequences.get_mut(&id) else {
                continue;
            };
            sequence.forks_from = None;
            if lease.is_none() {
                continue;
            }
            sequence.lease = lease;
            sequence.slot = slot;
            sequence.reused = Some(sequence.prompt_tokens);
            if !std::mem::replace(&mut sequence.started, true) {
                let kind = EventKind::Started;
                events.push(Event { id, kind });
            }
            self.scheduler.admit(id, sequence.prompt_tokens);
            self.advance(id, row, events)?;
        }
        Ok(())
    }

    /// A lease that shares what was computed of `first`; `None` if memory does not suffice.
    fn fork_lease(&mut self, first: RequestId) -> Result<Option<Lease>> {
        // Leave a page per running sequence and one for the new one, so that none has to be preempted
        // at its next token.
        let headroom = self.scheduler.active() + 1;
        let computed = self.scheduler.computed_tokens(first);
        let (Some(kv), Some(sequence)) = (&mut self.kv, self.sequences.get_mut(&first)) else {
            return Ok(None);
        };
        let Some(lease) = &mut sequence.lease else {
            return Ok(None);
        };
        // The page where the sequences diverge.
        provide(kv, self.model.as_mut(), PAGE_TOKENS, 0);
        if KvCache::available(kv) < headroom + 1 {
            return Ok(None);
        }
        let mut fork = kv.fork(lease, &sequence.tokens[..computed]);
        if let Some(copy) = fork.as_mut().and_then(Lease::take_copy) {
            self.model.copy_page(copy.from.number(), copy.to.number())?;
        }
        Ok(fork)
    }
}
