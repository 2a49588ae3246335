//! Why the clocks are below their maximum: `nvmlClocksEventReasons`, "throttle reasons" in NVML's older
//! headers.

use crate::record::validity::Taint;

/// Bits and their names, which are those of nvidia-smi's `clocks_event_reasons`.
const REASONS: [(u64, &str); 8] = [
    (0x02, "applications_clocks_setting"),
    (0x04, "sw_power_cap"),
    (0x08, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
];

/// The reasons that taint measurements. Settings of the user do not, nor does `sync_boost`, a group of cards
/// that the user has made.
const TAINTS: [(u64, Taint); 5] = [
    (0x04, Taint::SwPowerCap),
    (0x08, Taint::HwSlowdown),
    (0x20, Taint::SwThermal),
    (0x40, Taint::HwThermal),
    (0x80, Taint::HwPowerBrake),
];

/// Nothing runs on the card, so its clocks are low: no throttling.
const IDLE: u64 = 0x01;

/// The names of the reasons. A bit without a name is `bit_12`.
pub(super) fn names(bits: u64) -> Vec<String> {
    let name = |bit: u32| {
        let known = REASONS.iter().find(|(mask, _)| *mask == 1 << bit);
        known.map_or_else(|| format!("bit_{bit}"), |(_, name)| (*name).to_owned())
    };
    let reasons = bits & !IDLE;
    (0..u64::BITS)
        .filter(|bit| reasons & (1 << bit) != 0)
        .map(name)
        .collect()
}

/// What taints measurements.
pub(super) fn taints(bits: u64) -> Vec<Taint> {
    let set = TAINTS.iter().filter(|(mask, _)| bits & mask != 0);
    set.map(|(_, taint)| *taint).collect()
}
