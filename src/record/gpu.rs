//! The GPU of a run, as NVML, the driver's management library, reports it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is unknown, by the name of the field, and why.
pub type Missing = BTreeMap<String, String>;

/// The card, and what it did between two readings: one after the start of the engine, one after the last
/// flow. With an engine per workflow, the first reading follows the first start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GpuRecord {
    pub card: GpuCard,
    /// After the start of the engine.
    pub start: GpuReading,
    /// After the last flow; `null` while the run is in progress.
    pub end: Option<GpuReading>,
    /// Seconds between the two readings.
    pub seconds: Option<f64>,
    /// Energy of the whole card between the two readings, with its idle power and all other processes:
    /// the difference of its counter, which moves in steps of some tens of milliseconds.
    pub energy_joules: Option<f64>,
    /// Throttle reasons of both readings. What came and went in between is not in it.
    pub throttle: Vec<String>,
    /// Other processes of both readings, by process ID.
    pub other_processes: Vec<GpuProcess>,
    /// Why fields are `null` or empty; `nvml`: the library cannot be used, so that nothing is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: Missing,
}

/// What does not change during a run. Unknown fields are `null`; `missing` of the record says why.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GpuCard {
    pub pci_bus_id: Option<String>,
    /// The card's unique identifier, `GPU-…`.
    pub uuid: Option<String>,
    /// Version of the driver, such as `580.65.06`.
    pub driver: Option<String>,
    /// Memory of the card in bytes, including what the driver reserves.
    pub memory_bytes: Option<u64>,
    /// The limit that the driver enforces.
    pub power_limit_watts: Option<f64>,
    pub max_clock_sm_mhz: Option<u32>,
    pub max_clock_memory_mhz: Option<u32>,
    /// Multi-instance GPU: `on`, `off`, or `unsupported` by the card.
    pub mig: Option<String>,
    /// Whether the driver stays loaded while no process uses the card.
    pub persistence: Option<bool>,
    /// Whether the memory has error correction.
    pub ecc: Option<bool>,
}

/// A reading of the card. Unknown fields are `null`. Where MIG is on, power, energy and utilization are
/// unknown: the driver has them for the whole card only.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GpuReading {
    /// Memory of the whole card that is in use, by all processes.
    pub memory_used_bytes: Option<u64>,
    pub power_watts: Option<f64>,
    /// Counter of the energy since the driver was loaded, in millijoules.
    pub energy_millijoules: Option<u64>,
    /// Current clock of the multiprocessors.
    pub clock_sm_mhz: Option<u32>,
    pub clock_memory_mhz: Option<u32>,
    pub temperature_celsius: Option<u32>,
    /// Share of the driver's last sample period (1/6 s to 1 s) in which a kernel ran.
    pub utilization_percent: Option<u32>,
    /// What keeps the clocks from their maximum, other than idleness: `sw_power_cap`, `hw_slowdown`,
    /// `sw_thermal_slowdown`, `hw_thermal_slowdown`, `hw_power_brake_slowdown`, `sync_boost`, and, as the
    /// user has set them, `applications_clocks_setting`, `display_clock_setting`.
    pub throttle: Option<Vec<String>>,
    /// Other processes with a context on the card.
    pub other_processes: Option<Vec<GpuProcess>>,
}

/// A process that uses the card.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GpuProcess {
    pub pid: u32,
    /// `null` if the driver does not tell.
    pub memory_bytes: Option<u64>,
}

/// Whether a throttle reason is a setting of the user, and not a limit of power or heat.
pub fn is_setting(throttle_reason: &str) -> bool {
    throttle_reason.ends_with("_setting")
}
