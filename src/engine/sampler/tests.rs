use std::f32::consts::LN_2;

use super::*;
use proptest::prelude::*;
use rand_chacha::rand_core::RngCore as _;

/// The definition of the module above, step by step.
fn defined(logits: &[f32], parameters: SamplingParameters) -> Option<u32> {
    let all = (0u32..).zip(logits.iter().copied());
    let mut kept: Vec<(u32, f32)> = all
        .filter(|(_, logit)| !logit.is_nan() && *logit != f32::NEG_INFINITY)
        .collect();
    let max = kept.iter().map(|one| one.1).reduce(f32::max)?;
    let weight = |logit: f32| match max == f32::INFINITY {
        true => u64::from(logit == max) << 40,
        false => {
            let p = exp((logit - max) * parameters.inverse_temperature);
            (f64::from(p) * f64::from(2).powi(40)).floor() as u64
        }
    };
    // `partial_cmp` takes −0 and +0 to be equal; the sort is stable, so the lower id stays first.
    kept.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("no NaN"));
    if parameters.top_k > 0 {
        kept.truncate(parameters.top_k as usize);
    }
    if parameters.share < 1 << 32 {
        let total: u128 = kept.iter().map(|one| u128::from(weight(one.1))).sum();
        let target = ((total * u128::from(parameters.share)) >> 32).max(1);
        let mut sum = 0;
        let mut count = 0;
        while sum < target {
            sum += u128::from(weight(kept[count].1));
            count += 1;
        }
        kept.truncate(count);
    }
    let total: u128 = kept.iter().map(|one| u128::from(weight(one.1))).sum();
    let r = (total * u128::from(parameters.random)) >> 64;
    kept.sort_by_key(|one| one.0);
    let mut sum = 0;
    for (id, logit) in kept {
        sum += u128::from(weight(logit));
        if sum > r {
            return Some(id);
        }
    }
    unreachable!("r is below the total");
}

/// `e^x` with the operations of the kernels, for `x` of at most 0.
fn exp(x: f32) -> f32 {
    let x = x.clamp(-86.6, 0.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_1e-4f32
        .mul_add(r, 1.398_2e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    (p.mul_add(r * r, r) + 1.0) * f32::exp2(n)
}

/// Logits of one kind, so many that every path is taken: spread, all about equal, with many ties, or
/// with infinities and NaN.
fn row(kind: usize, length: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let special = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, f32::MAX, f32::MIN];
    let logit = |_| {
        let unit = (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
        let choice = random.next_u32() as usize;
        match kind {
            0 => 60.0 * unit * unit * unit - 40.0,
            1 => 1e-3 * unit,
            2 => (choice % 7) as f32 - 3.0,
            3 if choice % 1000 == 1 => f32::INFINITY,
            3 | 4 if choice.is_multiple_of(3) => special[choice / 3 % special.len()],
            5 => f32::NAN,
            _ => 8.0 * unit - 4.0,
        }
    };
    (0..length).map(logit).collect()
}

fn any_parameters() -> impl Strategy<Value = (Sampling, u64)> {
    let temperature = prop_oneof![
        8 => 0.05f32..4.0,
        3 => prop::sample::select(vec![1e-30, 1e30, 1e-45, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY]),
    ];
    let top_p = prop_oneof![
        4 => 0f32..1.0,
        4 => prop::sample::select(vec![0.0, 1e-9, 0.95, 0.999_999_9, 1.0, 2.0]),
    ];
    let top_k = prop_oneof![
        3 => Just(0usize),
        3 => 1usize..100,
        1 => 1020usize..1028,
        1 => 1usize..6000,
        1 => Just(usize::MAX),
    ];
    let random = prop_oneof![8 => any::<u64>(), 1 => Just(0), 1 => Just(u64::MAX)];
    (temperature, top_p, top_k, random).prop_map(|(temperature, top_p, top_k, random)| {
        (sampling(temperature, top_p, top_k, 0), random)
    })
}

/// Draws with these bits in place of the generator's.
fn check(logits: &[f32], (sampling, random): (Sampling, u64)) {
    let parameters = Sampler::new(sampling).parameters().expect("not greedy");
    let parameters = SamplingParameters {
        random,
        ..parameters
    };
    let found = draw(Kernels::best(), logits, parameters);
    assert_eq!(found, defined(logits, parameters), "{parameters:?}");
}

proptest! {
    #[test]
    fn a_few_logits_are_drawn_as_defined(
        logits in prop::collection::vec(
            prop_oneof![
                4 => -30f32..30.0,
                4 => (-3i8..3).prop_map(f32::from),
                3 => prop::sample::select(vec![
                    f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 0.0, f32::MAX, f32::MIN,
                ]),
            ],
            0..40,
        ),
        parameters in any_parameters(),
    ) {
        check(&logits, parameters);
    }

    #[test]
    fn many_logits_are_drawn_as_defined(
        kind in 0usize..7,
        length in 1usize..=5000,
        seed in any::<u64>(),
        parameters in any_parameters(),
    ) {
        check(&row(kind, length, seed), parameters);
    }
}

#[test]
fn short_rows_are_drawn_as_defined() {
    // Ties, zeros of both signs, and cuts after every token.
    let values = [-0.0, 0.0, 1.0];
    for length in 1..=4 {
        for row in 0..values.len().pow(length) {
            let digit = |place| row / values.len().pow(place) % values.len();
            let logits: Vec<f32> = (0..length).map(|place| values[digit(place)]).collect();
            for top_k in 0..=4 {
                for top_p in [0.3, 0.6, 1.0] {
                    for random in (0..8).map(|eighth| eighth << 61) {
                        check(&logits, (sampling(1.0, top_p, top_k, 0), random));
                    }
                }
            }
        }
    }
}

#[test]
fn each_token_is_drawn_as_often_as_it_weighs() {
    // Weights of 1, 1/2 and 1/4 if ln 2 is exact enough, and one that is never drawn.
    let logits = [-30.0, 0.0, -LN_2, -2.0 * LN_2];
    let mut weights = [0; 4];
    Kernels::best().softmax_weights(&logits, 0.0, 1.0, &mut weights);
    assert_eq!(weights[0], 0);
    let total: u64 = weights.iter().sum();
    let drawn = |r: u64| {
        // The smallest random number that is scaled to `r`.
        let random = (u128::from(r) << 64).div_ceil(u128::from(total));
        let parameters = SamplingParameters {
            inverse_temperature: 1.0,
            top_k: 0,
            share: ALL,
            random: u64::try_from(random).expect("r is below the total"),
        };
        draw(Kernels::best(), &logits, parameters)
    };
    let mut below = 0;
    for (token, weight) in (0..).zip(weights).skip(1) {
        assert_eq!(drawn(below), Some(token), "the first of {weight}");
        below += weight;
        assert_eq!(drawn(below - 1), Some(token), "the last of {weight}");
    }
}

#[test]
fn parameters_are_clamped() {
    let of = |temperature, top_p, top_k| {
        let parameters = Sampler::new(sampling(temperature, top_p, top_k, 0)).parameters();
        parameters.map(|one| (one.inverse_temperature, one.share, one.top_k))
    };
    assert_eq!(of(0.5, 0.25, 7), Some((2.0, 1 << 30, 7)));
    assert_eq!(of(1e-45, 2.0, usize::MAX), Some((f32::MAX, ALL, u32::MAX)));
    let least = f32::MIN_POSITIVE;
    assert_eq!(of(f32::INFINITY, -1.0, 0), Some((least, 0, 0)));
    assert_eq!(of(1.0, f32::NAN, 0), Some((1.0, 0, 0)));
    for greedy in [0.0, -0.0, -1.0, f32::NAN] {
        assert_eq!(of(greedy, 1.0, 0), None);
    }
}

#[test]
fn parameters_stand_for_a_token() {
    let logits = [0.5, 0.25, 1.0];
    let mut next = Sampler::new(sampling(0.7, 0.9, 3, 11));
    let mut parameters = next.clone();
    for _ in 0..5 {
        let taken = parameters.parameters().expect("not greedy");
        assert_eq!(next.next(&logits), draw(Kernels::best(), &logits, taken));
    }
    assert_eq!(next.parameters(), parameters.parameters());
}

fn sampling(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampling {
    Sampling {
        temperature,
        top_p,
        top_k,
        seed,
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals_and_ignores_nan() {
    let mut sampler = Sampler::new(Sampling::default());
    assert_eq!(sampler.next(&[1.0, 3.0, 3.0, f32::NAN]), Some(1));
    assert_eq!(sampler.next(&[f32::NAN, f32::NEG_INFINITY]), None);
    assert_eq!(sampler.next(&[]), None);
    let mut warm = Sampler::new(sampling(1.0, 1.0, 0, 1));
    assert_eq!(warm.next(&[f32::NAN]), None);
}

#[test]
fn draws_follow_the_distribution() {
    // Probabilities 0.6, 0.3, 0.1.
    let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
    let mut sampler = Sampler::new(sampling(1.0, 1.0, 0, 7));
    let mut counts = [0u32; 3];
    for _ in 0..20_000 {
        counts[sampler.next(&logits).expect("finite logits") as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([0.6, 0.3, 0.1]) {
        let share = f64::from(*count) / 20_000.0;
        // Five standard deviations of a proportion near 0.5 are 0.018.
        assert!((share - expected).abs() < 0.018, "{share} for {expected}");
    }
}

#[test]
fn nucleus_and_top_k_cut_the_tail() {
    let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
    let mut nucleus = Sampler::new(sampling(1.0, 0.8, 0, 3));
    let mut top = Sampler::new(sampling(1.0, 1.0, 1, 3));
    for _ in 0..500 {
        assert!(nucleus.next(&logits).expect("finite logits") < 2);
        assert_eq!(top.next(&logits), Some(0));
    }
}

proptest! {
    #[test]
    fn greedy_takes_the_first_of_the_highest_logits(
        logits in prop::collection::vec(
            prop_oneof![(-3i8..3).prop_map(f32::from), Just(f32::NAN), Just(f32::NEG_INFINITY)],
            0..70,
        ),
    ) {
        let mut expected = None;
        for (token, logit) in (0u32..).zip(&logits) {
            let higher = expected.is_none_or(|(_, highest)| *logit > highest);
            if !logit.is_nan() && *logit > f32::NEG_INFINITY && higher {
                expected = Some((token, *logit));
            }
        }
        prop_assert_eq!(argmax(&logits), expected.map(|(token, _)| token));
    }
}

proptest! {
    #[test]
    fn the_same_seed_draws_the_same_tokens_and_only_possible_ones(
        logits in prop::collection::vec(-8f32..8.0, 1..200),
        temperature in 0f32..2.0,
        top_p in 0f32..=1.0,
        top_k in 0usize..50,
        seed in any::<u64>(),
    ) {
        let mut one = Sampler::new(sampling(temperature, top_p, top_k, seed));
        let mut two = Sampler::new(sampling(temperature, top_p, top_k, seed));
        for _ in 0..5 {
            let token = one.next(&logits);
            prop_assert_eq!(token, two.next(&logits));
            let token = token.expect("finite logits") as usize;
            prop_assert!(token < logits.len());
            if top_k > 0 && temperature > 0.0 {
                let higher = logits.iter().filter(|other| **other > logits[token]).count();
                prop_assert!(higher < top_k);
            }
        }
    }
}
