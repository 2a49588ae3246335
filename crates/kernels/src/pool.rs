//! A thread pool for tasks of microseconds: [`Pool::run`] hands numbered parts to threads that are
//! already spinning, and the caller takes part.
//!
//! Each thread starts with its own share of the parts ([`share`]), and then helps with the others'
//! shares. So work that is cut the same way again and again finds in a core's caches what that core
//! left there; cores need not share a cache. Parts are claimed from counters, so a thread that the
//! system has descheduled delays only the part it holds: a run ends when all parts are done, even if
//! some workers never woke up.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps: longer than the serial work between two parallel
/// steps of a forward pass, too short for a user to notice.
const SPIN: Duration = Duration::from_micros(200);

/// The gate's open bit. The bits below count the workers inside, those above the runs.
const OPEN: u64 = 1 << 16;
/// One run, in the gate's upper bits.
const RUN: u64 = 1 << 17;

/// Counters per cache line: with few threads, a claim touches one line, whichever share it is from.
const COUNTERS: usize = 16;

/// One of `shares` even shares of `0..count`: of a run's parts, those that a thread starts with.
#[inline(always)]
pub fn share(index: usize, shares: usize, count: usize) -> Range<usize> {
    index * count / shares..(index + 1) * count / shares
}

/// The thread whose share a part is in.
pub(super) fn owner(part: usize, threads: usize, parts: usize) -> usize {
    ((part + 1) * threads - 1) / parts
}

/// A fixed set of worker threads, which live as long as the pool.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// The work of a run: a type-erased closure and the number of parts.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize),
    closure: *const (),
    parts: usize,
}

/// On its own cache lines, so that claiming parts does not disturb the threads that poll the gate.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

struct Shared {
    gate: Line<AtomicU64>,
    /// The next part of each thread's share.
    next: Vec<Line<[AtomicUsize; COUNTERS]>>,
    job: UnsafeCell<Job>,
    /// Set during a run. A nested or concurrent run is executed by its caller alone.
    busy: AtomicBool,
    stop: AtomicBool,
    sleepers: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the thread that set `busy`, while the gate is closed and nobody is
// inside; it is read only by workers inside an open gate. The closure that it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads including the caller's: 1 (or 0) starts none.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        unsafe fn nothing(_: *const (), _: usize) {}
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: Line(AtomicU64::new(0)),
            next: std::iter::repeat_with(Line::default)
                .take((workers + 1).div_ceil(COUNTERS))
                .collect(),
            job: UnsafeCell::new(Job {
                call: nothing,
                closure: std::ptr::null(),
                parts: 0,
            }),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared: Arc::clone(&shared),
            workers: Vec::with_capacity(workers),
        };
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("kernel-{}", index + 1));
            // On failure `pool` is dropped, which stops the workers already started.
            pool.workers
                .push(builder.spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// Threads of a run, including the caller's.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `part(0)`, …, `part(parts - 1)`, each once, on whichever threads are free, and returns
    /// when all are done. A panic in a part is resumed in the caller after that.
    pub fn run<F: Fn(usize) + Sync>(&self, parts: usize, part: F) {
        /// Calls the closure behind the pointer.
        ///
        /// # Safety
        /// `closure` points to a live `F`.
        unsafe fn call<F: Fn(usize)>(closure: *const (), part: usize) {
            // SAFETY: as this function's.
            unsafe { (*closure.cast::<F>())(part) }
        }

        let shared = &*self.shared;
        let alone = self.workers.is_empty() || parts < 2;
        if alone || shared.busy.swap(true, Ordering::Acquire) {
            (0..parts).for_each(part);
            return;
        }
        let job = Job {
            call: call::<F>,
            closure: (&raw const part).cast(),
            parts,
        };
        // SAFETY: this thread set `busy`, and the last run left the gate closed with nobody inside.
        unsafe { *shared.job.get() = job }
        for thread in 0..self.threads() {
            let start = share(thread, self.threads(), parts).start;
            shared.next(thread).store(start, Ordering::Relaxed);
        }
        let closed = shared.gate.0.load(Ordering::Relaxed);
        shared
            .gate
            .0
            .store((closed + RUN) | OPEN, Ordering::Release);
        // Either a worker about to sleep sees the open gate, or this thread sees that it sleeps.
        fence(Ordering::SeqCst);
        for (worker, sleeps) in self.workers.iter().zip(&shared.sleepers) {
            if sleeps.load(Ordering::Relaxed) && sleeps.swap(false, Ordering::Relaxed) {
                worker.thread().unpark();
            }
        }

        shared.claim(job, 0);

        shared.gate.0.fetch_and(!OPEN, Ordering::Relaxed);
        let mut tries = 0u32;
        while shared.gate.0.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            tries += 1;
            // A worker still inside after this long has lost its core: offer it this one.
            if tries.is_multiple_of(4096) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let panic = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        shared.busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panics were caught and passed to the callers.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's main loop.
    fn work(&self, index: usize) {
        let mut last = 0;
        loop {
            let gate = self.wait(index, last);
            let Some(gate) = gate else { return };
            let inside = self.gate.0.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if inside.is_err() {
                continue;
            }
            last = gate / RUN;
            // SAFETY: inside an open gate nobody writes the job.
            let job = unsafe { *self.job.get() };
            self.claim(job, index + 1);
            self.gate.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a run other than the last one. Returns the gate's value, or `None` to stop.
    fn wait(&self, index: usize, last: u64) -> Option<u64> {
        let mut since: Option<Instant> = None;
        let mut tries = 0u32;
        loop {
            let gate = self.gate.0.load(Ordering::Relaxed);
            if gate & OPEN != 0 && gate / RUN != last {
                return Some(gate);
            }
            tries += 1;
            if !tries.is_multiple_of(128) {
                std::hint::spin_loop();
                continue;
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            let sleeps = &self.sleepers[index];
            sleeps.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let gate = self.gate.0.load(Ordering::Relaxed);
            let fresh = gate & OPEN != 0 && gate / RUN != last;
            if !fresh && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            sleeps.store(false, Ordering::Relaxed);
            since = None;
        }
    }

    fn next(&self, thread: usize) -> &AtomicUsize {
        &self.next[thread / COUNTERS].0[thread % COUNTERS]
    }

    /// Takes parts until none are left, starting with the thread's own share.
    fn claim(&self, job: Job, thread: usize) {
        let threads = self.sleepers.len() + 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for whose in (thread..threads).chain(0..thread) {
                let next = self.next(whose);
                let end = share(whose, threads, job.parts).end;
                // Load first: most shares are exhausted by the time that others come.
                while next.load(Ordering::Relaxed) < end {
                    let part = next.fetch_add(1, Ordering::Relaxed);
                    if part >= end {
                        break;
                    }
                    // SAFETY: the caller of `run` keeps the closure alive until the gate is closed and
                    // nobody is inside.
                    unsafe { (job.call)(job.closure, part) }
                }
            }
        }));
        if let Err(panic) = outcome {
            // No further part starts; only the first panic is reported.
            for whose in 0..threads {
                self.next(whose).store(job.parts, Ordering::Relaxed);
            }
            self.panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of each test.
    const ROUNDS: usize = if cfg!(miri) { 3 } else { 200 };

    #[test]
    fn every_part_runs_once() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            for parts in [0, 1, 2, 3, 7, 64] {
                for _ in 0..ROUNDS {
                    let counts: Vec<AtomicUsize> =
                        (0..parts).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(parts, |part| {
                        counts[part].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn workers_wake_after_sleeping() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            thread::sleep(SPIN * 20);
            let sum = AtomicUsize::new(0);
            pool.run(10, |part| {
                sum.fetch_add(part, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn shares_cover_every_part_once() {
        for threads in 1..9 {
            for parts in 0..40 {
                let mut next = 0;
                for thread in 0..threads {
                    for part in share(thread, threads, parts) {
                        assert_eq!(part, next);
                        assert_eq!(owner(part, threads, parts), thread);
                        next += 1;
                    }
                }
                assert_eq!(next, parts);
            }
        }
    }

    #[test]
    fn threads_start_with_their_own_shares() {
        let pool = Pool::new(2).unwrap();
        let met = AtomicUsize::new(0);
        let first = Mutex::new(Vec::new());
        pool.run(4, |part| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            let mut first_parts = first.lock().unwrap();
            if first_parts.iter().any(|(other, _)| *other == name) {
                return;
            }
            first_parts.push((name, part));
            drop(first_parts);
            met.fetch_add(1, Ordering::SeqCst);
            // No thread's first part ends before the other thread's has begun.
            while met.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
        });
        let mut first = first.into_inner().unwrap();
        first.sort_by_key(|(_, part)| *part);
        assert_eq!([first[0].1, first[1].1], [0, 2]);
        assert_eq!(first[1].0, "kernel-1");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, |part| assert!(part != 5, "part five"));
            }));
            assert!(outcome.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(4, |part| {
            sum.fetch_add(part, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
    }

    #[test]
    fn a_nested_run_is_executed_by_its_caller() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(4, |_| {
            pool.run(4, |part| {
                sum.fetch_add(part, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.into_inner(), 24);
    }
}
