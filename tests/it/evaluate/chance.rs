//! The same seed gives the same result.

use std::collections::HashSet;

use flowbench::evaluate::{Outcome, Request};

use super::support::{collect, evaluate, has, pool, program};

#[test]
fn the_same_seed_gives_the_same_result_in_any_pool() {
    let body = "import random\nnames = {str(i) for i in range(50)}\n\
                return random.random() + int(''.join(names)[:9])";
    let seeded = |seed| Request {
        seed,
        ..program(body)
    };
    let (mut first, mut second) = (pool(), pool());
    let one = evaluate(&mut first, seeded(7));
    assert_eq!(one.outcome, Outcome::Ok, "{one:?}");
    assert_eq!(one.score, evaluate(&mut second, seeded(7)).score);
    assert_eq!(one.score, evaluate(&mut first, seeded(7)).score);
    assert_ne!(one.score, evaluate(&mut first, seeded(8)).score);
}

/// Whatever was run before it, and beside it.
#[test]
fn a_program_finds_the_same_addresses_every_time() {
    let walk = Request {
        code: "class Cell:\n    def __init__(self, i): self.i = i\n\
               def solve():\n    order = 0\n    \
               for cell in {Cell(i) for i in range(30)} | {object, None, float('nan')}:\n        \
               order = (31 * order + getattr(cell, 'i', 40)) % 1000003\n    return order"
            .to_owned(),
        ..program("")
    };
    let mut results = HashSet::new();
    for _ in 0..2 {
        let mut pool = pool();
        if !pool.python().fixed_addresses {
            return;
        }
        for round in 0..8 {
            let others = [
                "return 1",
                "return 1 / 0",
                "os._exit(3)",
                "x = [{}] * 9999\nreturn 2",
            ];
            for other in others.iter().cycle().skip(round).take(round % 3) {
                pool.submit(program(other));
            }
            let id = pool.submit(walk.clone());
            let finished = collect(&mut pool).remove(&id).unwrap();
            results.insert(finished.score.unwrap().to_bits());
        }
    }
    assert_eq!(results.len(), 1, "{results:?}");
}

/// Generators that a program leaves without a seed.
#[test]
fn chance_without_a_seed_comes_from_the_request() {
    let mut pool = pool();
    let mut bodies = vec![
        "import random\nreturn random.Random().random()",
        "import random\nrandom.seed()\nreturn random.random()",
    ];
    if has(pool.python(), "numpy") {
        bodies.extend([
            "import numpy as np\nreturn np.random.rand()",
            "import numpy as np\nreturn np.random.default_rng().random()",
            "import numpy as np\nreturn np.random.RandomState().rand()",
            "import numpy as np\nnp.random.seed()\nreturn np.random.rand()",
            "from numpy.random import Generator, Philox\nreturn Generator(Philox()).random()",
            "from numpy.random import SeedSequence\nreturn SeedSequence().generate_state(1).item()",
        ]);
    }
    for body in bodies {
        let mut result_of = |seed| {
            let asked = Request {
                seed,
                ..program(body)
            };
            let finished = evaluate(&mut pool, asked);
            assert_eq!(finished.outcome, Outcome::Ok, "{body}: {finished:?}");
            finished.score
        };
        let first = result_of(7);
        assert_eq!(first, result_of(7), "{body}");
        assert_ne!(first, result_of(8), "{body}");
    }
    let two = "import random\nreturn int(random.Random().random() != random.Random().random())";
    assert_eq!(evaluate(&mut pool, program(two)).score, Some(1.0));
}
