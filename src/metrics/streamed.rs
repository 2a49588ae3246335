//! Time per output token from the times of streamed chunks, and when they do not tell it.

use crate::units::Millis;

/// Chunks that are less than this apart (ms) were held back on the way: 5,000 chunks/s is faster than
/// engines decode one sequence.
const INSTANT: f64 = 0.2;

/// The same for tokens (ms): 20,000 tokens/s, however many a chunk has.
const INSTANT_TOKEN: f64 = 0.05;

/// Chunks that are less than this apart (ms) also count as held back if all of them came within
/// [`SHARE`] of the wait for the first one.
const FAST: f64 = 1.0;

/// See [`FAST`].
const SHARE: f64 = 0.01;

/// With more tokens per chunk than this, TPOT depends on how many came with the first chunk ...
const COARSE: f64 = 2.0;

/// ... unless there are this many chunks: then the error is at most a tenth.
const MANY: usize = 10;

/// What the times of an answer's chunks tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Streamed {
    /// Time per output token after the first; `None` if the chunks do not tell it.
    pub tpot: Option<Millis>,
    /// The answer came in one instant.
    pub burst: bool,
}

/// Computes TPOT as (last chunk − first chunk) / (`tokens` − 1), where `tokens` is the number of tokens
/// in the chunks (`None`: unknown).
///
/// TPOT is `None` below two chunks or two tokens, in a burst, if the number of tokens is unknown, and if
/// few chunks hold many tokens.
pub fn streamed(chunks: &[Millis], tokens: Option<usize>) -> Streamed {
    let nothing = Streamed {
        tpot: None,
        burst: false,
    };
    let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
        return nothing;
    };
    if chunks.len() < 2 {
        return nothing;
    }
    let span = (*last - *first).0;
    let gap = span / (chunks.len() - 1) as f64;
    let token = tokens.filter(|tokens| *tokens > 1);
    let token = token.map_or(gap, |tokens| span / (tokens - 1) as f64);
    let burst = gap < INSTANT || token < INSTANT_TOKEN || (gap < FAST && span < SHARE * first.0);
    let tpot = tokens.filter(|tokens| {
        let coarse = *tokens as f64 > COARSE * chunks.len() as f64 && chunks.len() < MANY;
        *tokens > 1 && !coarse && !burst
    });
    Streamed {
        tpot: tpot.map(|tokens| Millis(span / (tokens - 1) as f64)),
        burst,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks that begin at `first`, `gap` apart.
    fn chunks(first: f64, gap: f64, count: usize) -> Vec<Millis> {
        (0..count)
            .map(|index| Millis(first + gap * index as f64))
            .collect()
    }

    #[test]
    fn tpot_is_of_the_tokens_that_were_streamed() {
        let even = streamed(&chunks(500.0, 20.0, 5), Some(5));
        assert_eq!((even.tpot, even.burst), (Some(Millis(20.0)), false));
        // One more was counted, that ends the turn; two a chunk, as with speculation.
        assert_eq!(
            streamed(&chunks(500.0, 20.0, 5), Some(6)).tpot,
            Some(Millis(16.0))
        );
        assert!(streamed(&chunks(500.0, 20.0, 20), Some(50)).tpot.is_some());
        // A small model on a fast machine.
        assert!(!streamed(&chunks(5.0, 0.4, 48), Some(48)).burst);
    }

    #[test]
    fn tpot_is_none_where_it_would_mean_nothing() {
        for (chunks, tokens) in [
            (chunks(500.0, 20.0, 0), Some(5)),
            (chunks(500.0, 20.0, 1), Some(5)),
            (chunks(500.0, 20.0, 5), Some(1)),
            (chunks(500.0, 20.0, 5), None),
            // 100 tokens in 3 chunks: most of them may have come with the first.
            (chunks(500.0, 20.0, 3), Some(100)),
        ] {
            let none = streamed(&chunks, tokens);
            assert_eq!((none.tpot, none.burst), (None, false), "{chunks:?}");
        }
    }

    #[test]
    fn a_burst_is_told() {
        for (chunks, tokens) in [
            (chunks(300.0, 0.05, 3), Some(3)),
            (chunks(300.0, 0.0, 3), Some(3)),
            (chunks(300.0, 0.8, 3), Some(3)),
            (chunks(3000.0, 0.05, 500), Some(500)),
            (chunks(300.0, 0.05, 3), None),
            (chunks(3000.0, 5.0, 2), Some(500)),
        ] {
            let burst = streamed(&chunks, tokens);
            assert_eq!((burst.tpot, burst.burst), (None, true), "{chunks:?}");
        }
    }
}
