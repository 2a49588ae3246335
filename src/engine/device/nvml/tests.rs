use super::library;
use super::processes::{others, united};
use super::throttle::{names, taints};
use super::*;
use crate::record::gpu::{GpuProcess, GpuReading, Missing};
use crate::record::validity::Taint;

fn process(pid: u32, memory_bytes: Option<u64>) -> GpuProcess {
    GpuProcess { pid, memory_bytes }
}

#[test]
fn without_an_opened_card_there_is_nothing_to_read() {
    let none = library::opened_card().is_none();
    assert_eq!(read().is_none(), none);
    assert_eq!(GpuMeter::start().is_none(), none);
}

#[test]
fn throttle_reasons_have_names_and_idleness_is_none() {
    assert_eq!(names(0), [""; 0]);
    assert_eq!(names(1), [""; 0], "idle");
    assert_eq!(
        names(0x1e5),
        [
            "sw_power_cap",
            "sw_thermal_slowdown",
            "hw_thermal_slowdown",
            "hw_power_brake_slowdown",
            "display_clock_setting"
        ]
    );
    assert_eq!(names(1 << 12), ["bit_12"]);
}

#[test]
fn limits_taint_and_settings_do_not() {
    assert_eq!(taints(0x113), []);
    assert_eq!(
        taints(0xffff),
        [
            Taint::SwPowerCap,
            Taint::HwSlowdown,
            Taint::SwThermal,
            Taint::HwThermal,
            Taint::HwPowerBrake
        ]
    );
}

#[test]
fn this_process_is_not_among_the_others() {
    let listed = vec![process(5, Some(1)), process(7, None)];
    assert_eq!(others(listed.clone(), 5, true), Ok(vec![process(7, None)]));
    assert_eq!(others(listed.clone(), 9, false), Ok(listed.clone()));
    // In a container, the ids are those of the host.
    let unclear = others(listed, 9, true).expect_err("not listed");
    assert!(
        unclear.starts_with("this process, 9, is not among the 2"),
        "{unclear}"
    );
    assert!(others(Vec::new(), 9, true).is_err());
    assert_eq!(others(Vec::new(), 9, false), Ok(Vec::new()));
}

#[test]
fn a_process_of_two_lists_counts_once() {
    let both = [process(7, None), process(5, Some(1)), process(7, Some(3))];
    assert_eq!(united(both), [process(5, Some(1)), process(7, Some(3))]);
}

fn reading(energy: Option<u64>, throttle: &[&str], pid: u32) -> Reading {
    let mut missing = Missing::new();
    if energy.is_none() {
        missing.insert("energy_millijoules".to_owned(), "too old".to_owned());
    }
    Reading {
        values: GpuReading {
            energy_millijoules: energy,
            throttle: Some(throttle.iter().map(|&name| name.to_owned()).collect()),
            other_processes: Some(vec![process(pid, Some(u64::from(pid)))]),
            ..GpuReading::default()
        },
        missing,
        ..Reading::default()
    }
}

#[test]
fn energy_is_the_difference_of_the_counter() {
    let meter = GpuMeter::of(reading(Some(1_000_500), &["sync_boost"], 7));
    let begun = meter.begun();
    assert_eq!(
        (begun.end, begun.seconds, begun.energy_joules),
        (None, None, None)
    );
    assert_eq!(begun.missing, Missing::new());
    let end = reading(Some(1_433_000), &["sw_power_cap", "sync_boost"], 5);
    let record = meter.record(Some((end, 2.5)));
    assert_eq!(record.energy_joules, Some(432.5));
    assert_eq!(record.seconds, Some(2.5));
    assert_eq!(record.throttle, ["sw_power_cap", "sync_boost"]);
    assert_eq!(
        record.other_processes,
        [process(5, Some(5)), process(7, Some(7))]
    );
    assert_eq!(record.missing, Missing::new());
}

#[test]
fn energy_that_is_not_known_has_a_reason() {
    let energy = |start, end| {
        let record = GpuMeter::of(reading(start, &[], 7)).record(Some((reading(end, &[], 7), 1.0)));
        assert_eq!(record.energy_joules, None);
        record.missing
    };
    let missing = energy(None, None);
    assert_eq!(missing["energy_joules"], "too old");
    assert_eq!(missing["energy_millijoules"], "too old");
    let missing = energy(None, Some(5));
    assert_eq!(missing["energy_joules"], "too old");
    assert_eq!(
        missing["energy_millijoules"],
        "in the first reading: too old"
    );
    let missing = energy(Some(5), None);
    assert_eq!(
        missing["energy_millijoules"],
        "in the last reading: too old"
    );
    let missing = energy(Some(5), Some(4));
    assert!(missing["energy_joules"].starts_with("the counter went back from 5 to 4 mJ"));
    assert_eq!(missing.len(), 1);
}

#[test]
fn a_card_that_is_lost_leaves_the_first_reading() {
    let lost = Reading {
        missing: [("nvml".to_owned(), "lost".to_owned())].into(),
        ..Reading::default()
    };
    let record = GpuMeter::of(reading(Some(5), &["hw_slowdown"], 7)).record(Some((lost, 1.0)));
    assert_eq!(record.start.energy_millijoules, Some(5));
    assert_eq!(record.throttle, ["hw_slowdown"]);
    assert_eq!(
        record.missing,
        [("nvml".to_owned(), "in the last reading: lost".to_owned())].into()
    );
}
