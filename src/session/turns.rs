//! Two arms in turns: the order of `flowbench ab` and of `MODE=both`.
//!
//! Rounds alternate, A B, B A, A B, so that drift of the machine (heat, a noisy neighbour) affects both arms alike.

use std::ops::ControlFlow;

use crate::error::Result;

/// What takes turns.
pub(super) trait Arms {
    /// Why the turns ended before the last round.
    type Stop;

    /// Whether another round is to begin.
    fn round_begins(&mut self) -> ControlFlow<Self::Stop>;

    /// Runs an arm (0: A, 1: B) in `round`, from 1.
    ///
    /// # Errors
    /// Why there is nothing to go on with.
    fn turn(&mut self, round: usize, arm: usize) -> Result<ControlFlow<Self::Stop>>;

    /// Both arms have had their turn in `round`.
    ///
    /// # Errors
    /// As [`Self::turn`].
    fn round_ended(&mut self, round: usize) -> Result<ControlFlow<Self::Stop>>;
}

/// Runs at most so many rounds. Returns why they ended early, if they did.
///
/// # Errors
/// That of a turn.
pub(super) fn alternate<A: Arms>(arms: &mut A, rounds: usize) -> Result<Option<A::Stop>> {
    for round in 1..=rounds {
        if let ControlFlow::Break(stop) = arms.round_begins() {
            return Ok(Some(stop));
        }
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for arm in order {
            if let ControlFlow::Break(stop) = arms.turn(round, arm)? {
                return Ok(Some(stop));
            }
        }
        if let ControlFlow::Break(stop) = arms.round_ended(round)? {
            return Ok(Some(stop));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes the turns, and stops after one of them.
    struct Noted {
        turns: Vec<String>,
        last: &'static str,
    }

    impl Arms for Noted {
        type Stop = ();

        fn round_begins(&mut self) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }

        fn turn(&mut self, round: usize, arm: usize) -> Result<ControlFlow<()>> {
            let turn = format!("{round}{}", ["A", "B"][arm]);
            let is_last = turn == self.last;
            self.turns.push(turn);
            Ok(if is_last {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        }

        fn round_ended(&mut self, round: usize) -> Result<ControlFlow<()>> {
            self.turns.push(format!("{round}."));
            Ok(ControlFlow::Continue(()))
        }
    }

    #[test]
    fn rounds_alternate_until_one_stops_them() {
        let turns = |last: &'static str| {
            let mut noted = Noted {
                turns: Vec::new(),
                last,
            };
            let stop = alternate(&mut noted, 3).expect("no turn fails");
            (noted.turns.join(" "), stop)
        };
        let all = "1A 1B 1. 2B 2A 2. 3A 3B 3.";
        assert_eq!(turns("none"), (all.to_owned(), None));
        assert_eq!(turns("2B"), ("1A 1B 1. 2B".to_owned(), Some(())));
    }
}
