//! What a card can do at most: read its memory, and multiply bytes from registers. Times are its own, by events.

use super::driver::{Arguments, Gpu, GpuError, Kernel};
use super::kernels::ForwardKernels;
use crate::record::bench::Ceilings;

const THREADS: u32 = 256;
/// Blocks for each multiprocessor: enough to fill it.
const BLOCKS: u32 = 4;
/// Sizes grow until a launch takes this long: then its start no longer counts.
const LONG_ENOUGH_MS: f32 = 1.0;
const REPETITIONS: usize = 3;

/// Bytes that are read, at least and at most: more than any card's L2 cache holds.
const BYTES: (usize, usize) = (1 << 20, 1 << 30);
/// Rounds of `multiply_bytes`, at least and at most.
const ROUNDS: (u32, u32) = (1, 1 << 18);
/// Products of a chain in a round, and chains: as in `ceilings.cu`.
const CHAINS: f64 = 8.0;

/// Measures the card.
pub(crate) fn measure(gpu: &Gpu, kernels: &ForwardKernels) -> Result<Ceilings, GpuError> {
    let (instruction, macs_of_warp) = match kernels.has_mma {
        true => ("mma", 16.0 * 8.0 * 32.0),
        false => ("dp4a", 32.0 * 4.0),
    };
    Ok(Ceilings {
        threads: gpu.multiprocessors() as usize,
        instructions: instruction.to_owned(),
        read_gb_s: read_gb_s(gpu, &kernels.read_memory)?,
        int8_gmac_s: gmac_s(gpu, &kernels.multiply_bytes, macs_of_warp)?,
    })
}

/// The least time of some launches, in milliseconds of the device.
fn best(gpu: &Gpu, launch: impl Fn() -> Result<(), GpuError>) -> Result<f32, GpuError> {
    let (start, end) = (gpu.event()?, gpu.event()?);
    let mut best = f32::INFINITY;
    for _ in 0..REPETITIONS {
        gpu.record(&start)?;
        launch()?;
        gpu.record(&end)?;
        gpu.synchronize()?;
        best = best.min(gpu.elapsed_ms(&start, &end)?);
    }
    Ok(best.max(f32::MIN_POSITIVE))
}

fn blocks(gpu: &Gpu) -> u32 {
    gpu.multiprocessors() * BLOCKS
}

/// GB/s. Doubles the size until a launch takes long enough, or memory ends.
fn read_gb_s(gpu: &Gpu, kernel: &Kernel) -> Result<f64, GpuError> {
    let sink = gpu.allocate::<u32>(1)?;
    let mut found = 0.0;
    let mut bytes = BYTES.0;
    while bytes <= BYTES.1 {
        let memory = match gpu.allocate::<u32>(bytes / size_of::<u32>()) {
            Ok(memory) => memory,
            Err(error) if error.is_out_of_memory() && found > 0.0 => break,
            Err(error) => return Err(error),
        };
        let milliseconds = best(gpu, || {
            let mut arguments = Arguments::new()
                .buffer(&memory)
                .u64((bytes / 16) as u64)
                .buffer(&sink);
            gpu.launch(kernel, [blocks(gpu), 1, 1], THREADS, &mut arguments)
        })?;
        // The largest size counts: a smaller one may be read from a cache.
        found = bytes as f64 / f64::from(milliseconds) / 1e6;
        if milliseconds >= LONG_ENOUGH_MS {
            break;
        }
        bytes *= 2;
    }
    Ok(found)
}

/// GMAC/s. Doubles the rounds until a launch takes long enough.
fn gmac_s(gpu: &Gpu, kernel: &Kernel, macs_of_warp: f64) -> Result<f64, GpuError> {
    let sink = gpu.allocate::<i32>(1)?;
    let mut rounds = ROUNDS.0;
    loop {
        let milliseconds = best(gpu, || {
            let mut arguments = Arguments::new().u32(rounds).u32(7).buffer(&sink);
            gpu.launch(kernel, [blocks(gpu), 1, 1], THREADS, &mut arguments)
        })?;
        if milliseconds >= LONG_ENOUGH_MS || rounds >= ROUNDS.1 {
            let warps = f64::from(blocks(gpu) * THREADS / 32);
            let macs = warps * f64::from(rounds) * CHAINS * macs_of_warp;
            return Ok(macs / f64::from(milliseconds) / 1e6);
        }
        rounds *= 2;
    }
}
