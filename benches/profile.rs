//! Cost of a span with the profile off and on. The gate: at most 100 ns for a synchronous span.
//!
//! `cargo bench --bench profile`

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use flowbench::profile::{self, Activity, PassTokens, Span};

fn spans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("span");
    // The order matters: the profile cannot be turned off again.
    group.bench_function("off", |bencher| {
        bencher.iter(|| black_box(profile::span(Span::Linear)));
    });
    profile::enable();
    group.bench_function("detail", |bencher| {
        bencher.iter(|| black_box(profile::span(Span::Linear)));
    });
    group.bench_function("stage", |bencher| {
        bencher.iter(|| black_box(profile::span(Span::Sample)));
    });
    let _outer = profile::span(Span::EngineInit);
    group.bench_function("stage_in_a_stage", |bencher| {
        bencher.iter(|| black_box(profile::span(Span::Sample)));
    });
    group.bench_function("pass", |bencher| {
        bencher.iter(|| {
            black_box(profile::pass(Span::Forward, || PassTokens {
                sequences: 1,
                prefill_tokens: 0,
                decode_tokens: 1,
            }))
        });
    });
    group.bench_function("activity", |bencher| {
        bencher.iter(|| black_box(Activity::root(Span::Step)));
    });
    group.finish();
}

criterion_group!(benches, spans);
criterion_main!(benches);
