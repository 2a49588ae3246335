//! Guesses at the tokens that come next, from the sequence itself: what followed the last time that
//! these tokens stood there (prompt lookup, Saxena 2023; n-gram drafts as in Yang et al. 2023,
//! arXiv:2304.04487).
//!
//! A guess costs rows of a pass that reads the weights anyway. Each row's logits are those of the token
//! decoded by itself, to the last bit, so a guess that is wrong changes nothing but the time.

use super::LocalEngine;
use super::places::provide;
use crate::engine::Event;
use crate::engine::model::Chunk;
use crate::engine::scheduler::Work;
use crate::error::Result;
use crate::profile::{self, PassTokens, Span};

/// Tokens that must have stood there before for a guess to be made.
const SHORTEST_MATCH: usize = 2;

/// Tokens beyond which a longer match says no more.
const LONGEST_MATCH: usize = 16;

/// Most tokens of a guess. A pass of eight rows costs little more than one of one row: the weights are
/// read once.
pub(super) const MOST_TOKENS: usize = 7;

/// How far one sequence's guesses have been right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drafts {
    /// How many tokens to guess next.
    reach: usize,
    /// Tokens guessed so far.
    pub(super) drafted: usize,
    /// Those of them that were right.
    pub(super) accepted: usize,
}

impl Default for Drafts {
    fn default() -> Self {
        Self {
            reach: MOST_TOKENS / 2,
            drafted: 0,
            accepted: 0,
        }
    }
}

impl Drafts {
    /// Guesses at most `most` tokens that come after `tokens`.
    pub(super) fn guess(&self, tokens: &[u32], most: usize) -> Vec<u32> {
        let mut best = (SHORTEST_MATCH - 1, 0);
        // The latest of the longest matches: texts repeat what they said last.
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
        // Where the match reaches the end, the text goes round: so does the guess.
        let period = tokens.len() - end;
        let count = self.reach.min(most);
        (0..count).map(|at| tokens[end + at % period]).collect()
    }

    /// Takes what came of a guess of `drafted` tokens into account: the next one reaches further after
    /// one that was right to its end, and a token further than this one came otherwise.
    pub(super) fn adapt(&mut self, drafted: usize, right: usize) {
        let reach = if right == drafted {
            2 * self.reach
        } else {
            right + 1
        };
        self.reach = reach.min(MOST_TOKENS);
    }
}

impl LocalEngine {
    /// What the only sequence of a pass, which decodes, will probably say next. `None` where it does not
    /// decode alone, or nothing is guessed.
    pub(super) fn guess(&mut self, plan: &[Work]) -> Option<(Work, Vec<u32>)> {
        let &[work] = plan else {
            return None;
        };
        if !self.speculate || work.count > 1 {
            return None;
        }
        let sequence = self.sequences.get_mut(&work.id)?;
        // The pass gives one token more than was guessed right.
        let known = sequence.tokens.len();
        let ends = (sequence.prompt_tokens.saturating_add(sequence.max_tokens))
            .min(self.lengths.context());
        let most = ends.saturating_sub(known + 1);
        let guess = sequence.drafts.guess(&sequence.tokens, most);
        if guess.is_empty() {
            return None;
        }
        let reach = work.start + 1 + guess.len();
        let fits = match (&mut self.kv, &mut sequence.lease) {
            (Some(kv), Some(lease)) => {
                provide(kv, self.model.as_mut(), reach, lease.page_table().len());
                kv.grow(lease, reach)
            }
            _ => false,
        };
        fits.then_some((work, guess))
    }

    /// A pass over a sequence's last token and a guess of those after it, each in a row of its own: as
    /// many further tokens as the guess was right for, and one more. A position beyond these is computed
    /// again before it is read.
    pub(super) fn check_guess(&mut self, work: Work, guess: &[u32]) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let Some(sequence) = self.sequences.get(&work.id) else {
            return Ok(events);
        };
        let (Some(slot), Some(lease)) = (sequence.slot, &sequence.lease) else {
            return Ok(events);
        };
        let pages = lease.page_numbers();
        let line = [&sequence.tokens[work.start..], guess].concat();
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
        let mut logits = std::mem::take(&mut self.logits);
        self.model.forward_into(&chunks, &mut logits)?;
        let rows = logits.chunks_exact(self.model.spec().vocabulary);
        drop(pass);
        if let Some(sequence) = self.sequences.get_mut(&work.id) {
            sequence.drafts.drafted += guess.len();
        }
        let mut right = 0;
        for (row, logits) in rows.enumerate() {
            let start = work.start + row;
            self.scheduler.computed(Work { start, ..work });
            if let Some(sequence) = self.sequences.get_mut(&work.id) {
                sequence.computed = start + 1;
                sequence.drafts.accepted += usize::from(row > 0);
            }
            let token = self.advance(work.id, logits, &mut events);
            if token.is_none() || token != guess.get(row).copied() {
                break;
            }
            right = row + 1;
        }
        if let Some(sequence) = self.sequences.get_mut(&work.id) {
            sequence.drafts.adapt(guess.len(), right);
        }
        self.logits = logits;
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guess(tokens: &[u32]) -> Vec<u32> {
        Drafts::default().guess(tokens, 3)
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 4, 5, 9, 1, 2]), [3, 4, 5]);
        assert_eq!(
            guess(&[7, 1, 2, 3, 8, 1, 2, 4, 1, 2]),
            [4, 1, 2],
            "the latest"
        );
        assert_eq!(
            guess(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]),
            [3, 8, 1],
            "the longest"
        );
    }

    #[test]
    fn a_text_that_goes_round_is_guessed_to_go_on() {
        assert_eq!(guess(&[9, 5, 6, 5, 6]), [5, 6, 5]);
        assert_eq!(guess(&[4, 4, 4]), [4, 4, 4]);
    }

    #[test]
    fn nothing_is_guessed_from_a_token_or_none() {
        for tokens in [&[] as &[u32], &[1], &[1, 1], &[1, 2, 3], &[1, 2, 1]] {
            assert!(guess(tokens).is_empty(), "{tokens:?}");
        }
    }

    #[test]
    fn the_reach_follows_what_came_of_it() {
        let mut drafts = Drafts::default();
        drafts.adapt(3, 3);
        assert_eq!(drafts.reach, 6);
        drafts.adapt(6, 6);
        assert_eq!(drafts.reach, MOST_TOKENS);
        drafts.adapt(7, 1);
        assert_eq!(drafts.reach, 2);
        drafts.adapt(2, 0);
        assert_eq!(drafts.reach, 1);
    }

    proptest! {
        /// A guess is a text that stands in the tokens, after tokens like the last ones.
        #[test]
        fn a_guess_stands_in_the_tokens(
            tokens in prop::collection::vec(0u32..3, 0..60),
            most in 0usize..9,
        ) {
            let guess = Drafts::default().guess(&tokens, most);
            prop_assert!(guess.len() <= most.min(MOST_TOKENS));
            if guess.is_empty() {
                return Ok(());
            }
            let longer = [&tokens[..], &guess].concat();
            let found = (SHORTEST_MATCH..tokens.len()).any(|end| {
                longer[end..].starts_with(&guess)
                    && tokens[..end].ends_with(&tokens[tokens.len() - SHORTEST_MATCH..])
            });
            prop_assert!(found, "{tokens:?} {guess:?}");
        }
    }
}
