//! What has ended, one by one, for the trace. Sums go on for ever; this stops at a bound and counts
//! what it leaves out.

use super::names::Span;

/// Most events that are kept, some 20 MB of them.
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

/// An activity that has ended, in ticks of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) span: Span,
    pub(super) label: Option<Box<str>>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A pass that has ended, in ticks of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndedPass {
    pub(super) span: Span,
    pub(super) of: PassTokens,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Pages of KV memory that sequences held at its end.
    pub(super) kv_pages: u64,
}

/// The events so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    pub(super) activities: Vec<Ended>,
    pub(super) passes: Vec<EndedPass>,
    /// Events left out.
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

    /// Whether there is room for one more; counts it as left out where there is none.
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
    fn what_comes_after_the_bound_is_counted() {
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
