//! Median times of the prefix cache's calls, with a thousand prompts of a thousand tokens. For comparison: a
//! layer of a forward pass takes 80 µs.
//!
//! `cargo bench --bench prefix_cache`

use std::time::{Duration, Instant};

#[expect(dead_code, reason = "the engine uses the rest")]
#[cfg_attr(test, expect(unused_imports, reason = "its tests use them"))]
#[path = "../src/engine/kv/mod.rs"]
mod kv;

use kv::{KvCache, PAGE_TOKENS};

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
fn measure(cache: &mut KvCache, numbers: impl Iterator<Item = u32>) -> [Duration; 3] {
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

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn main() {
    // 45 own pages for each (19 of 63 are shared, all but a part of one).
    let pages = 46 * SEQUENCES as usize + 100;
    let mut cache = KvCache::new(pages, PAGE_TOKENS, true);
    let fill = measure(&mut cache, 0..SEQUENCES);
    assert_eq!(cache.stats().evictions, 0);
    // In an order that defeats the CPU's caches.
    let known = measure(&mut cache, (0..SEQUENCES).map(|i| i * 617 % SEQUENCES));
    let evicting = measure(&mut cache, SEQUENCES..2 * SEQUENCES);
    assert!(cache.stats().evictions > 40_000);
    for (name, [acquire, publish, release]) in
        [("filling", fill), ("known", known), ("evicting", evicting)]
    {
        println!("{name}: acquire {acquire:?}, publish {publish:?}, release {release:?}");
    }
}
