//! What the card does at a moment.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::{Bits, NvmlError};

use super::library::{self, known};
use super::{card, processes, throttle};
use crate::record::gpu::{GpuProcess, GpuReading, Missing};

/// A reading, and why parts of it are unknown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    pub values: GpuReading,
    /// Memory of the card in bytes, including what the driver reserves.
    pub memory_bytes: Option<u64>,
    /// Whether the card is split into instances.
    pub mig: bool,
    /// By the name of the field; `nvml` if the library cannot be used.
    pub missing: Missing,
}

/// Reads the card that this process uses; `None` without one. About a dozen calls of NVML, which do not
/// disturb the card. May be called from any thread.
pub fn read() -> Option<Reading> {
    let pci_bus_id = library::opened_card()?;
    Some(read_card(pci_bus_id, true))
}

/// Reads a card that this process has not opened.
pub(crate) fn read_unopened(pci_bus_id: &str) -> Reading {
    read_card(pci_bus_id, false)
}

fn read_card(pci_bus_id: &str, uses_the_card: bool) -> Reading {
    match library::device(pci_bus_id) {
        Ok(device) => read_device(&device, uses_the_card),
        Err(reason) => Reading {
            missing: [("nvml".to_owned(), reason)].into(),
            ..Reading::default()
        },
    }
}

fn read_device(device: &Device, uses_the_card: bool) -> Reading {
    let mut missing = Missing::new();
    let memory = known(&mut missing, "memory_used_bytes", device.memory_info());
    let mut clock = |field, clock| known(&mut missing, field, device.clock_info(clock));
    let (clock_sm_mhz, clock_memory_mhz) = (
        clock("clock_sm_mhz", Clock::SM),
        clock("clock_memory_mhz", Clock::Memory),
    );
    let temperature = device.temperature(TemperatureSensor::Gpu);
    let mut values = GpuReading {
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        clock_sm_mhz,
        clock_memory_mhz,
        temperature_celsius: known(&mut missing, "temperature_celsius", temperature),
        throttle: known(&mut missing, "throttle", throttle_bits(device)).map(throttle::names),
        other_processes: others(&mut missing, device, uses_the_card),
        ..GpuReading::default()
    };
    let mig = card::has_mig(device);
    if mig {
        for field in ["power_watts", "energy_millijoules", "utilization_percent"] {
            let reason = "MIG is on, and NVML has it for the whole card only";
            missing.insert(field.to_owned(), reason.to_owned());
        }
    } else {
        let milliwatts = known(&mut missing, "power_watts", device.power_usage());
        let energy = device.total_energy_consumption();
        let utilization = device.utilization_rates();
        values.power_watts = milliwatts.map(card::watts);
        values.energy_millijoules = known(&mut missing, "energy_millijoules", energy);
        values.utilization_percent =
            known(&mut missing, "utilization_percent", utilization).map(|rates| rates.gpu);
    }
    Reading {
        values,
        memory_bytes: memory.map(|memory| memory.total),
        mig,
        missing,
    }
}

/// The bits of the throttle reasons, also those that the wrapper does not know.
pub(super) fn throttle_bits(device: &Device) -> Result<u64, NvmlError> {
    match device.current_throttle_reasons_strict() {
        Err(NvmlError::IncorrectBits(Bits::U64(bits))) => Ok(bits),
        reasons => reasons.map(|reasons| reasons.bits()),
    }
}

/// Other processes with a context on the card.
pub(super) fn others(
    missing: &mut Missing,
    device: &Device,
    uses_the_card: bool,
) -> Option<Vec<GpuProcess>> {
    let field = "other_processes";
    let computing = known(missing, field, device.running_compute_processes())?;
    // Cards without a display have none, and need not answer.
    let drawing = device.running_graphics_processes().unwrap_or_default();
    let listed = processes::united(computing.iter().chain(&drawing).map(processes::process));
    let others = processes::others(listed, std::process::id(), uses_the_card);
    others
        .map_err(|reason| missing.insert(field.to_owned(), reason))
        .ok()
}
