//! What the card is.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;

use super::library::{self, known};
use crate::record::gpu::{GpuCard, Missing};

/// MIG splits the card into instances, which other jobs may use.
pub(super) fn has_mig(device: &Device) -> bool {
    device.mig_mode().is_ok_and(|mode| mode.current != 0)
}

pub(super) fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

/// The card that this process uses. Unknown fields are in `missing`.
pub(super) fn describe(missing: &mut Missing) -> GpuCard {
    let Some(pci_bus_id) = library::opened_card() else {
        return GpuCard::default();
    };
    let device = match library::device(pci_bus_id) {
        Ok(device) => device,
        Err(reason) => {
            missing.insert("nvml".to_owned(), reason);
            return GpuCard {
                pci_bus_id: Some(pci_bus_id.to_owned()),
                driver: library::driver_version(),
                ..GpuCard::default()
            };
        }
    };
    let driver = library::driver_version();
    if driver.is_none() {
        let reason = "neither NVML nor the kernel module tells it";
        missing.insert("driver".to_owned(), reason.to_owned());
    }
    let mut clock = |field, clock| known(missing, field, device.max_clock_info(clock));
    let (max_clock_sm_mhz, max_clock_memory_mhz) = (
        clock("max_clock_sm_mhz", Clock::SM),
        clock("max_clock_memory_mhz", Clock::Memory),
    );
    let memory = known(missing, "memory_bytes", device.memory_info());
    let limit = known(missing, "power_limit_watts", device.enforced_power_limit());
    let ecc = known(missing, "ecc", device.is_ecc_enabled());
    GpuCard {
        pci_bus_id: Some(pci_bus_id.to_owned()),
        driver,
        uuid: known(missing, "uuid", device.uuid()),
        memory_bytes: memory.map(|memory| memory.total),
        power_limit_watts: limit.map(watts),
        max_clock_sm_mhz,
        max_clock_memory_mhz,
        mig: known(missing, "mig", mig(&device)),
        persistence: known(missing, "persistence", device.is_in_persistent_mode()),
        ecc: ecc.map(|ecc| ecc.currently_enabled),
    }
}

fn mig(device: &Device) -> Result<String, NvmlError> {
    let mode = match device.mig_mode() {
        Ok(mode) if mode.current != 0 => "on",
        Ok(_) => "off",
        Err(NvmlError::NotSupported) => "unsupported",
        Err(error) => return Err(error),
    };
    Ok(mode.to_owned())
}
