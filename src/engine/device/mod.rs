//! The device that a model runs on. `cuda.rs` or `none.rs` stands behind the same names, so that no
//! other file knows whether this build has CUDA.

#[cfg_attr(feature = "cuda", path = "cuda.rs")]
#[cfg_attr(not(feature = "cuda"), path = "none.rs")]
mod gpu;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::config::DeviceChoice;
use crate::environment;
use crate::error::Result;

pub use gpu::prepare_process;

/// The device that a model runs on, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu`, `cuda`, or `none` (nothing is computed).
    pub kind: String,
    /// The card's or the processor's name.
    pub name: String,
    /// Compute capability of the card, as `9.0`.
    pub compute_capability: Option<String>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// The device's memory in bytes.
    pub memory_bytes: Option<u64>,
}

impl DeviceInfo {
    /// Where nothing is computed: recorded answers.
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

/// What a GPU is at, as far as its driver's library (NVML) tells.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeviceLoad {
    /// Its memory in use, of all processes, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Power that it draws, in watts.
    pub power_watts: Option<f64>,
}

/// Asks what the GPU is at; nothing is known without one. No run is held up by that.
pub fn device_load() -> DeviceLoad {
    gpu::load()
}

/// Whether this build can use a GPU at all.
pub const BUILD_HAS_CUDA: bool = cfg!(feature = "cuda");

/// Says what keeps `choice` from being had, without setting anything up.
///
/// # Errors
/// Exit code 3 where a GPU is asked for and none can be used.
pub(crate) fn preflight(choice: DeviceChoice) -> Result<()> {
    match choice {
        DeviceChoice::Cuda => gpu::preflight(),
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
    }
}

/// What keeps a GPU from being used, without setting anything up.
///
/// # Errors
/// Exit code 3 where none can be used.
pub fn preflight_gpu() -> Result<()> {
    gpu::preflight()
}

/// Version of the NVIDIA driver's kernel module, if one is loaded; it can be asked without CUDA.
pub fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …`
    text.lines()
        .next()?
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
}

/// Opens the device. `auto` takes the GPU where this build and this machine have one; a GPU that is
/// there and fails is an error, never a silent run on the CPU.
///
/// # Errors
/// Exit code 3 where the device cannot be had.
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
    fn the_cpu_can_always_be_had() {
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
        let (device, _) = open(DeviceChoice::Auto).expect("falls to the CPU");
        assert!(device.is_cpu());
    }
}
