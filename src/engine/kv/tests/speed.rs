//! The cost of a call, compared with a layer of a forward pass (80 µs). Run by name, in release: `cargo
//! test --release --lib engine::kv::tests::speed -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use crate::engine::kv::{KvCache, PAGE_TOKENS, RadixIndex};

const SEQUENCES: u32 = 1_000;
const TOKENS: u32 = 1_000;

/// 300 shared tokens, then distinct ones.
fn sequence(number: u32) -> Vec<u32> {
    let own = (300..TOKENS).map(|i| number * TOKENS + i + 1_000_000);
    (0..300).chain(own).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Median times of acquire, publish and release for each prompt in turn.
fn measure(cache: &mut KvCache<RadixIndex>, numbers: impl Iterator<Item = u32>) -> [Duration; 3] {
    let mut times = [const { Vec::new() }; 3];
    for number in numbers {
        let mut tokens = sequence(number);
        tokens.push(7);
        let start = Instant::now();
        let mut lease = cache.acquire(&tokens, 0).expect("there is memory");
        times[0].push(start.elapsed());
        let start = Instant::now();
        cache.publish(&mut lease, &tokens);
        times[1].push(start.elapsed());
        let start = Instant::now();
        cache.release(lease);
        times[2].push(start.elapsed());
    }
    times.map(median)
}

#[test]
#[ignore = "a measurement"]
fn a_thousand_prompts_of_a_thousand_tokens() {
    // 45 own pages for each (19 of 63 are shared, all but a part of one).
    let pages = 46 * SEQUENCES as usize + 100;
    let mut cache = KvCache::<RadixIndex>::new(pages, PAGE_TOKENS, true);
    let fill = measure(&mut cache, 0..SEQUENCES);
    assert_eq!(cache.stats().evictions, 0);
    // In an order that defeats the CPU's caches.
    let known = measure(&mut cache, (0..SEQUENCES).map(|i| i * 617 % SEQUENCES));
    let evicting = measure(&mut cache, SEQUENCES..2 * SEQUENCES);
    assert!(cache.stats().evictions > 40_000);
    for (name, [acquire, publish, release]) in
        [("filling", fill), ("known", known), ("evicting", evicting)]
    {
        eprintln!("{name}: acquire {acquire:?}, publish {publish:?}, release {release:?}");
        assert!(acquire < Duration::from_micros(100));
    }
}
