//! CUDA builds: finds, opens and describes the GPU. Only one GPU is used: device 0 of those that
//! `CUDA_VISIBLE_DEVICES` leaves visible.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use candle_core::Device;
use candle_core::cuda_backend::CudaError;
use cudarc::driver::{CudaContext, DriverError};
use nvml_wrapper::Nvml;

use super::{DeviceInfo, DeviceLoad};
use crate::error::{Error, Result};

/// Compute capability that the kernels were compiled for, such as `90`. `run.sh` sets it from the
/// installed card.
const BUILT_FOR: Option<&str> = option_env!("CUDA_COMPUTE_CAP");

const HINT: &str = "`nvidia-smi` shows the driver and its GPUs; CUDA_VISIBLE_DEVICES must name one of them, and `bash run.sh doctor` says what is missing. DEVICE=cpu runs without a GPU";

/// Makes only GPU 0 visible unless the user has set `CUDA_VISIBLE_DEVICES`. Must run before the
/// first CUDA call and before any thread is started.
pub fn prepare_process() {
    const VARIABLE: &str = "CUDA_VISIBLE_DEVICES";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: `main` calls this first, while the process has one thread, so that nothing reads
        // the environment at the same time.
        unsafe { std::env::set_var(VARIABLE, "0") };
    }
}

/// Whether a driver responds and shows a GPU.
pub(super) fn is_visible() -> bool {
    matches!(device_count(), Ok(1..))
}

pub(super) fn preflight() -> Result<()> {
    match device_count() {
        Ok(1..) => Ok(()),
        Ok(_) => Err(Error::preflight("no GPU is visible to CUDA").hint(HINT)),
        Err(reason) => Err(Error::preflight(format!("CUDA cannot be used: {reason}")).hint(HINT)),
    }
}

pub(super) fn open() -> Result<(Device, DeviceInfo)> {
    preflight()?;
    let device = guard(|| Device::new_cuda(0).map_err(|error| explain(&error)))
        .map_err(|reason| Error::preflight(format!("failed to open GPU 0: {reason}")).hint(HINT))?;
    let info = describe(&device).map_err(|reason| {
        Error::preflight(format!("failed to query GPU 0: {reason}")).hint(HINT)
    })?;
    check_architecture(info.compute_capability.as_deref(), BUILT_FOR)?;
    Ok((device, info))
}

/// candle's quantized kernels contain machine code for one architecture, and candle does not check
/// their launches: on another card they would return garbage without an error.
fn check_architecture(card: Option<&str>, built_for: Option<&str>) -> Result<()> {
    let plain = |text: &str| text.replace('.', "");
    match (card, built_for) {
        (Some(card), Some(built)) if plain(card) != plain(built) => Err(Error::preflight(format!(
            "this build has kernels for compute capability {built}, the GPU has {card}"
        ))
        .hint(format!(
            "rebuild with CUDA_COMPUTE_CAP={} (`bash run.sh` does this automatically)",
            plain(card)
        ))),
        _ => Ok(()),
    }
}

fn describe(device: &Device) -> std::result::Result<DeviceInfo, String> {
    let cuda = device.as_cuda_device().map_err(|error| explain(&error))?;
    let stream = cuda.cuda_stream();
    let context = stream.context();
    let text = |error: DriverError| format!("{:?}", error.0);
    let (major, minor) = context.compute_capability().map_err(text)?;
    Ok(DeviceInfo {
        kind: "cuda".to_owned(),
        name: context.name().map_err(text)?,
        compute_capability: Some(format!("{major}.{minor}")),
        // NVML ships with the driver. Without it the driver version is unknown.
        driver: Nvml::init().and_then(|nvml| nvml.sys_driver_version()).ok(),
        memory_bytes: Some(context.total_mem().map_err(text)? as u64),
    })
}

/// Memory and power of the visible GPU. NVML is loaded only once, even if that fails.
///
/// NVML numbers cards in PCI bus order; CUDA does so only with `CUDA_DEVICE_ORDER=PCI_BUS_ID`. On a
/// machine with different cards, select one by its UUID.
pub(super) fn load() -> DeviceLoad {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let nvml = NVML.get_or_init(|| Nvml::init().ok());
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let first = visible.split(',').next().unwrap_or_default().trim();
    let device = nvml.as_ref().and_then(|nvml| match first.parse::<u32>() {
        Ok(index) => nvml.device_by_index(index).ok(),
        Err(_) if first.is_empty() => nvml.device_by_index(0).ok(),
        Err(_) => nvml.device_by_uuid(first).ok(),
    });
    let Some(device) = device else {
        return DeviceLoad::default();
    };
    let memory = device.memory_info().ok();
    DeviceLoad {
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        power_watts: (device.power_usage().ok()).map(|milliwatts| f64::from(milliwatts) / 1000.0),
    }
}

/// The number of GPUs the driver shows, or why it does not respond.
fn device_count() -> std::result::Result<i32, String> {
    guard(|| {
        CudaContext::device_count().map_err(|DriverError(code)| {
            use cudarc::driver::sys::CUresult;
            match code {
                CUresult::CUDA_ERROR_NO_DEVICE => "no GPU is visible".to_owned(),
                CUresult::CUDA_ERROR_STUB_LIBRARY => {
                    "libcuda is the toolkit's stub, not a driver".to_owned()
                }
                code => format!("{code:?}"),
            }
        })
    })
}

/// Turns a panic in the CUDA bindings into an error: they can panic as well as fail.
fn guard<T>(
    call: impl FnOnce() -> std::result::Result<T, String>,
) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the CUDA bindings panicked".to_owned()))
}

/// Prefers the driver's error code: candle's message can contain a whole backtrace.
fn explain(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => explain(inner),
        candle_core::Error::Cuda(inner) => match inner.downcast_ref::<CudaError>() {
            Some(CudaError::Cuda(DriverError(code))) => format!("{code:?}"),
            Some(other) => other.to_string(),
            None => inner.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_of_another_architecture_is_refused() {
        assert!(check_architecture(Some("9.0"), Some("90")).is_ok());
        assert!(check_architecture(Some("8.9"), None).is_ok());
        let error = check_architecture(Some("8.9"), Some("90")).expect_err("not the same");
        assert!(
            error
                .hint_text()
                .is_some_and(|hint| hint.contains("CUDA_COMPUTE_CAP=89"))
        );
    }

    #[test]
    fn a_panic_in_the_bindings_becomes_an_error() {
        let result: std::result::Result<(), String> = guard(|| panic!("as cudarc can"));
        assert!(result.is_err());
    }
}
