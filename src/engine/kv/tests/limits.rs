//! Individual cases: matching, eviction, and short memory.

use super::super::{KvCache, Lease, PageCopy, RadixIndex};

type Cache = KvCache<RadixIndex>;

fn cache(pages: usize) -> Cache {
    Cache::new(pages, 4, true)
}

fn sequence(first: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| first + i).collect()
}

fn acquire(cache: &mut Cache, tokens: &[u32]) -> Lease {
    cache.acquire(tokens, 0).expect("there is memory")
}

fn run(cache: &mut Cache, tokens: &[u32]) {
    let lease = acquire(cache, tokens);
    cache.finish(lease, tokens);
}

#[test]
fn the_last_token_of_a_known_prompt_is_recomputed() {
    let mut cache = cache(8);
    let tokens = sequence(0, 8);
    run(&mut cache, &tokens);
    let mut lease = acquire(&mut cache, &tokens);
    assert_eq!(lease.reused(), 7);
    let copy = lease.take_copy().expect("the prefix ends inside a page");
    assert_eq!((copy.tokens, copy.to), (3, lease.page_table()[1]));
    // Once computed, its page equals the known one, which replaces it.
    cache.publish(&mut lease, &tokens);
    assert_eq!(lease.page_table()[1], copy.from);
    assert_eq!(cache.stats().leased, 2);
    cache.release(lease);
    cache.check([]);
}

#[test]
fn a_prefix_that_ends_at_a_page_needs_no_copy() {
    let mut cache = cache(8);
    run(&mut cache, &sequence(0, 8));
    let mut lease = acquire(&mut cache, &sequence(0, 9));
    assert_eq!((lease.reused(), lease.take_copy()), (8, None));
    cache.release(lease);
}

#[test]
fn short_and_empty_prompts_need_no_special_case() {
    let mut cache = cache(2);
    for tokens in [&[][..], &[7]] {
        let lease = acquire(&mut cache, tokens);
        assert_eq!(
            (lease.reused(), lease.page_table().len()),
            (0, tokens.len())
        );
        cache.finish(lease, tokens);
    }
    assert_eq!(cache.known_prefix(&[7, 8]), 1);
    cache.check([]);
}

#[test]
fn the_least_recently_used_sequence_is_evicted_from_its_end() {
    let mut cache = cache(7);
    for first in [0, 100, 200] {
        run(&mut cache, &sequence(first, 8));
    }
    run(&mut cache, &sequence(0, 7)); // Uses the oldest again; now 100 is.
    let known = |cache: &Cache| [0, 100, 200].map(|first| cache.known_prefix(&sequence(first, 9)));
    let mut seen = vec![known(&cache)];
    let mut lease = acquire(&mut cache, &[]);
    assert!(cache.grow(&mut lease, 4), "one is free");
    for pages in 2..=7 {
        assert!(cache.grow(&mut lease, pages * 4));
        seen.push(known(&cache));
    }
    let expected = [
        [8, 8, 8],
        [8, 4, 8],
        [8, 0, 8],
        [8, 0, 4],
        [8, 0, 0],
        [4, 0, 0],
        [0, 0, 0],
    ];
    assert_eq!(seen, expected);
    assert_eq!(cache.stats().evictions, 6);
    assert!(!cache.grow(&mut lease, 29));
    cache.release(lease);
    assert_eq!(cache.stats().free, 7);
}

#[test]
fn leased_pages_are_never_evicted() {
    let mut cache = cache(4);
    run(&mut cache, &sequence(0, 8));
    run(&mut cache, &sequence(100, 8));
    let lease = acquire(&mut cache, &sequence(0, 9)); // The older one, and a page of the newer.
    assert_eq!(lease.reused(), 8);
    assert_eq!(cache.available(), 1);
    let before = cache.clone();
    assert!(cache.acquire(&sequence(200, 5), 0).is_none());
    assert_eq!(cache, before);
    assert_eq!(cache.known_prefix(&sequence(0, 9)), 8);
    cache.release(lease);
}

#[test]
fn a_refused_acquire_has_no_side_effects() {
    let mut cache = cache(4);
    run(&mut cache, &sequence(0, 8));
    run(&mut cache, &sequence(100, 8));
    let before = cache.clone();
    assert!(cache.acquire(&sequence(0, 17), 0).is_none());
    assert!(cache.acquire(&sequence(0, 16), 1).is_none(), "headroom");
    assert_eq!(cache, before);
    let lease = acquire(&mut cache, &sequence(0, 16));
    assert_eq!((lease.reused(), cache.stats().free), (8, 0));
    cache.release(lease);
}

#[test]
fn the_source_of_a_copy_can_become_its_target() {
    let mut cache = cache(2);
    run(&mut cache, &sequence(0, 7));
    let mut tokens = sequence(0, 6);
    tokens.extend([90, 91]);
    let mut lease = acquire(&mut cache, &tokens);
    assert_eq!((lease.reused(), lease.take_copy()), (6, None));
    assert_eq!(cache.known_prefix(&sequence(0, 8)), 4);
    cache.finish(lease, &tokens);
    cache.check([]);
}

#[test]
fn a_partial_page_is_known_as_far_as_it_was_published() {
    let mut cache = cache(8);
    let tokens = sequence(0, 8);
    let mut lease = acquire(&mut cache, &tokens);
    for len in 1..=8 {
        cache.publish(&mut lease, &tokens[..len]);
        assert_eq!(cache.known_prefix(&sequence(0, 9)), len);
        assert_eq!(cache.stats().cached, len.div_ceil(4));
        cache.check([&lease]);
    }
    cache.release(lease);
}

#[test]
fn duplicate_pages_are_dropped_by_the_second_publisher() {
    let mut cache = cache(8);
    let tokens = sequence(0, 11);
    let mut first = acquire(&mut cache, &tokens);
    let mut second = acquire(&mut cache, &tokens);
    assert_eq!(cache.stats().leased, 6);
    cache.publish(&mut first, &tokens);
    cache.publish(&mut second, &tokens);
    assert_eq!(first.page_table()[..2], second.page_table()[..2]);
    // Both are still filling the last page.
    assert_ne!(first.page_table()[2], second.page_table()[2]);
    assert_eq!(cache.stats().leased, 4);
    cache.check([&first, &second]);
    cache.release(first);
    cache.release(second);
    assert_eq!((cache.stats().leased, cache.stats().cached), (0, 3));
}

#[test]
fn forks_share_full_pages_and_copy_the_last() {
    for reuse in [true, false] {
        let mut cache = Cache::new(6, 4, reuse);
        let tokens = sequence(0, 10);
        let mut lease = acquire(&mut cache, &tokens);
        let mut forks = Vec::new();
        for _ in 0..3 {
            let mut fork = cache.fork(&mut lease, &tokens).expect("there is memory");
            let (from, to) = (lease.page_table()[2], fork.page_table()[2]);
            let copy = PageCopy {
                from,
                to,
                tokens: 2,
            };
            assert_eq!(fork.take_copy(), Some(copy));
            assert_eq!(fork.page_table()[..2], lease.page_table()[..2]);
            assert_eq!(fork.reused(), 10);
            forks.push(fork);
        }
        assert_eq!(cache.stats().free, 0);
        let before = cache.clone();
        assert!(cache.fork(&mut lease, &tokens).is_none());
        assert_eq!(cache, before);
        // Forks outlive the first.
        cache.finish(lease, &tokens);
        cache.check(&forks);
        for fork in forks {
            cache.release(fork);
        }
        assert_eq!(cache.stats().cached, if reuse { 3 } else { 0 });
        assert_eq!(cache.stats().leased, 0);
    }
}

#[test]
fn pending_prefix_counts_tokens_that_another_prompt_will_compute() {
    let mut cache = cache(8);
    let other = sequence(0, 8);
    let mut prompt = sequence(0, 6);
    prompt.push(50);
    let pending = |cache: &Cache| cache.pending_prefix(&prompt, [other.as_slice()]);
    assert_eq!(pending(&cache), 6);
    let mut lease = acquire(&mut cache, &other);
    cache.publish(&mut lease, &other[..4]);
    assert_eq!(pending(&cache), 2);
    cache.finish(lease, &other);
    assert_eq!(pending(&cache), 0);
    cache.restart(false);
    assert_eq!(pending(&cache), 0);
}

#[test]
fn freed_pages_are_reused_in_table_order() {
    let mut cache = Cache::new(8, 4, false);
    let lease = acquire(&mut cache, &sequence(0, 20));
    let table = lease.page_table().to_vec();
    cache.release(lease);
    let lease = acquire(&mut cache, &sequence(0, 20));
    assert_eq!(lease.page_table(), table);
    cache.release(lease);
}

#[test]
fn after_a_restart_the_same_calls_give_the_same_pages() {
    let mut cache = cache(16);
    let mut round = || {
        cache.restart(true);
        let mut tables = Vec::new();
        for first in [0, 40, 0, 80] {
            let lease = acquire(&mut cache, &sequence(first, 30));
            tables.push((lease.page_table().to_vec(), lease.reused()));
            cache.finish(lease, &sequence(first, 30));
        }
        tables
    };
    assert_eq!(round(), round());
}
