//! What this machine can do at most: bytes read from memory and integer multiply-adds, with the very
//! instructions that the kernels use. `flowbench bench-engine` puts its figures beside them. (Products of
//! which one multiplication makes two, `paired`, are bound by more than this: theirs could reach 1.14 of it.)

use std::hint::black_box;

use super::aligned::Aligned;
use super::dispatch::Kernels;
use super::parallel::RowsMut;
use super::pool::Pool;
use super::simd::{LANES, Simd};
use crate::dispatch::Isa;
use crate::memory::OutOfMemory;

/// Bytes that are read in turn: beyond every cache, so that all come from memory.
const READ_BYTES: usize = 256 << 20;

/// Stretches of that buffer, a run each: about a millisecond. A run that short often ends before
/// another process is given one of its cores, even on a busy machine.
const READ_STRETCHES: usize = 8;

/// Parts of a stretch, so that a thread which loses its core delays little.
const READ_PARTS: usize = 64;

/// An integer run takes about so long: many times what the hand-over to the threads takes, and short
/// for the same reason.
const INTEGER_SECONDS: f64 = 0.5e-3;

/// A ceiling is what the machine does when nothing disturbs it: the best of all the runs in so many
/// seconds counts. (That several runs agree would be no reason to stop: a disturbance can be steady.)
const SECONDS: f64 = 0.6;

/// The same while the length of an integer run is being found.
const TRIAL_SECONDS: f64 = 5e-3;

/// Independent sums of the integer loop, at most: enough to hide the latency of an instruction.
const CHAINS: usize = 12;

/// Independent sums of the reading loop.
const STREAMS: usize = 4;

/// What this machine can do at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Threads that measured.
    pub threads: usize,
    /// The family whose instructions were used.
    pub isa: Isa,
    /// 10⁹ bytes a second read from memory, all threads.
    pub read_gb_s: f64,
    /// 10⁹ int8 multiply-adds a second from registers, all threads.
    pub int8_gmac_s: f64,
}

/// Why ceilings cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CeilingError {
    /// The system gives no thread.
    #[error("failed to start threads")]
    Threads(#[from] std::io::Error),
    /// The system gives no memory to read from.
    #[error("there is no memory to measure what can be read")]
    Memory(#[from] OutOfMemory),
}

/// A clock: seconds since some fixed moment.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// Measures on `threads` threads, for a bit more than a second.
///
/// # Errors
/// The system gives no thread, or no memory.
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
    // A page that was never written is no memory yet.
    let parts = RowsMut::new(&mut buffer[..], share);
    pool.rows1(READ_STRETCHES * READ_PARTS, 1, parts, |_, part| {
        part.fill(1.0)
    });
    let mut stretch = 0;
    let seconds = best(clock, SECONDS, || {
        let first = stretch * READ_PARTS;
        pool.run(READ_PARTS, |part| {
            let part = &buffer[(first + part) * share..][..share];
            // SAFETY: this processor is able (`Kernels::best`).
            unsafe { (kernels.table.read_all)(part) }
        });
        stretch = (stretch + 1) % READ_STRETCHES;
    });
    Ok((READ_BYTES / READ_STRETCHES) as f64 / seconds / 1e9)
}

/// 10⁹ integer multiply-adds a second in registers, by all threads.
fn integers(kernels: Kernels, pool: &Pool, clock: Clock<'_>) -> f64 {
    let threads = pool.threads();
    let (mut steps, mut within) = (1000, TRIAL_SECONDS);
    loop {
        let seconds = best(clock, within, || {
            pool.run(threads, |_| {
                // SAFETY: this processor is able (`Kernels::best`).
                unsafe { (kernels.table.multiply_add_all)(steps) }
            });
        });
        // Judged by the best run, in the end as well: a disturbed one seems long with too few steps.
        if seconds < INTEGER_SECONDS / 2.0 {
            let missing = INTEGER_SECONDS / seconds.max(1e-7);
            steps = (steps as f64 * missing).ceil() as usize;
        } else if within < SECONDS {
            within = SECONDS;
        } else {
            // Four bytes of each lane, for every sum.
            let work = threads * steps * chains(kernels.table.tile) * LANES * 4;
            return work as f64 / seconds / 1e9;
        }
    }
}

/// The shortest of the runs that begin within so many seconds, in seconds.
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

/// As many sums as a product's tile has, which are as many as the registers hold.
const fn chains(tile: (usize, usize)) -> usize {
    let sums = tile.0 * tile.1;
    if sums < CHAINS { sums } else { CHAINS }
}

/// Reads all values; what it adds them up to is nobody's concern.
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

/// `steps` times a multiply-add of 64 bytes into each of the sums.
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
            // Loaded anew, or a clever compiler would multiply once and add it up.
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
    fn a_ceiling_is_a_speed() {
        let start = std::time::Instant::now();
        let clock = || start.elapsed().as_secs_f64();
        let ceilings = measure(1, &clock).expect("one thread");
        assert_eq!(ceilings.threads, 1);
        assert!(ceilings.read_gb_s.is_finite() && ceilings.read_gb_s > 0.01);
        assert!(ceilings.int8_gmac_s.is_finite() && ceilings.int8_gmac_s > 0.01);
    }
}
