//! Random operations on both caches in parallel, with a vocabulary of two tokens, small pages and
//! little memory: 100,000 from a seed, and short sequences that proptest shrinks.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::world::{Op, World};

struct Dice {
    random: ChaCha8Rng,
    vocabulary: u32,
}

impl Dice {
    fn new(seed: u64, vocabulary: u32) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { random, vocabulary }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.next_u64() as usize % bound
    }

    fn tokens(&mut self, most: usize) -> Vec<u32> {
        let len = self.below(most + 1);
        (0..len)
            .map(|_| self.random.next_u32() % self.vocabulary)
            .collect()
    }

    fn op(&mut self, longest: usize) -> Op {
        let which = self.below(64);
        match self.below(100) {
            0..25 => Op::Acquire {
                prompt: self.tokens(longest),
                headroom: self.below(3),
            },
            25..60 => Op::Compute {
                which,
                tokens: self.tokens(longest),
            },
            60..75 => Op::Publish { which },
            75..87 => Op::Finish { which },
            87..92 => Op::Release { which },
            _ => Op::Fork {
                which,
                share: if self.below(2) == 0 {
                    255
                } else {
                    self.below(256) as u8
                },
            },
        }
    }
}

/// 100,000 operations in too little memory.
fn run(mut dice: Dice, pages: usize, page_tokens: usize, longest: usize) {
    let mut world = World::new(pages, page_tokens, true);
    for _ in 0..100_000 {
        let op = dice.op(longest);
        let more = matches!(op, Op::Acquire { .. } | Op::Fork { .. });
        if !(more && world.running() >= 8) {
            world.apply(op);
        }
    }
    let stats = world.stats();
    assert!(stats.evictions > 1000 && stats.hits > 1000 && world.refused > 1000);
}

#[test]
fn a_hundred_thousand_operations_with_pages_of_one_token() {
    run(Dice::new(1, 2), 24, 1, 8);
}

#[test]
fn a_hundred_thousand_operations_with_pages_of_two_tokens() {
    run(Dice::new(2, 2), 20, 2, 12);
}

#[test]
fn a_hundred_thousand_operations_with_pages_of_four_tokens() {
    run(Dice::new(3, 2), 16, 4, 20);
}

/// With two tokens, the siblings on either side of an insertion point never match equally far.
#[test]
fn a_hundred_thousand_operations_with_a_vocabulary_of_three_tokens() {
    run(Dice::new(6, 3), 16, 4, 20);
}

#[test]
fn a_hundred_thousand_operations_with_memory_for_everything() {
    let mut dice = Dice::new(4, 2);
    let mut world = World::new(96, 2, true);
    let mut restarts = 0;
    for _ in 0..100_000 {
        let op = dice.op(5);
        let more = matches!(op, Op::Acquire { .. } | Op::Fork { .. });
        if !(more && world.running() >= 4) {
            world.apply(op);
        }
        if world.stats().free < 8 {
            world.apply(Op::Restart { reuse: true });
            restarts += 1;
        }
    }
    assert!(restarts < 5000, "{restarts}");
    assert_eq!(world.stats().evictions, 0);
}

#[test]
fn ten_thousand_operations_without_reuse() {
    let mut dice = Dice::new(5, 2);
    let mut world = World::new(16, 2, false);
    for step in 0..10_000 {
        world.apply(dice.op(8));
        if step % 1000 == 999 {
            // Alternating, as the two modes of `both`.
            world.apply(Op::Restart {
                reuse: step % 2000 == 999,
            });
        }
    }
}

fn tokens(most: usize) -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0..2_u32, 0..=most)
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0..8_usize;
    prop_oneof![
        4 => (tokens(9), 0..3_usize).prop_map(|(prompt, headroom)| Op::Acquire { prompt, headroom }),
        6 => (which(), tokens(6)).prop_map(|(which, tokens)| Op::Compute { which, tokens }),
        2 => which().prop_map(|which| Op::Publish { which }),
        2 => which().prop_map(|which| Op::Finish { which }),
        1 => which().prop_map(|which| Op::Release { which }),
        1 => (which(), any::<u8>()).prop_map(|(which, share)| Op::Fork { which, share }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_short_run(
        pages in 1..12_usize,
        page_tokens in 1..5_usize,
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let mut world = World::new(pages, page_tokens, true);
        for op in ops {
            world.apply(op);
        }
        world.apply(Op::Restart { reuse: true });
    }
}
