//! The device that a model runs on. `cuda.rs` and `none.rs` provide the same functions, so no other
//! file depends on whether this build has CUDA.

#[cfg_attr(feature = "cuda", path = "cuda.rs")]
#[cfg_attr(not(feature = "cuda"), path = "none.rs")]
mod gpu;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::config::DeviceChoice;
use crate::environment;
use crate::error::Result;

pub use gpu::prepare_process;

/// The device that a model runs on, as recorded in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu`, `cuda`, or `none` (scripted and remote engines compute nothing here).
    pub kind: String,
    /// Name of the card or the processor.
    pub name: String,
    /// Compute capability of the card, such as `9.0`.
    pub compute_capability: Option<String>,
    pub driver: Option<String>,
    pub memory_bytes: Option<u64>,
}

impl DeviceInfo {
    /// For engines that compute nothing in this process.
    pub fn none() -> Self {
        Self {
            kind: "none".to_owned(),
            name: "none".to_owned(),
            compute_capability: None,
            driver: None,
            memory_bytes: None,
        }
    }

    fn cpu() -> Self {
        Self {
            kind: "cpu".to_owned(),
            name: environment::cpu_name(),
            compute_capability: None,
            driver: None,
            memory_bytes: Some(environment::memory_bytes()),
        }
    }
}

/// Current load of the GPU, as far as NVML reports it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeviceLoad {
    /// GPU memory in use by all processes.
    pub memory_used_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub power_watts: Option<f64>,
}

/// Current load of the GPU; all fields are `None` without one. Does not block a run.
pub fn device_load() -> DeviceLoad {
    gpu::load()
}

pub const BUILD_HAS_CUDA: bool = cfg!(feature = "cuda");

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

/// Version of the NVIDIA kernel module, if one is loaded. Works without CUDA.
pub fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …`
    text.lines()
        .next()?
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
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

    #[cfg(not(feature = "cuda"))]
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
