//! Stop strings: where an answer ends because of its text.

use std::sync::Arc;

/// Finds the first stop string in a text that arrives in pieces. Text that may be the start of a stop string
/// is held back, so nothing of a stop string is ever given out.
///
/// The stop string that is complete first ends the text; of those complete at the same place, the longest.
/// So the result does not depend on how the text is cut into pieces.
#[derive(Debug, Clone)]
pub(crate) struct StopMatcher {
    stops: Arc<[String]>,
    held: String,
}

/// What a piece of text adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matched {
    /// Text that is certainly part of the answer.
    pub(crate) text: String,
    /// Whether a stop string was found. Nothing after `text` belongs to the answer.
    pub(crate) stopped: bool,
}

impl StopMatcher {
    /// None of the strings may be empty.
    pub(crate) fn new(stops: Arc<[String]>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    pub(crate) fn push(&mut self, piece: &str) -> Matched {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Matched {
                text,
                stopped: true,
            };
        }
        let rest = self.held.split_off(self.certain());
        Matched {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// The text held back, when no more will come.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the start of `held` that cannot be part of a stop string.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = (self.held.len() + 1).saturating_sub(longest);
        let starts_a_stop = |at: &usize| {
            self.held.is_char_boundary(*at)
                && (self.stops.iter()).any(|stop| stop.starts_with(&self.held[*at..]))
        };
        (first..self.held.len())
            .find(starts_a_stop)
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The answer, and whether it was stopped.
    fn matched(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut matcher = StopMatcher::new(stops.into());
        let mut answer = String::new();
        for piece in pieces {
            let Matched { text, stopped } = matcher.push(piece);
            answer.push_str(&text);
            if stopped {
                return (answer, true);
            }
        }
        answer.push_str(&matcher.flush());
        (answer, false)
    }

    #[test]
    fn a_stop_string_may_begin_and_end_inside_of_pieces() {
        let stopped = |text: &str| (text.to_owned(), true);
        assert_eq!(matched(&["\n\n"], &["one\n", "\ntwo"]), stopped("one"));
        assert_eq!(matched(&["END"], &["aE", "N", "Db"]), stopped("a"));
        assert_eq!(matched(&["END"], &["aE", "N", "EN", "D"]), stopped("aEN"));
        assert_eq!(matched(&["你好"], &["a你", "好b"]), stopped("a"));
        // The one that is complete first.
        assert_eq!(matched(&["abcd", "bc"], &["abcd"]), stopped("a"));
        // The longest of those that are complete at the same place.
        assert_eq!(matched(&["bc", "abc"], &["xabc"]), stopped("x"));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_given_out() {
        let kept = |text: &str| (text.to_owned(), false);
        assert_eq!(matched(&["END"], &["aE", "N"]), kept("aEN"));
        assert_eq!(matched(&["END"], &["E", "x", "EN"]), kept("ExEN"));
        assert_eq!(matched(&[], &["a", "b"]), kept("ab"));
        let mut matcher = StopMatcher::new(vec!["END".to_owned()].into());
        assert_eq!(matcher.push("aEN").text, "a");
        assert_eq!(matcher.push("x").text, "ENx");
    }

    proptest! {
        /// The answer does not depend on how the text is cut, and is what comes before the stop string that
        /// ends first.
        #[test]
        fn the_cuts_do_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..40, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            let expected = (0..=text.len())
                .filter(|end| text.is_char_boundary(*end))
                .find_map(|end| {
                    let stop = stops.iter().filter(|stop| text[..end].ends_with(**stop));
                    stop.map(|stop| end - stop.len()).min()
                });
            let expected = match expected {
                Some(start) => (text[..start].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(matched(&stops, &pieces), expected);
        }
    }
}
