use super::*;
use proptest::prelude::*;

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
