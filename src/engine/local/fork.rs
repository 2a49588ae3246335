//! Several samples of one prompt: it is computed once, and each further sample goes on from its pages.

use super::admission::provide;
use super::{LocalEngine, RequestId};
use crate::engine::kv::{KvCache, Lease, PAGE_TOKENS};
use crate::engine::{Event, EventKind};
use crate::error::Result;

impl LocalEngine {
    /// Whether a waiting request's prompt is being computed, or about to be, for the sample that it
    /// forks from.
    pub(super) fn waits_for_its_fork(&self, id: RequestId) -> bool {
        let forks_from = |id| self.sequences.get(&id)?.forks_from;
        forks_from(id)
            .and_then(|first| self.sequences.get(&first))
            .is_some_and(|first| first.tokens.len() == first.prompt_tokens)
    }

    /// Lets the samples that wait for this one's prompt, which has just been computed, go on from it.
    /// `logits` are those after the prompt, which give each its first token. Samples for which there is
    /// no place or no memory now wait on, and compute the prompt for themselves.
    ///
    /// # Errors
    /// Where the device fails.
    pub(super) fn fork_samples(
        &mut self,
        first: RequestId,
        logits: &[f32],
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
            let lease = match self.scheduler.has_place() {
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
            sequence.computed = sequence.prompt_tokens;
            sequence.reused = Some(sequence.prompt_tokens);
            if !std::mem::replace(&mut sequence.started, true) {
                let kind = EventKind::Started;
                events.push(Event { id, kind });
            }
            self.scheduler.admit(id, sequence.prompt_tokens);
            self.advance(id, logits, events);
        }
        Ok(())
    }

    /// Memory that begins with what was computed of `first`; `None` where there is too little.
    fn fork_lease(&mut self, first: RequestId) -> Result<Option<Lease>> {
        // A page for each that runs, and one for the new one, so that none has to give way at its next
        // token.
        let headroom = self.scheduler.active() + 1;
        let (Some(kv), Some(sequence)) = (&mut self.kv, self.sequences.get_mut(&first)) else {
            return Ok(None);
        };
        let Some(lease) = &mut sequence.lease else {
            return Ok(None);
        };
        // The page where they part.
        provide(kv, self.model.as_mut(), PAGE_TOKENS, 0);
        if KvCache::available(kv) < headroom + 1 {
            return Ok(None);
        }
        let mut fork = kv.fork(lease, &sequence.tokens[..sequence.computed]);
        if let Some(copy) = fork.as_mut().and_then(Lease::take_copy) {
            self.model.copy_page(copy.from.number(), copy.to.number())?;
        }
        Ok(fork)
    }
}
