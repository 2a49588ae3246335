//! What was watched while a run went on: why measurements may be invalid, and what watching cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gpu::Missing;

/// Why a measurement may not be what the machine can do. `docs/validity.md` has the thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
// In the order of their names, in which lists of them are sorted.
pub enum Taint {
    /// The wall clock moved against the monotonic clock: it was set, or the machine was suspended.
    ClockJump,
    /// Tasks waited for a processor because others used them.
    CpuPressure,
    /// The processors ran slower than earlier in the run.
    Frequency,
    /// The driver's management library says that the GPU is lost.
    GpuLost,
    /// An external power brake halved the GPU's clocks, or more.
    HwPowerBrake,
    /// The GPU's hardware halved its clocks, or more.
    HwSlowdown,
    /// As `hw_slowdown`, for heat.
    HwThermal,
    /// Tasks waited for memory.
    MemoryPressure,
    /// Another process had a context on the GPU.
    OtherProcess,
    /// Other processes used the processors.
    OtherProcesses,
    /// The hypervisor gave processor time to other virtual machines.
    Steal,
    /// The GPU's clocks were lowered to hold its power limit.
    SwPowerCap,
    /// The GPU's clocks were lowered for heat.
    SwThermal,
}

impl Taint {
    pub const ALL: [Self; 13] = [
        Self::ClockJump,
        Self::CpuPressure,
        Self::Frequency,
        Self::GpuLost,
        Self::HwPowerBrake,
        Self::HwSlowdown,
        Self::HwThermal,
        Self::MemoryPressure,
        Self::OtherProcess,
        Self::OtherProcesses,
        Self::Steal,
        Self::SwPowerCap,
        Self::SwThermal,
    ];

    /// The name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClockJump => "clock_jump",
            Self::CpuPressure => "cpu_pressure",
            Self::Frequency => "frequency",
            Self::GpuLost => "gpu_lost",
            Self::HwPowerBrake => "hw_power_brake",
            Self::HwSlowdown => "hw_slowdown",
            Self::HwThermal => "hw_thermal",
            Self::MemoryPressure => "memory_pressure",
            Self::OtherProcess => "other_process",
            Self::OtherProcesses => "other_processes",
            Self::Steal => "steal",
            Self::SwPowerCap => "sw_power_cap",
            Self::SwThermal => "sw_thermal",
        }
    }
}

/// A thread of the program has read the machine ten times a second, or less often where that takes more than
/// 0.1 % of a processor, from before the engine's start until after the last flow. Times are in milliseconds from the start of the benchmark.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ValidityRecord {
    /// Number of readings.
    pub samples: usize,
    /// Longest time between two readings; much above 100 where the thread was not given a processor, or a
    /// reading took long.
    pub longest_gap_ms: f64,
    /// Processor time of the thread; `null` if it cannot be read.
    pub cpu_ms: Option<f64>,
    /// `cpu_ms` over the time that the thread has lived: the share of one processor.
    pub cost_share: Option<f64>,
    /// When measurements were tainted, one entry per reason. A step or a workflow that overlaps an interval
    /// has the reason in its `tainted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<TaintRecord>,
    /// What could not be read, and why: `energy`, `gpu`, `rapl`, `stat`, `own_time`, `cpu_pressure`,
    /// `memory_pressure`, `frequency`, or a field of the GPU's readings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: Missing,
    /// The readings, thinned to at most 2,000 points; `null` while the run is in progress.
    #[serde(default)]
    pub series: Option<SeriesRecord>,
}

/// A reason, and when it held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TaintRecord {
    pub reason: Taint,
    /// Sum of the intervals.
    pub total_ms: f64,
    /// In order. A condition that was there at a reading counts from the
    /// reading before until the one after. Of more than 200 intervals, those with the shortest gaps between
    /// them are joined.
    pub intervals: Vec<TaintInterval>,
}

/// In milliseconds from the start of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TaintInterval {
    pub start_ms: f64,
    pub end_ms: f64,
}

/// Readings over time, as columns of the same length. A point is the mean of the readings that it stands for;
/// `null` where there was none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeriesRecord {
    /// Time of the point.
    pub ms: Vec<f64>,
    /// Power of what `energy.source` measures: the GPU, or the processors' packages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub power_watts: Vec<Option<f64>>,
    /// Clock of the GPU's multiprocessors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_clock_mhz: Vec<Option<f64>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_temperature_celsius: Vec<Option<f64>>,
    /// Memory of the GPU that is in use, by all processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_memory_bytes: Vec<Option<f64>>,
    /// Share of the processors that other processes used, 0 to 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others_share: Vec<Option<f64>>,
    /// Share of the processors' time that the hypervisor gave to other virtual machines, 0 to 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steal_share: Vec<Option<f64>>,
    /// Highest clock of a processor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_clock_mhz: Vec<Option<f64>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_sort_by_their_names() {
        let names = Taint::ALL.map(Taint::as_str);
        assert!(names.is_sorted());
        assert!(Taint::ALL.is_sorted());
        for taint in Taint::ALL {
            let text = serde_json::to_string(&taint).expect("a name");
            assert_eq!(text, format!("\"{}\"", taint.as_str()));
        }
    }
}
