//! Checks the GPU: whether a run can use one, and what would disturb it there.

use super::Check;
use crate::config::DeviceChoice;
use crate::engine::{self, FoundGpu, GpuReading};
use crate::error::Result;
use crate::record::gpu::is_setting;
use crate::report::gpu::processes;
use crate::units::Bytes;

/// Which GPU a run would use, or why none. `has_driver`: whether the system runs NVIDIA's kernel module.
pub(super) fn checks(
    choice: DeviceChoice,
    has_driver: bool,
    found: Result<FoundGpu>,
) -> Vec<Check> {
    let error = match found {
        Ok(found) => {
            let minimum = engine::gpu_minimum();
            let finding = format!("{}; needed: {minimum} or later", found.description);
            let mut checks = vec![Check::ok("gpu", finding)];
            checks.extend(use_of(&found.reading));
            return checks;
        }
        Err(error) => error,
    };
    let hint = error.hint_text().unwrap_or("set DEVICE=cpu").to_owned();
    vec![match choice {
        DeviceChoice::Cuda => Check::fail("gpu", error.chain(), hint),
        DeviceChoice::Auto if has_driver => Check::warn("gpu", error.chain(), hint),
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            Check::ok("gpu", format!("{error}: runs on the CPU"))
        }
    }]
}

/// What the card does now: a line, and a warning for each thing that would disturb a run.
fn use_of(reading: &GpuReading) -> Vec<Check> {
    if let Some(reason) = reading.missing.get("nvml") {
        return vec![Check::warn(
            "nvml",
            format!("cannot be used: {reason}"),
            "a run has no energy, clocks or throttle reasons of the GPU; `nvidia-smi` needs the same library",
        )];
    }
    let values = &reading.values;
    let now = [
        (values.memory_used_bytes.zip(reading.memory_bytes))
            .map(|(used, all)| format!("{} of {} in use", Bytes(used), Bytes(all))),
        values.power_watts.map(|watts| format!("{watts:.0} W")),
        values.temperature_celsius.map(|heat| format!("{heat} °C")),
        values
            .utilization_percent
            .map(|share| format!("{share} % busy")),
    ];
    let now: Vec<String> = now.into_iter().flatten().collect();
    let mut checks = vec![Check::ok("nvml", now.join(", "))];
    let limits = values.throttle.iter().flatten();
    let limits: Vec<&str> = limits
        .map(String::as_str)
        .filter(|reason| !is_setting(reason))
        .collect();
    if !limits.is_empty() {
        checks.push(Check::warn(
            "nvml",
            format!("the GPU is throttled: {}", limits.join(", ")),
            "times on a throttled GPU are longer, and compare badly: see to its cooling and its power limit (`nvidia-smi -q -d PERFORMANCE,POWER`)",
        ));
    }
    let others = values.other_processes.iter().flatten();
    let others: Vec<_> = others.cloned().collect();
    if !others.is_empty() {
        checks.push(Check::warn(
            "nvml",
            format!("other use of the GPU: {}", processes(&others)),
            "times on a shared GPU are longer, and compare badly: wait, stop them, or name another card in CUDA_VISIBLE_DEVICES",
        ));
    }
    if reading.mig {
        checks.push(Check::warn(
            "nvml",
            "MIG is on: the card is split into instances",
            "energy and power are of the whole card, so a run does not record them; `nvidia-smi -mig 0` gives the card to one job",
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::error::Error;
    use crate::record::gpu::{GpuProcess, GpuReading as Values};

    #[test]
    fn a_gpu_that_was_asked_for_and_cannot_be_had_fails() {
        let check = |choice, has_driver| {
            let error = Error::preflight("no GPU is visible").hint("look at nvidia-smi");
            checks(choice, has_driver, Err(error)).remove(0)
        };
        assert_eq!(check(DeviceChoice::Cuda, false).level, Level::Fail);
        assert_eq!(check(DeviceChoice::Cuda, true).level, Level::Fail);
        assert_eq!(check(DeviceChoice::Auto, true).level, Level::Warn);
        assert_eq!(check(DeviceChoice::Cpu, true).level, Level::Ok);
        let without = check(DeviceChoice::Auto, false);
        assert_eq!(without.level, Level::Ok);
        assert_eq!(without.finding, "no GPU is visible: runs on the CPU");
        let hint = check(DeviceChoice::Cuda, true).hint;
        assert_eq!(hint.as_deref(), Some("look at nvidia-smi"));
    }

    #[test]
    fn a_gpu_is_shown_with_what_is_needed() {
        let found = FoundGpu {
            description: "A card, 8.0 GiB".to_owned(),
            ..FoundGpu::default()
        };
        let check = checks(DeviceChoice::Auto, true, Ok(found)).remove(0);
        assert_eq!(check.level, Level::Ok);
        assert_eq!(
            check.finding,
            "A card, 8.0 GiB; needed: NVIDIA driver 530 (CUDA 12.1), compute capability 7.5 or later"
        );
    }

    #[test]
    fn what_would_disturb_a_run_is_named() {
        let findings = |reading: &GpuReading| {
            let checks = use_of(reading).into_iter();
            let lines = checks.map(|check| format!("{}: {}", check.level, check.finding));
            lines.collect::<Vec<_>>()
        };
        let mut reading = GpuReading {
            values: Values {
                memory_used_bytes: Some(1 << 30),
                temperature_celsius: Some(61),
                throttle: Some(vec!["applications_clocks_setting".to_owned()]),
                other_processes: Some(Vec::new()),
                ..Values::default()
            },
            memory_bytes: Some(4 << 30),
            ..GpuReading::default()
        };
        let idle = "ok: 1.0 GiB of 4.0 GiB in use, 61 °C";
        assert_eq!(findings(&reading), [idle]);
        reading.values.throttle = Some(vec!["hw_slowdown".to_owned()]);
        reading.values.other_processes = Some(vec![GpuProcess {
            pid: 7,
            memory_bytes: None,
        }]);
        reading.mig = true;
        assert_eq!(
            findings(&reading),
            [
                idle,
                "warn: the GPU is throttled: hw_slowdown",
                "warn: other use of the GPU: process 7",
                "warn: MIG is on: the card is split into instances",
            ]
        );
        let reason = "libnvidia-ml.so.1: no such file".to_owned();
        reading.missing.insert("nvml".to_owned(), reason);
        assert_eq!(
            findings(&reading),
            ["warn: cannot be used: libnvidia-ml.so.1: no such file"]
        );
    }
}
