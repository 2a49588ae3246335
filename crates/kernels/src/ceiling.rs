//! This machine's upper bounds: bytes read from memory and integer multiply-adds, measured with the
//! instructions that the kernels use. `flowbench bench-engine` reports its figures against them. (The
//! paired products of `winograd` compute two products per multiplication and could reach 1.14 times the
//! multiply-add bound.)

use std::hint::black_box;

use super::aligned::Aligned;
use super::dispatch::Kernels;
use super::parallel::RowsMut;
use super::pool::Pool;
use super::simd::{LANES, Simd};
use crate::dispatch::Isa;
use crate::memory::OutOfMemory;

/// Size of the buffer to read, in bytes: larger than every cache.
const READ_BYTES: usize = 256 << 20;

/// The buffer is read in this many runs of about a millisecond. A run that short often ends before
/// another process gets one of its cores, even on a busy machine.
const READ_STRETCHES: usize = 8;

/// Parts of a run, so that a thread that loses its core delays little.
const READ_PARTS: usize = 64;

/// Duration of an integer run: much longer than the hand-over to the threads, and short for the same
/// reason as above.
const INTEGER_SECONDS: f64 = 0.5e-3;

/// How long to measure, in seconds. The best of all runs counts, since a bound is what the machine does
/// undisturbed. (Agreement between runs is no reason to stop early: a disturbance can be steady.)
const SECONDS: f64 = 0.6;

/// The same while the length of an integer run is being calibrated.
const TRIAL_SECONDS: f64 = 5e-3;

/// Maximum independent sums of the integer loop: enough to hide an instruction's latency.
const CHAINS: usize = 12;

/// Independent sums of the reading loop.
const STREAMS: usize = 4;

/// This machine's upper bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Threads used.
    pub threads: usize,
    /// The family whose instructions were used.
    pub isa: Isa,
    /// Gigabytes per second read from memory, all threads.
    pub read_gb_s: f64,
    /// 10⁹ int8 multiply-adds per second from registers, all threads.
    pub int8_gmac_s: f64,
}

/// Why ceilings cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CeilingError {
    #[error("failed to start threads")]
    Threads(#[from] std::io::Error),
    #[error("there is no memory to measure what can be read")]
    Memory(#[from] OutOfMemory),
}

/// A clock: seconds since some fixed moment.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// Measures with `threads` threads, for slightly more than a second.
///
/// # Errors
/// The system cannot start threads, or has no memory.
pub fn measure(threads: usize, clock: Clock<'_>) -> Result<Ceilings, CeilingError> {
    let pool = Pool::new(threads)?;
    let kernels = Kernels::best();
    Ok(Ceilings {
        threads: pool.threads(),
        isa: kernels.isa(),
        read_gb_s: read(kernels, &pool, clock)?,
        int8_gmac_s: integers(kernels, &pool, clock),
    })
}

/// GB/s read from memory by all threads.
fn read(kernels: Kernels, pool: &Pool, clock: Clock<'_>) -> Result<f64, OutOfMemory> {
    let mut buffer = Aligned::<f32>::zeroed(READ_BYTES / size_of::<f32>())?;
    let share = buffer.len() / READ_STRETCHES / READ_PARTS;
    // Pages are allocated when they are first written.
    let parts = RowsMut::new(&mut buffer[..], share);
    pool.rows1(READ_STRETCHES * READ_PARTS, 1, parts, |_, part| {
        part.fill(1.0)
    });
    let mut stretch = 0;
    let seconds = best(clock, SECONDS, || {
        let first = stretch * READ_PARTS;
        pool.run(READ_PARTS, |part| {
            let part = &buffer[(first + part) * share..][..share];
            // SAFETY: this processor has the features (`Kernels::best`).
            unsafe { (kernels.table.read_all)(part) }
        });
        stretch = (stretch + 1) % READ_STRETCHES;
    });
    Ok((READ_BYTES / READ_STRETCHES) as f64 / seconds / 1e9)
}

/// 10⁹ integer multiply-adds per second in registers, all threads.
fn integers(kernels: Kernels, pool: &Pool, clock: Clock<'_>) -> f64 {
    let threads = pool.threads();
    let (mut steps, mut within) = (1000, TRIAL_SECONDS);
    loop {
        let seconds = best(clock, within, || {
            pool.run(threads, |_| {
                // SAFETY: this processor has the features (`Kernels::best`).
                unsafe { (kernels.table.multiply_add_all)(steps) }
            });
        });
        // Judged by the best run, also in the end: a disturbed run looks long enough with too few
        // steps.
        if seconds < INTEGER_SECONDS / 2.0 {
            let missing = INTEGER_SECONDS / seconds.max(1e-7);
            steps = (steps as f64 * missing).ceil() as usize;
        } else if within < SECONDS {
            within = SECONDS;
        } else {
            // Four bytes per lane, for every sum.
            let work = threads * steps * chains(kernels.table.tile) * LANES * 4;
            return work as f64 / seconds / 1e9;
        }
    }
}

/// The duration of the shortest run of those that start within `within` seconds.
fn best(clock: Clock<'_>, within: f64, mut run: impl FnMut()) -> f64 {
    let start = clock();
    let (mut shortest, mut before) = (f64::INFINITY, start);
    loop {
        run();
        let now = clock();
        shortest = shortest.min(now - before);
        before = now;
        if now - start > within {
            return shortest;
        }
    }
}

/// As many sums as a product's tile has, which is as many as fit into registers.
const fn chains(tile: (usize, usize)) -> usize {
    let sums = tile.0 * tile.1;
    if sums < CHAINS { sums } else { CHAINS }
}

/// Reads all values and adds them up; the sum is not used.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub(super) unsafe fn read_all<S: Simd>(values: &[f32]) {
    // SAFETY: a chunk has the elements of `STREAMS` vectors; the rest as this function's.
    unsafe {
        let mut sums = [S::splat(0.0); STREAMS];
        for chunk in values.chunks_exact(STREAMS * LANES) {
            for (stream, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(chunk.as_ptr().add(stream * LANES)));
            }
        }
        black_box(sums);
    }
}

/// Multiplies and adds 64 bytes to each of the sums, `steps` times.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub(super) unsafe fn multiply_add_all<S: Simd>(steps: usize) {
    let weights = [1u8; 4 * LANES];
    let quad = [1i8; 4];
    // SAFETY: the arrays have the bytes that are loaded; the rest as this function's.
    unsafe {
        let mut sums = [S::splat_i32(0); CHAINS];
        for _ in 0..steps {
            // Loaded in each step, or the compiler could hoist the multiplication.
            let w = S::load_weights(black_box(weights.as_ptr()));
            let a = S::quad(black_box(quad.as_ptr()));
            for sum in &mut sums[..const { chains(S::TILE) }] {
                *sum = S::dot(*sum, w, a);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_positive() {
        let start = std::time::Instant::now();
        let clock = || start.elapsed().as_secs_f64();
        let ceilings = measure(1, &clock).expect("one thread");
        assert_eq!(ceilings.threads, 1);
        assert!(ceilings.read_gb_s.is_finite() && ceilings.read_gb_s > 0.01);
        assert!(ceilings.int8_gmac_s.is_finite() && ceilings.int8_gmac_s > 0.01);
    }
}
