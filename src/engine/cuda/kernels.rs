//! The kernels as PTX, embedded: made from `kernels/*.cu` by `scripts/kernels.sh`, and compiled for the
//! card by its driver.

use super::driver::{Gpu, Kernel, Kernels};
use crate::error::Result;
use crate::units::Millis;

/// For compute capability 7.5 (Turing), which lacks the `mma` instruction of [`AMPERE`].
const TURING: &str = include_str!("kernels/ptx/compute_75.ptx");
/// For compute capability 8.0 and later.
const AMPERE: &str = include_str!("kernels/ptx/compute_80.ptx");

/// Products of up to 1, 4 and 8 tokens at a time, and of 32: quantised ones where the card has the
/// instruction, and dense ones.
pub(crate) struct ByTokens {
    pub(crate) one: Kernel,
    pub(crate) four: Kernel,
    pub(crate) eight: Kernel,
    pub(crate) many: Option<Kernel>,
    pub(crate) many_dense: Kernel,
}

impl ByTokens {
    fn get(kernels: &Kernels, name: &str, has_mma: bool) -> Result<Self> {
        let get = |tokens: u32| kernels.get(&format!("{name}_{tokens}"));
        Ok(Self {
            one: get(1)?,
            four: get(4)?,
            eight: get(8)?,
            many: has_mma.then(|| get(32)).transpose()?,
            many_dense: kernels.get(&format!("dense_{name}_32"))?,
        })
    }
}

/// All kernels of the forward pass; see `kernels/*.cu`.
pub(crate) struct ForwardKernels {
    pub(crate) embed: Kernel,
    pub(crate) add_norm: Kernel,
    pub(crate) product: ByTokens,
    pub(crate) swiglu: ByTokens,
    pub(crate) rotate_and_store: Kernel,
    pub(crate) keep_rows: Kernel,
    /// For heads of up to 64, 128 and 256 columns.
    pub(crate) attend: [Kernel; 3],
    /// The same in three launches: scores, values, and their join.
    pub(crate) attend_split: [Kernel; 3],
    pub(crate) quantise_rows: Kernel,
    pub(crate) sample: Kernel,
    pub(crate) read_memory: Kernel,
    pub(crate) multiply_bytes: Kernel,
    /// Whether products of many tokens, and `multiply_bytes`, use tensor cores.
    pub(crate) has_mma: bool,
    /// How long the driver compiled.
    pub(crate) jit: Millis,
}

impl ForwardKernels {
    /// # Errors
    /// Exit code 3: the driver cannot compile them.
    pub(crate) fn load(gpu: &Gpu) -> Result<Self> {
        let has_mma = gpu.capability() >= (8, 0);
        let kernels = gpu.load_kernels(if has_mma { AMPERE } else { TURING })?;
        Ok(Self {
            embed: kernels.get("embed")?,
            add_norm: kernels.get("add_norm")?,
            product: ByTokens::get(&kernels, "product", has_mma)?,
            swiglu: ByTokens::get(&kernels, "swiglu", has_mma)?,
            rotate_and_store: kernels.get("rotate_and_store")?,
            keep_rows: kernels.get("keep_rows")?,
            attend: [
                kernels.get("attend_64")?,
                kernels.get("attend_128")?,
                kernels.get("attend_256")?,
            ],
            attend_split: [
                kernels.get("attend_scores")?,
                kernels.get("attend_values")?,
                kernels.get("attend_join")?,
            ],
            quantise_rows: kernels.get("quantise_rows")?,
            sample: kernels.get("sample")?,
            read_memory: kernels.get("read_memory")?,
            multiply_bytes: kernels.get("multiply_bytes")?,
            has_mma,
            jit: kernels.jit(),
        })
    }
}
