//! The recorder in a process of its own: threads, panics, guards out of order, activities. Each test
//! has names of its own, since all of them share the process's recorder. No test asserts a time.

use std::panic::{AssertUnwindSafe, catch_unwind};

use flowbench::profile::{self, Activity, PassTokens, Span};
use flowbench::record::profile::{Profile, ProfileRow, StageShare};

fn read() -> Profile {
    profile::snapshot().expect("the profile is on")
}

fn row(span: Span) -> ProfileRow {
    let rows = read().rows;
    let row = rows.iter().find(|row| row.name == span.name());
    row.unwrap_or_else(|| panic!("no row {}", span.name()))
        .clone()
}

fn stage(span: Span) -> StageShare {
    let stages = read().stages;
    let stage = stages.iter().find(|stage| stage.name == span.name());
    stage
        .unwrap_or_else(|| panic!("no stage {}", span.name()))
        .clone()
}

#[test]
fn a_panic_ends_the_spans_that_it_passes() {
    profile::enable();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _outer = profile::span(Span::Rope);
        let _inner = profile::span(Span::KvWrite);
        panic!("as a program can");
    }));
    assert!(panicked.is_err());
    assert_eq!((row(Span::Rope).ncall, row(Span::KvWrite).ncall), (1, 1));
    // The stack is sound: what comes next is outermost again.
    drop(profile::span(Span::Rope));
    assert_eq!(row(Span::Rope).nprim, 2);
}

#[test]
fn guards_that_are_dropped_out_of_order_end_what_is_inside() {
    profile::enable();
    let outer = profile::span(Span::Norm);
    let inner = profile::span(Span::Embedding);
    drop(outer);
    assert_eq!((row(Span::Norm).ncall, row(Span::Embedding).ncall), (1, 1));
    drop(inner);
    assert_eq!(row(Span::Embedding).ncall, 1, "it had ended");
}

#[test]
fn threads_that_have_ended_are_counted() {
    profile::enable();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..1000 {
                    let _span = profile::span(Span::Head);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    assert_eq!(row(Span::Head).ncall, 8000);
}

#[test]
fn open_spans_of_the_reader_count_as_if_they_ended() {
    profile::enable();
    let _open = profile::span(Span::Gate);
    let row = row(Span::Gate);
    assert_eq!((row.ncall, row.nprim), (1, 1));
}

#[test]
fn activities_have_parents_and_a_scope() {
    profile::enable();
    let flow = Activity::root(Span::Flow);
    let step = flow.child(Span::Step);
    let mut phase = {
        let _scope = step.enter();
        Activity::in_scope(Span::QueueWait)
    };
    phase.next(Span::Prefill);
    phase.next(Span::Decode);
    // The flow is given up: what was in it may end later.
    drop(flow);
    drop(phase);
    drop(step);
    for span in [Span::Flow, Span::Step, Span::QueueWait, Span::Prefill] {
        assert_eq!(row(span).ncall, 1, "{}", span.name());
    }
    let step = row(Span::Step);
    assert!(step.tsub_s <= step.ttot_s);
    assert_eq!(stage(Span::QueueWait).calls, 1);
    assert!(read().stages.iter().all(|stage| stage.name != "flow"));
}

#[test]
fn a_pass_is_the_work_of_the_phases_in_it() {
    profile::enable();
    let request = Activity::root(Span::Decode);
    // Long enough that no clock can miss it.
    let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
    pause();
    {
        let _pass = profile::pass(Span::Wait, || PassTokens {
            sequences: 1,
            prefill_tokens: 0,
            decode_tokens: 1,
        });
        pause();
    }
    drop(request);
    assert_eq!(row(Span::Wait).ncall, 1);
    let stage = stage(Span::Decode);
    assert!(stage.union_s > 0.0);
    // Not the pause before the pass.
    assert!(stage.union_s < row(Span::Decode).ttot_s);
}

#[test]
fn shares_and_idle_time_are_the_wall_time() {
    profile::enable();
    let work = |span| {
        for _ in 0..200 {
            let _outer = profile::span(span);
            let _inner = profile::span(Span::Verify);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(Span::EvaluateRun));
        scope.spawn(|| work(Span::EvaluateValidate));
        for _ in 0..50 {
            let profile = read();
            let split: f64 = profile.stages.iter().map(|stage| stage.split_s).sum();
            let difference = split + profile.idle_s - profile.wall_s;
            // Ticks are exact; seconds are rounded, a nanosecond a stage.
            assert!(difference.abs() < 1e-7, "{difference}");
        }
    });
    assert_eq!(row(Span::Verify).ncall, 400);
}
