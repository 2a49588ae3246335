//! Our own engine for NVIDIA GPUs. It needs the driver and nothing else.

#[expect(
    dead_code,
    unused_imports,
    reason = "the CUDA forward will call what is not called yet"
)]
pub(crate) mod driver;

use std::sync::Arc;

use super::model::{Limits, Model, Opened};
use crate::error::{Error, Result};
use driver::Gpu;

/// Loads a model to the GPU.
///
/// # Errors
/// Exit code 3: a tensor is missing or has a type without a kernel, the kernels do not load, or the
/// GPU's memory does not suffice.
pub(super) fn load(_source: &Opened, _gpu: &Arc<Gpu>, _limits: &Limits) -> Result<Box<dyn Model>> {
    Err(
        Error::preflight("the forward pass on a GPU is not built yet")
            .hint("set DEVICE=cpu to run on the CPU"),
    )
}
