//! NVML, the driver's management library: versions, memory and power. Loaded at run time; where it is
//! missing, everything here is unknown.

use std::sync::OnceLock;

use nvml_wrapper::{Device, Nvml};

/// Load of the GPU that a run uses, as far as NVML reports it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeviceLoad {
    /// GPU memory in use by all processes.
    pub memory_used_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub power_watts: Option<f64>,
}

/// PCI bus id of the card that this process opened.
static OPENED: OnceLock<String> = OnceLock::new();

/// The library. Loaded once, even if that fails.
fn library() -> Option<&'static Nvml> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    NVML.get_or_init(|| Nvml::init().ok()).as_ref()
}

/// Tells which card [`load`] reports on. NVML and CUDA number cards differently, and
/// `CUDA_VISIBLE_DEVICES` hides some: the PCI bus id is the same for both.
pub(crate) fn opened(pci_bus_id: &str) {
    // A process opens one card.
    let _ = OPENED.set(pci_bus_id.to_owned());
}

fn device() -> Option<Device<'static>> {
    let nvml = library()?;
    nvml.device_by_pci_bus_id(OPENED.get()?.as_str()).ok()
}

/// Current load of the opened GPU; all fields are `None` without one. Does not block a run.
pub(crate) fn load() -> DeviceLoad {
    let Some(device) = device() else {
        return DeviceLoad::default();
    };
    let memory = device.memory_info().ok();
    DeviceLoad {
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        power_watts: (device.power_usage().ok()).map(|milliwatts| f64::from(milliwatts) / 1000.0),
    }
}

/// Number of cards in this machine, visible to CUDA or not.
pub(crate) fn cards() -> Option<u32> {
    library()?.device_count().ok()
}

/// The driver's version, such as `580.65.06`: from NVML, or from the kernel module.
pub fn driver_version() -> Option<String> {
    let from_nvml = library().and_then(|nvml| nvml.sys_driver_version().ok());
    from_nvml.or_else(|| {
        let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
        module_version(&text)
    })
}

/// The version in the first line of the kernel module's file:
/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …`.
fn module_version(text: &str) -> Option<String> {
    text.lines()
        .next()?
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_modules_version_is_read() {
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 6\nGCC\n";
        assert_eq!(module_version(line).as_deref(), Some("580.65.06"));
        assert_eq!(module_version(""), None);
    }

    #[test]
    fn without_an_opened_card_the_load_is_unknown() {
        assert!(OPENED.get().is_some() || load() == DeviceLoad::default());
    }
}
