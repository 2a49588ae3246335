//! The NVIDIA driver: opens the card, owns memory on it, and starts kernels, all in one stream.
//!
//! Everything that is queued runs in order. Only [`Gpu::synchronize`], [`Gpu::upload`],
//! [`Gpu::download`] and dropping memory wait. Errors of queued work appear in a later call.

mod card;
mod context;
mod error;
mod graph;
mod library;
mod memory;
mod module;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::super::device::info::DeviceInfo;
use crate::error::Result;
use context::Context;

pub(crate) use card::{Card, MINIMUM_CAPABILITY, MINIMUM_DRIVER, cuda_version, minimum_cuda};
pub(crate) use error::GpuError;
pub(crate) use graph::{Event, Graph};
pub(crate) use memory::{Buffer, Pinned, Plain};
pub(crate) use module::{Arguments, Kernel, Kernels};

/// The one GPU that this process uses: device 0 of those that are visible.
pub(crate) struct Gpu {
    context: Arc<Context>,
    card: Card,
    info: DeviceInfo,
}

/// Memory of the device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Not allocated by any process.
    pub(crate) free: usize,
    pub(crate) total: usize,
}

impl Gpu {
    /// Opens the GPU.
    ///
    /// # Errors
    /// Exit code 3, with a hint, as [`Card::find`]; and if the card has no room for a context or
    /// another process holds it for itself.
    pub(crate) fn open() -> Result<Self> {
        let (card, driver, device) = card::find()?;
        let context = Context::open(driver, device).map_err(|error| card.refused(error))?;
        Ok(Self {
            context: Arc::new(context),
            info: card.info(),
            card,
        })
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn card(&self) -> &Card {
        &self.card
    }

    /// Compute capability: major, minor.
    pub(crate) fn capability(&self) -> (u32, u32) {
        self.card.capability
    }

    pub(crate) fn multiprocessors(&self) -> u32 {
        self.card.multiprocessors
    }

    /// # Errors
    /// Exit code 3 if the driver does not answer.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let (mut free, mut total) = (0, 0);
        let read = self.context.enter().and_then(|driver| {
            // SAFETY: the driver writes two sizes.
            unsafe { driver.cuMemGetInfo_v2(&raw mut free, &raw mut total) }
        });
        read.map_err(|error| error.at_load("read how much GPU memory is free"))?;
        Ok(Memory { free, total })
    }

    /// Waits until everything that was queued is done.
    ///
    /// # Errors
    /// The first error of queued work, if there was one.
    pub(crate) fn synchronize(&self) -> Result<(), GpuError> {
        self.context.synchronize()
    }
}
