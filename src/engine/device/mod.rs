//! The device that a model runs on.

#[path = "none.rs"]
mod gpu;
pub(crate) mod info;
pub(crate) mod nvml;

use candle_core::Device;

use crate::config::DeviceChoice;
use crate::error::Result;

pub use gpu::prepare_process;
pub use info::DeviceInfo;
pub use nvml::{DeviceLoad, driver_version};

/// Current load of the GPU; all fields are `None` without one. Does not block a run.
pub fn device_load() -> DeviceLoad {
    nvml::load()
}

pub const BUILD_HAS_CUDA: bool = false;

/// Checks whether `choice` can be used, without setting anything up.
///
/// # Errors
/// Exit code 3 if a GPU is required and none can be used.
pub(crate) fn preflight(choice: DeviceChoice) -> Result<()> {
    match choice {
        DeviceChoice::Cuda => gpu::preflight(),
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
    }
}

/// Checks whether a GPU can be used, without setting anything up.
///
/// # Errors
/// Exit code 3 if none can be used.
pub fn preflight_gpu() -> Result<()> {
    gpu::preflight()
}

/// Opens the device. `auto` uses the GPU if this build supports it and one is visible. A visible
/// GPU that fails is an error: there is no silent fallback to the CPU.
///
/// # Errors
/// Exit code 3 if the device cannot be opened.
pub(crate) fn open(choice: DeviceChoice) -> Result<(Device, DeviceInfo)> {
    let use_gpu = match choice {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda => true,
        DeviceChoice::Auto => gpu::is_visible(),
    };
    if use_gpu {
        gpu::open()
    } else {
        Ok((Device::Cpu, DeviceInfo::cpu()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_available() {
        let (device, info) = open(DeviceChoice::Cpu).expect("a CPU");
        assert!(device.is_cpu());
        assert_eq!(info.kind, "cpu");
        assert!(preflight(DeviceChoice::Auto).is_ok());
    }

    #[test]
    fn a_build_without_cuda_refuses_the_gpu_and_says_what_to_do() {
        for error in [
            preflight(DeviceChoice::Cuda).expect_err("no CUDA in this build"),
            open(DeviceChoice::Cuda).expect_err("no CUDA in this build"),
        ] {
            assert_eq!(error.exit(), crate::error::Exit::Preflight);
            let report = error.report();
            assert!(
                report.starts_with("error: DEVICE=cuda, but this build"),
                "{report}"
            );
            assert!(
                report.contains("\nhint: build with `cargo build"),
                "{report}"
            );
        }
        let (device, _) = open(DeviceChoice::Auto).expect("falls back to the CPU");
        assert!(device.is_cpu());
    }
}
