//! Speculative decoding by prompt lookup: drafts the tokens that followed the last occurrence of the
//! latest tokens in the sequence itself (prompt lookup, Saxena 2023; n-gram drafts as in Yang et al.
//! 2023, arXiv:2304.04487).
//!
//! A draft costs extra rows of a pass that reads the weights anyway. Each row's logits are
//! bit-identical to those of decoding the token alone, so a wrong draft only costs time.

use super::admission::provide;
use super::{LocalEngine, results};
use crate::engine::Event;
use crate::engine::model::Chunk;
use crate::engine::scheduler::Work;
use crate::error::Result;
use crate::profile::{self, PassTokens, Span};

/// Minimum match for a draft, in tokens.
const SHORTEST_MATCH: usize = 2;

/// Longer matches are not more informative.
const LONGEST_MATCH: usize = 16;

/// Maximum tokens of a draft. A pass of eight rows costs little more than one row: the weights are read
/// once.
pub(super) const MAX_DRAFT: usize = 7;

/// Draft statistics of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drafts {
    /// Length of the next draft, in tokens.
    length: usize,
    /// Tokens drafted so far.
    pub(super) drafted: usize,
    /// Drafted tokens that were accepted.
    pub(super) accepted: usize,
}

impl Default for Drafts {
    fn default() -> Self {
        Self {
            length: MAX_DRAFT / 2,
            drafted: 0,
            accepted: 0,
        }
    }
}

impl Drafts {
    /// Drafts at most `max` tokens to follow `tokens`.
    pub(super) fn draft(&self, tokens: &[u32], max: usize) -> Vec<u32> {
        let mut best = (SHORTEST_MATCH - 1, 0);
        // The latest of the longest matches: texts tend to repeat what they said last.
        for end in (SHORTEST_MATCH..tokens.len()).rev() {
            let length = tokens[..end]
                .iter()
                .rev()
                .zip(tokens.iter().rev())
                .take(LONGEST_MATCH)
                .take_while(|(one, other)| one == other)
                .count();
            if length > best.0 {
                best = (length, end);
                if length == LONGEST_MATCH {
                    break;
                }
            }
        }
        let (length, end) = best;
        if length < SHORTEST_MATCH {
            return Vec::new();
        }
        // If the match extends to the end, the text is periodic, and the draft continues the period.
        let period = tokens.len() - end;
        let count = self.length.min(max);
        (0..count).map(|at| tokens[end + at % period]).collect()
    }

    /// Adapts to the outcome of a draft of `drafted` tokens: doubles the length if all were right;
    /// otherwise drafts one token more than were right.
    pub(super) fn adapt(&mut self, drafted: usize, right: usize) {
        let length = if right == drafted {
            2 * self.length
        } else {
            right + 1
        };
        self.length = length.min(MAX_DRAFT);
    }
}

impl LocalEngine {
    /// A draft for the only sequence of a pass, if it decodes. `None` if it is not alone, or there is
    /// no match.
    pub(super) fn draft(&mut self, plan: &[Work]) -> Option<(Work, Vec<u32>)> {
        let &[work] = plan else {
            return None;
        };
        if !self.speculate || work.count > 1 {
            return None;
        }
        let sequence = self.sequences.get_mut(&work.id)?;
        // The pass yields one token more than was drafted right.
        let known = sequence.tokens.len();
        let ends = (sequence.prompt_tokens.saturating_add(sequence.max_tokens))
            .min(self.lengths.context());
        let max = ends.saturating_sub(known + 1);
        let draft = sequence.drafts.draft(&sequence.tokens, max);
        if draft.is_empty() {
            return None;
        }
        let tokens = work.start + 1 + draft.len();
        let fits = match (&mut self.kv, &mut sequence.lease) {
            (Some(kv), Some(lease)) => {
                provide(kv, self.model.as_mut(), tokens, lease.page_table().len());
                kv.grow(lease, tokens)
            }
            _ => false,
        };
        fits.then_some((work, draft))
    }

    /// Verifies a draft in one pass over the sequence's last token and the draft, one row each: accepts
    /// the draft up to its first wrong token, plus one token. Later positions are recomputed before
    /// they are read.
    pub(super) fn verify_draft(&mut self, work: Work, draft: &[u32]) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let Some(sequence) = self.sequences.get(&work.id) else {
            return Ok(events);
        };
        let (Some(slot), Some(lease)) = (sequence.slot, &sequence.lease) else {
            return Ok(events);
        };
        let pages = lease.page_numbers();
        let line = [&sequence.tokens[work.start..], draft].concat();
        let chunks: Vec<Chunk<'_>> = (0..line.len())
            .map(|row| Chunk {
                slot,
                pages: &pages,
                tokens: &line[row..=row],
                start: work.start + row,
                logits: true,
            })
            .collect();
        let pass = profile::pass(Span::Forward, || PassTokens {
            sequences: 1,
            prefill_tokens: 0,
            decode_tokens: line.len(),
        });
        // Only the draws of accepted rows count.
        let mut ahead = sequence.sampler.clone();
        let sampling: Vec<_> = match self.model.samples() {
            true => chunks.iter().map(|_| ahead.parameters()).collect(),
            false => Vec::new(),
        };
        let results = results::forward(self.model.as_mut(), &mut self.logits, &chunks, &sampling)?;
        drop(pass);
        if let Some(sequence) = self.sequences.get_mut(&work.id) {
            sequence.drafts.drafted += draft.len();
        }
        let mut right = 0;
        for row in 0..line.len() {
            let start = work.start + row;
            self.scheduler.computed(Work { start, ..work });
            if let Some(sequence) = self.sequences.get_mut(&work.id) {
                sequence.drafts.accepted += usize::from(row > 0);
                if !sampling.is_empty() {
                    // This row's draw, which `ahead` has made.
                    sequence.sampler.parameters();
                }
            }
            let token = self.advance(work.id, results.row(row), &mut events)?;
            if token.is_none() || token != draft.get(row).copied() {
                break;
            }
            right = row + 1;
        }
        if let Some(sequence) = self.sequences.get_mut(&work.id) {
            sequence.drafts.adapt(draft.len(), right);
        }
        self.keep(results);
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draft(tokens: &[u32]) -> Vec<u32> {
        Drafts::default().draft(tokens, 3)
    }

    #[test]
    fn the_draft_is_what_followed_the_last_match() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 9, 1, 2]), [3, 4, 5]);
        assert_eq!(
            draft(&[7, 1, 2, 3, 8, 1, 2, 4, 1, 2]),
            [4, 1, 2],
            "the latest"
        );
        assert_eq!(
            draft(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]),
            [3, 8, 1],
            "the longest"
        );
    }

    #[test]
    fn a_periodic_text_is_drafted_to_continue() {
        assert_eq!(draft(&[9, 5, 6, 5, 6]), [5, 6, 5]);
        assert_eq!(draft(&[4, 4, 4]), [4, 4, 4]);
    }

    #[test]
    fn no_draft_without_a_match_of_two_tokens() {
        for tokens in [&[] as &[u32], &[1], &[1, 1], &[1, 2, 3], &[1, 2, 1]] {
            assert!(draft(tokens).is_empty(), "{tokens:?}");
        }
    }

    #[test]
    fn the_reach_follows_what_came_of_it() {
        let mut drafts = Drafts::default();
        drafts.adapt(3, 3);
        assert_eq!(drafts.length, 6);
        drafts.adapt(6, 6);
        assert_eq!(drafts.length, MAX_DRAFT);
        drafts.adapt(7, 1);
        assert_eq!(drafts.length, 2);
        drafts.adapt(2, 0);
        assert_eq!(drafts.length, 1);
    }

    proptest! {
        /// A draft occurs in the tokens, after the latest tokens.
        #[test]
        fn a_draft_occurs_in_the_tokens(
            tokens in prop::collection::vec(0u32..3, 0..60),
            most in 0usize..9,
        ) {
            let draft = Drafts::default().draft(&tokens, most);
            prop_assert!(draft.len() <= most.min(MAX_DRAFT));
            if draft.is_empty() {
                return Ok(());
            }
            let longer = [&tokens[..], &draft].concat();
            let found = (SHORTEST_MATCH..tokens.len()).any(|end| {
                longer[end..].starts_with(&draft)
                    && tokens[..end].ends_with(&tokens[tokens.len() - SHORTEST_MATCH..])
            });
            prop_assert!(found, "{tokens:?} {draft:?}");
        }
    }
}
