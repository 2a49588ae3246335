//! The GPU's part of a record in words: for the end of a run, and for the page.

use crate::record::gpu::{GpuProcess, GpuReading, GpuRecord};
use crate::record::{RunRecord, TokenCounts};
use crate::units::Bytes;

/// Energy, clocks, temperature, throttle reasons and other processes in a line; `None` without a GPU, and
/// if nothing of it is known.
pub fn line(run: &RunRecord) -> Option<String> {
    let gpu = run.gpu.as_ref()?;
    let mut parts = Vec::new();
    parts.extend(gpu.energy_joules.map(|joules| match per_token(run) {
        Some(per_token) => format!("{joules:.1} J, {per_token}"),
        None => format!("{joules:.1} J"),
    }));
    parts.extend(clocks(gpu));
    parts.extend(temperature(gpu));
    if !gpu.throttle.is_empty() {
        parts.push(format!("throttled by {}", gpu.throttle.join(", ")));
    }
    if !gpu.other_processes.is_empty() {
        parts.push(format!("shared with {}", processes(&gpu.other_processes)));
    }
    (!parts.is_empty()).then(|| format!("GPU: {}", parts.join("; ")))
}

/// The GPU's facts by name.
pub(super) fn facts(run: &RunRecord) -> Vec<(&'static str, String)> {
    let Some(gpu) = &run.gpu else {
        return Vec::new();
    };
    let mut facts = vec![(
        "GPU",
        match gpu.missing.get("nvml") {
            Some(reason) => format!("not known: {reason}"),
            None => card(gpu),
        },
    )];
    facts.extend(energy(run, gpu).map(|text| ("GPU energy", text)));
    facts.extend(clocks(gpu).map(|text| ("GPU clocks", text)));
    facts.extend(temperature(gpu).map(|text| ("GPU temperature", text)));
    if !gpu.throttle.is_empty() {
        facts.push(("GPU throttled by", gpu.throttle.join(", ")));
    }
    if !gpu.other_processes.is_empty() {
        facts.push(("GPU shared with", processes(&gpu.other_processes)));
    }
    facts
}

/// Joules per generated token: `0.12 J per generated token`. In `MODE=both` the tokens are of two modes.
pub(super) fn per_token(run: &RunRecord) -> Option<String> {
    let joules = run.gpu.as_ref()?.energy_joules?;
    let TokenCounts { decode, .. } = run.totals.tokens;
    (decode > 0 && run.comparison.is_none())
        .then(|| format!("{:.3} J per generated token", joules / decode as f64))
}

/// `other processes`, one or several, with their memory: `process 4242 (1.2 GiB)`.
pub fn processes(others: &[GpuProcess]) -> String {
    let each: Vec<String> = (others.iter())
        .map(|process| match process.memory_bytes {
            Some(bytes) => format!("{} ({})", process.pid, Bytes(bytes)),
            None => process.pid.to_string(),
        })
        .collect();
    let noun = if others.len() == 1 {
        "process"
    } else {
        "processes"
    };
    format!("{noun} {}", each.join(", "))
}

fn card(gpu: &GpuRecord) -> String {
    let card = &gpu.card;
    let on = |is_on| if is_on { "on" } else { "off" };
    let parts = [
        card.driver
            .as_ref()
            .map(|driver| format!("driver {driver}")),
        (card.power_limit_watts).map(|watts| format!("power limit {watts:.0} W")),
        card.mig.as_ref().map(|mig| format!("MIG {mig}")),
        (card.persistence).map(|persists| format!("persistence {}", on(persists))),
        card.ecc.map(|ecc| format!("ECC {}", on(ecc))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn energy(run: &RunRecord, gpu: &GpuRecord) -> Option<String> {
    let Some(joules) = gpu.energy_joules else {
        let reason = gpu.missing.get("energy_joules")?;
        return Some(format!("not known: {reason}"));
    };
    let mut text = format!("{joules:.1} J");
    if let Some(seconds) = gpu.seconds.filter(|seconds| *seconds > 0.0) {
        text.push_str(&format!(", {:.0} W on average", joules / seconds));
    }
    if let Some(per_token) = per_token(run) {
        text.push_str(&format!(", {per_token}"));
    }
    Some(text)
}

/// `SM 1410 to 1980 of 1980 MHz, memory 2619 of 2619 MHz`: in the first and the last reading, and the most
/// that the card can do.
fn clocks(gpu: &GpuRecord) -> Option<String> {
    let clock = |name, of: fn(&GpuReading) -> Option<u32>, most: Option<u32>| {
        let range = range(gpu, of)?;
        let most = most.map_or_else(String::new, |most| format!(" of {most}"));
        Some(format!("{name} {range}{most} MHz"))
    };
    let clocks = [
        clock(
            "SM",
            |reading| reading.clock_sm_mhz,
            gpu.card.max_clock_sm_mhz,
        ),
        clock(
            "memory",
            |reading| reading.clock_memory_mhz,
            gpu.card.max_clock_memory_mhz,
        ),
    ];
    let clocks: Vec<String> = clocks.into_iter().flatten().collect();
    (!clocks.is_empty()).then(|| clocks.join(", "))
}

fn temperature(gpu: &GpuRecord) -> Option<String> {
    let range = range(gpu, |reading| reading.temperature_celsius)?;
    Some(format!("{range} °C"))
}

/// The first and the last value, or the only one.
fn range(gpu: &GpuRecord, of: fn(&GpuReading) -> Option<u32>) -> Option<String> {
    let (start, end) = (of(&gpu.start), gpu.end.as_ref().and_then(of));
    Some(match (start, end) {
        (Some(start), Some(end)) if start != end => format!("{start} to {end}"),
        (value, other) => value.or(other)?.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Comparison;
    use crate::report::testing;

    fn run() -> RunRecord {
        let (mut run, _) = testing::run(2, 0.0, 3.0, 2.0);
        run.gpu = Some(testing::gpu());
        run
    }

    #[test]
    fn a_gpu_in_a_line() {
        let mut record = run();
        insta::assert_snapshot!(line(&record).expect("known"), @"GPU: 432.5 J, 1.502 J per generated token; SM 1410 to 1755 of 1980 MHz, memory 2619 of 2619 MHz; 45 to 61 °C; throttled by applications_clocks_setting, sw_power_cap; shared with process 4242 (1.0 GiB)");
        record.comparison = Some(Comparison::default());
        let both = line(&record).expect("known");
        assert!(both.starts_with("GPU: 432.5 J; SM"), "{both}");
        record.gpu = Some(GpuRecord::default());
        assert_eq!(line(&record), None);
        record.gpu = None;
        assert_eq!(line(&record), None);
    }

    #[test]
    fn the_facts_of_a_gpu() {
        let mut record = run();
        let text = |record: &RunRecord| {
            let facts = facts(record).into_iter();
            let lines = facts.map(|(name, text)| format!("{name}: {text}"));
            lines.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(text(&record), @r"
        GPU: driver 580.65.06, power limit 700 W, MIG off, persistence on, ECC on
        GPU energy: 432.5 J, 173 W on average, 1.502 J per generated token
        GPU clocks: SM 1410 to 1755 of 1980 MHz, memory 2619 of 2619 MHz
        GPU temperature: 45 to 61 °C
        GPU throttled by: applications_clocks_setting, sw_power_cap
        GPU shared with: process 4242 (1.0 GiB)
        ");
        let gpu = record.gpu.as_mut().expect("set");
        gpu.energy_joules = None;
        let reason = "MIG is on".to_owned();
        gpu.missing.insert("energy_joules".to_owned(), reason);
        assert!(text(&record).contains("GPU energy: not known: MIG is on\n"));
        record.gpu = Some(GpuRecord {
            missing: [("nvml".to_owned(), "no such library".to_owned())].into(),
            ..GpuRecord::default()
        });
        assert_eq!(text(&record), "GPU: not known: no such library");
    }
}
