//! The device that a model runs on: the CPU, or the GPU that the NVIDIA driver shows.

pub(crate) mod info;
pub(crate) mod nvml;

use std::sync::Arc;

use super::cuda::driver::{
    Card, Gpu, MINIMUM_CAPABILITY, MINIMUM_DRIVER, cuda_version, minimum_cuda,
};
use crate::config::{Backend, DeviceChoice};
use crate::error::{Error, Result};
use crate::units::Bytes;

pub use info::DeviceInfo;
pub use nvml::{
    GpuMeter, GpuSample, GpuWatch, Reading as GpuReading, driver_version, read as read_gpu,
};

/// Where a model runs.
#[derive(Clone)]
pub(crate) enum Device {
    Cpu,
    Cuda(Arc<Gpu>),
}

/// An opened device.
pub(crate) struct Opened {
    pub(crate) device: Device,
    pub(crate) info: DeviceInfo,
    /// For the user: which device it is, and why. `None` if the CPU was asked for.
    pub(crate) note: Option<String>,
}

/// What the settings ask for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Cpu {
        /// Why, if `DEVICE` does not say so.
        reason: Option<String>,
    },
    Gpu {
        /// Whether it is an error if there is none.
        required: bool,
    },
}

/// Makes only GPU 0 visible, in the order of the PCI bus as `nvidia-smi` lists them, unless the user
/// has set `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`. The driver reads both once. It also loads
/// all kernels at the start: one that is loaded at its first launch would disturb the recording of a
/// graph. Must run before any thread is started.
pub fn prepare_process() {
    for (variable, value) in [
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("CUDA_VISIBLE_DEVICES", "0"),
        ("CUDA_MODULE_LOADING", "EAGER"),
    ] {
        if std::env::var_os(variable).is_none() {
            // SAFETY: `main` calls this first, while the process has one thread, so that nothing
            // reads the environment at the same time.
            unsafe { std::env::set_var(variable, value) };
        }
    }
}

/// The GPU that a run would use.
#[derive(Debug, Clone, Default)]
pub struct FoundGpu {
    /// Name, place, memory, compute capability, driver.
    pub description: String,
    pub reading: GpuReading,
}

/// Finds the GPU that a run would use, without setting anything up.
///
/// # Errors
/// Exit code 3 if none can be used.
pub fn find_gpu() -> Result<FoundGpu> {
    Card::find().map(|card| {
        let others = match card.visible {
            0 | 1 => String::new(),
            visible => format!(", the first of {visible} that are visible"),
        };
        FoundGpu {
            description: format!("{}{others}", described(&card)),
            reading: nvml::read_unopened(&card.pci_bus_id),
        }
    })
}

/// The oldest driver and card that can be used, as text.
pub fn gpu_minimum() -> String {
    let (major, minor) = MINIMUM_CAPABILITY;
    format!(
        "NVIDIA driver {MINIMUM_DRIVER} (CUDA {}), compute capability {major}.{minor}",
        minimum_cuda()
    )
}

fn described(card: &Card) -> String {
    let (major, minor) = card.capability;
    let driver = driver_version().map_or_else(String::new, |version| format!(" {version}"));
    format!(
        "{} at {}, {}, compute capability {major}.{minor}, driver{driver} (CUDA {})",
        card.name,
        card.pci_bus_id,
        Bytes(card.memory_bytes as u64),
        cuda_version(card.cuda)
    )
}

/// # Errors
/// Exit code 3 if device and backend exclude each other.
fn wish(choice: DeviceChoice, backend: Backend) -> Result<Wish> {
    let name = backend.as_str();
    Ok(match (choice, backend) {
        (DeviceChoice::Cpu, Backend::Cuda) => {
            return Err(Error::preflight("BACKEND=cuda computes on a GPU only")
                .hint("set DEVICE=cuda, or BACKEND=auto"));
        }
        (DeviceChoice::Cuda, Backend::Native | Backend::Candle | Backend::Generic) => {
            return Err(
                Error::preflight(format!("BACKEND={name} computes on the CPU only"))
                    .hint("set DEVICE=cpu, or BACKEND=auto"),
            );
        }
        (DeviceChoice::Cpu, _) => Wish::Cpu { reason: None },
        (DeviceChoice::Auto, Backend::Native | Backend::Candle | Backend::Generic) => Wish::Cpu {
            reason: Some(format!("BACKEND={name} computes on the CPU only")),
        },
        (DeviceChoice::Auto, Backend::Auto) => Wish::Gpu { required: false },
        (DeviceChoice::Cuda, _) | (DeviceChoice::Auto, Backend::Cuda) => {
            Wish::Gpu { required: true }
        }
    })
}

/// Checks whether the device can be used, without setting anything up.
///
/// # Errors
/// Exit code 3 if a GPU is required and none can be used, or if device and backend exclude each
/// other.
pub(crate) fn preflight(choice: DeviceChoice, backend: Backend) -> Result<()> {
    match wish(choice, backend)? {
        Wish::Gpu { required: true } => Card::find().map(drop),
        Wish::Gpu { required: false } | Wish::Cpu { .. } => Ok(()),
    }
}

/// Opens the device. `auto` takes the GPU if it can be used and `fits` says that the model can run
/// there; otherwise the CPU, and the note says why.
///
/// # Errors
/// Exit code 3 if a GPU is required and cannot be used, or if device and backend exclude each other.
pub(crate) fn open(
    choice: DeviceChoice,
    backend: Backend,
    fits: impl FnOnce(&Gpu) -> Result<()>,
) -> Result<Opened> {
    let required = match wish(choice, backend)? {
        Wish::Cpu { reason } => return Ok(Opened::cpu(reason)),
        Wish::Gpu { required } => required,
    };
    let opened = Gpu::open().and_then(|gpu| {
        fits(&gpu)?;
        Ok(gpu)
    });
    match opened {
        Ok(gpu) => Ok(Opened::gpu(gpu)),
        Err(error) if required => Err(error),
        Err(error) => Ok(Opened::cpu(Some(error.chain()))),
    }
}

impl Opened {
    fn cpu(reason: Option<String>) -> Self {
        let info = DeviceInfo::cpu();
        Self {
            device: Device::Cpu,
            note: reason.map(|reason| format!("Device CPU ({}): {reason}", info.name)),
            info,
        }
    }

    fn gpu(gpu: Gpu) -> Self {
        nvml::opened(&gpu.card().pci_bus_id);
        Self {
            info: gpu.info().clone(),
            note: Some(format!("Device {}", described(gpu.card()))),
            device: Device::Cuda(Arc::new(gpu)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    const ON_CPU: [Backend; 3] = [Backend::Native, Backend::Candle, Backend::Generic];

    #[test]
    fn the_cpu_is_always_available() {
        let opened = open(DeviceChoice::Cpu, Backend::Auto, |_| Ok(())).expect("a CPU");
        assert!(matches!(opened.device, Device::Cpu));
        assert_eq!(opened.info.kind, "cpu");
        assert_eq!(opened.note, None);
        assert!(preflight(DeviceChoice::Auto, Backend::Auto).is_ok());
    }

    #[test]
    fn device_and_backend_that_exclude_each_other_are_refused() {
        let refused = |choice, backend: Backend| {
            let error = wish(choice, backend).expect_err(backend.as_str());
            assert_eq!(error.exit(), Exit::Preflight);
            assert_eq!(
                preflight(choice, backend).map_err(|e| e.report()),
                Err(error.report())
            );
            error.report()
        };
        for backend in ON_CPU {
            assert_eq!(
                refused(DeviceChoice::Cuda, backend),
                format!(
                    "error: BACKEND={} computes on the CPU only\nhint: set DEVICE=cpu, or BACKEND=auto",
                    backend.as_str()
                )
            );
        }
        assert!(refused(DeviceChoice::Cpu, Backend::Cuda).contains("hint: set DEVICE=cuda"));
    }

    #[test]
    fn only_auto_may_take_the_cpu_instead() {
        for (choice, backend, required) in [
            (DeviceChoice::Auto, Backend::Auto, false),
            (DeviceChoice::Auto, Backend::Cuda, true),
            (DeviceChoice::Cuda, Backend::Auto, true),
            (DeviceChoice::Cuda, Backend::Cuda, true),
        ] {
            assert_eq!(wish(choice, backend).ok(), Some(Wish::Gpu { required }));
        }
    }

    #[test]
    fn auto_takes_the_cpu_and_says_why() {
        for backend in ON_CPU {
            let opened = open(DeviceChoice::Auto, backend, |_| Ok(())).expect("a CPU");
            let note = opened.note.expect("a reason");
            let end = format!("): BACKEND={} computes on the CPU only", backend.as_str());
            assert!(
                note.starts_with("Device CPU (") && note.ends_with(&end),
                "{note}"
            );
        }
        // Without a driver the reason is that; with one, that the model does not fit.
        let opened = open(DeviceChoice::Auto, Backend::Auto, |_| {
            Err(Error::preflight("the model does not fit"))
        });
        let opened = opened.expect("a CPU");
        assert!(matches!(opened.device, Device::Cpu));
        let reason = match Card::find() {
            Ok(_) => "the model does not fit".to_owned(),
            Err(error) => error.chain(),
        };
        let note = opened.note.expect("a reason");
        assert!(note.ends_with(&format!("): {reason}")), "{note}");
    }
}
