//! Builds without CUDA: no GPU is ever visible, and asking for one fails with a hint.

use candle_core::Device;

use super::DeviceInfo;
use crate::error::{Error, Result};

/// Without CUDA there is nothing to set up.
pub fn prepare_process() {}

pub(super) fn is_visible() -> bool {
    false
}

pub(super) fn preflight() -> Result<()> {
    Err(
        Error::preflight("DEVICE=cuda, but this build of flowbench has no CUDA in it").hint(
            "build with `cargo build --release --features cuda` (nvcc must be on PATH), or set DEVICE=cpu; `bash run.sh` chooses the CUDA build by itself if nvcc and a GPU are present",
        ),
    )
}

pub(super) fn open() -> Result<(Device, DeviceInfo)> {
    preflight().map(|()| (Device::Cpu, DeviceInfo::none()))
}
