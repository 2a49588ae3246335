//! Log of finished events for the trace. Unlike the sums, it is bounded, and counts the events it
//! drops.

use super::names::Span;

/// Upper bound on stored events, about 20 MB.
const MOST: usize = 200_000;

/// What a forward pass computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassTokens {
    /// Sequences in it.
    pub sequences: usize,
    /// Prompt tokens in it.
    pub prefill_tokens: usize,
    /// Tokens in it that were generated before, and guesses that it checks.
    pub decode_tokens: usize,
}

/// A finished activity; times in clock ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) span: Span,
    pub(super) label: Option<Box<str>>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A finished pass; times in clock ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndedPass {
    pub(super) span: Span,
    pub(super) of: PassTokens,
    pub(super) start: u64,
    pub(super) end: u64,
    /// KV cache pages held by sequences at its end.
    pub(super) kv_pages: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    pub(super) activities: Vec<Ended>,
    pub(super) passes: Vec<EndedPass>,
    /// Number of dropped events.
    pub(super) dropped: u64,
}

impl Log {
    pub(super) fn activity(&mut self, ended: Ended) {
        if self.has_room() {
            self.activities.push(ended);
        }
    }

    pub(super) fn pass(&mut self, ended: EndedPass) {
        if self.has_room() {
            self.passes.push(ended);
        }
    }

    /// Whether one more event fits; counts it as dropped otherwise.
    fn has_room(&mut self) -> bool {
        let room = self.activities.len() + self.passes.len() < MOST;
        self.dropped += u64::from(!room);
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_bound_are_counted() {
        let pass = EndedPass {
            span: Span::Forward,
            of: PassTokens::default(),
            start: 0,
            end: 1,
            kv_pages: 0,
        };
        let mut log = Log::default();
        for _ in 0..MOST + 3 {
            log.pass(pass.clone());
        }
        assert_eq!((log.passes.len(), log.dropped), (MOST, 3));
    }
}
