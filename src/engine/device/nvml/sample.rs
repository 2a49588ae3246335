//! Readings that are cheap enough to be taken ten times a second while a run goes on.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::library::{self, known};
use super::reading::{others, throttle_bits};
use super::{card, throttle};
use crate::record::gpu::Missing;
use crate::record::validity::Taint;

/// What the card does at a moment. What is unknown is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuSample {
    /// Counter of the energy since the driver was loaded.
    pub energy_joules: Option<f64>,
    pub power_watts: Option<f64>,
    pub clock_sm_mhz: Option<f64>,
    /// In readings in full only.
    pub temperature_celsius: Option<f64>,
    /// In readings in full only.
    pub memory_used_bytes: Option<f64>,
    /// What taints measurements, sorted. Other processes are as in the last reading in full.
    pub taints: Vec<Taint>,
    /// Why fields are `None`.
    pub missing: Missing,
}

/// Reads the card that this process uses.
#[derive(Debug, Default)]
pub struct GpuWatch {
    device: Option<Device<'static>>,
    /// MIG: power and energy are of the whole card only.
    mig: bool,
    is_shared: bool,
    is_lost: bool,
}

impl GpuWatch {
    /// Reads the card; `None` while the process has opened none. `in_full`: also what changes slowly or takes
    /// longer to read: temperature, memory, and other processes.
    pub fn read(&mut self, in_full: bool) -> Option<GpuSample> {
        let pci_bus_id = library::opened_card()?;
        let mut missing = Missing::new();
        if self.device.is_none() {
            match library::device(pci_bus_id) {
                Ok(device) => {
                    self.mig = card::has_mig(&device);
                    self.device = Some(device);
                }
                Err(reason) => drop(missing.insert("gpu".to_owned(), reason)),
            }
        }
        let Some(device) = &self.device else {
            return Some(GpuSample {
                missing,
                ..GpuSample::default()
            });
        };
        let mut lost = false;
        let mut sample = GpuSample::default();
        let bits = checked(&mut lost, throttle_bits(device));
        let bits = known(&mut missing, "throttle", bits).unwrap_or_default();
        sample.taints = throttle::taints(bits);
        let clock = checked(&mut lost, device.clock_info(Clock::SM));
        sample.clock_sm_mhz = known(&mut missing, "clock_sm_mhz", clock).map(f64::from);
        if self.mig {
            let reason = "MIG is on, and NVML has it for the whole card only";
            for field in ["power_watts", "energy_millijoules"] {
                missing.insert(field.to_owned(), reason.to_owned());
            }
        } else {
            let power = checked(&mut lost, device.power_usage());
            sample.power_watts = known(&mut missing, "power_watts", power).map(card::watts);
            let energy = checked(&mut lost, device.total_energy_consumption());
            let energy = known(&mut missing, "energy_millijoules", energy);
            sample.energy_joules = energy.map(|millijoules| millijoules as f64 / 1e3);
        }
        if in_full {
            let temperature = checked(&mut lost, device.temperature(TemperatureSensor::Gpu));
            let temperature = known(&mut missing, "temperature_celsius", temperature);
            sample.temperature_celsius = temperature.map(f64::from);
            let memory = checked(&mut lost, device.memory_info());
            let memory = known(&mut missing, "memory_used_bytes", memory);
            sample.memory_used_bytes = memory.map(|memory| memory.used as f64);
            let others = others(&mut missing, device, true);
            self.is_shared = others.is_some_and(|others| !others.is_empty());
        }
        // A card does not come back, whatever a later call says.
        self.is_lost |= lost;
        let further = [
            (Taint::OtherProcess, self.is_shared),
            (Taint::GpuLost, self.is_lost),
        ];
        let further = further.into_iter().filter(|(_, holds)| *holds);
        sample.taints.extend(further.map(|(taint, _)| taint));
        sample.taints.sort_unstable();
        sample.missing = missing;
        Some(sample)
    }
}

/// Notes whether the card is lost.
fn checked<T>(lost: &mut bool, answer: Result<T, NvmlError>) -> Result<T, NvmlError> {
    *lost |= matches!(answer, Err(NvmlError::GpuLost));
    answer
}
