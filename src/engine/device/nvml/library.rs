//! The library, and the card that this process uses.

use std::sync::OnceLock;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::record::gpu::Missing;

/// PCI bus id of the card that this process opened.
static OPENED: OnceLock<String> = OnceLock::new();

/// The library, or why it cannot be used. Loaded once, even if that fails.
fn library() -> Result<&'static Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    let loaded = NVML.get_or_init(|| Nvml::init().map_err(reason));
    loaded.as_ref().map_err(Clone::clone)
}

/// What NVML says of a call that failed.
fn reason(error: NvmlError) -> String {
    match error {
        // The loader's text says all.
        NvmlError::LibloadingError(source) => source.to_string(),
        NvmlError::FailedToLoadSymbol(text) => text,
        error => error.to_string(),
    }
}

/// Tells which card [`super::read`] reads. NVML and CUDA number cards differently, and
/// `CUDA_VISIBLE_DEVICES` hides some: the PCI bus id is the same for both.
pub(crate) fn opened(pci_bus_id: &str) {
    // A process opens one card.
    let _ = OPENED.set(pci_bus_id.to_owned());
}

/// PCI bus id of the card that this process opened; `None` if it opened none.
pub(super) fn opened_card() -> Option<&'static str> {
    OPENED.get().map(String::as_str)
}

/// NVML's handle of a card.
///
/// # Errors
/// NVML's reason, if the library or the card cannot be used.
pub(super) fn device(pci_bus_id: &str) -> Result<Device<'static>, String> {
    let found = library()?.device_by_pci_bus_id(pci_bus_id);
    found.map_err(|error| format!("{pci_bus_id}: {}", reason(error)))
}

/// The value of a field, or `None` and NVML's reason in `missing`.
pub(super) fn known<T>(
    missing: &mut Missing,
    field: &str,
    answer: Result<T, NvmlError>,
) -> Option<T> {
    let unknown = |error| missing.insert(field.to_owned(), reason(error));
    answer.map_err(unknown).ok()
}

/// Number of cards in this machine, visible to CUDA or not.
pub(crate) fn cards() -> Option<u32> {
    library().ok()?.device_count().ok()
}

/// The driver's version, such as `580.65.06`: from NVML, or from the kernel module.
pub fn driver_version() -> Option<String> {
    let from_nvml = library().and_then(|nvml| nvml.sys_driver_version().map_err(reason));
    from_nvml.ok().or_else(|| {
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
    fn an_unknown_field_has_nvmls_reason() {
        let mut missing = Missing::new();
        assert_eq!(known(&mut missing, "power_watts", Ok(70)), Some(70));
        assert!(missing.is_empty());
        let answer: Result<u32, _> = Err(NvmlError::NotSupported);
        assert_eq!(known(&mut missing, "power_watts", answer), None);
        assert_eq!(
            missing["power_watts"],
            "the requested operation is not available on the target device"
        );
    }
}
