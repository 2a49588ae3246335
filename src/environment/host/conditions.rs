//! What two readings of the machine, about a second apart, say against the measurements in between.

use super::HostReading;
use super::frequency::ClockHistogram;
use crate::record::validity::Taint;

/// A shorter time between readings is not judged: the kernel counts in hundredths of a second, so that 5 % of
/// two processors in half a second are 5 counts.
const LEAST_SECONDS: f64 = 0.5;

/// Steal above this share of all processors' time taints. It is zero on a machine of one's own and on a
/// virtual one with processors of its own; at 5 % a step of the CPU engine takes about that much longer.
const STEAL_SHARE: f64 = 0.05;

/// Other processes above this share of the processors taint. Daemons and the kernel's own work stay below it;
/// it is also the share from which a whole run has the warning `busy_machine`.
const OTHERS_SHARE: f64 = 0.10;

/// Share of the time in which some task waited for memory (PSI). An engine whose weights are in memory waits
/// for none: a tenth means that pages are reclaimed or swapped.
const MEMORY_PRESSURE: f64 = 0.10;

/// Share of the time in which some task waited for a processor (PSI). The program's own threads and evaluated
/// programs cause it as well, so it counts only at half of the time, and only if others used processors, too.
const CPU_PRESSURE: f64 = 0.50;

/// Others' share from which a pressure is not the program's own.
const PRESSURE_OF_OTHERS: f64 = 0.05;

/// Clocks below this share of the run's median taint. Turbo clocks vary by some percent with the number of
/// busy cores; a fifth is heat or a power limit.
const FREQUENCY_SHARE: f64 = 0.80;

/// Readings of the clock before there is a median to compare with.
const LEAST_CLOCKS: u32 = 5;

/// With less of a processor in use by this program, its clock is low because there is little to do.
const WORKING_PROCESSORS: f64 = 0.5;

/// Shares over the time between two readings, 0 to 1; `None` if unknown.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct HostShares {
    pub(crate) steal: Option<f64>,
    pub(crate) others: Option<f64>,
    pub(crate) cpu_pressure: Option<f64>,
    pub(crate) memory_pressure: Option<f64>,
    /// Processors that this program kept busy.
    pub(crate) own_processors: Option<f64>,
}

/// `None` if too little time has passed to judge.
pub(crate) fn shares(first: &HostReading, last: &HostReading) -> Option<HostShares> {
    let seconds = last.at_s - first.at_s;
    if seconds < LEAST_SECONDS {
        return None;
    }
    let stat = first.machine.zip(last.machine);
    let all = stat.and_then(|(from, to)| to.all.checked_sub(from.all));
    let all = all.filter(|ticks| *ticks > 0);
    let share = |ticks: u64| all.map(|all| (ticks as f64 / all as f64).min(1.0));
    let own = first.own_ticks.zip(last.own_ticks);
    let own = own.map(|(from, to)| to.saturating_sub(from));
    let pressure = |from: Option<u64>, to: Option<u64>| {
        let microseconds = to?.checked_sub(from?)?;
        Some((microseconds as f64 / 1e6 / seconds).min(1.0))
    };
    Some(HostShares {
        steal: stat.and_then(|(from, to)| share(to.steal.saturating_sub(from.steal))),
        others: stat.zip(own).and_then(|((from, to), own)| {
            share((to.busy.saturating_sub(from.busy)).saturating_sub(own))
        }),
        cpu_pressure: pressure(first.cpu_pressure_us, last.cpu_pressure_us),
        memory_pressure: pressure(first.memory_pressure_us, last.memory_pressure_us),
        own_processors: stat.zip(own).and_then(|((_, to), own)| {
            let share = share(own)?;
            Some(share * to.processors.max(1) as f64)
        }),
    })
}

/// What taints the time between two readings. `judges_others`: whether other processes are none of the run's
/// own, as a server on this machine would be.
pub(crate) fn taints(shares: &HostShares, judges_others: bool) -> Vec<Taint> {
    let above = |share: Option<f64>, limit: f64| share.is_some_and(|share| share > limit);
    let others = judges_others && above(shares.others, OTHERS_SHARE);
    let pressed_by_others =
        judges_others && shares.others.is_none_or(|share| share > PRESSURE_OF_OTHERS);
    let all = [
        (
            Taint::CpuPressure,
            pressed_by_others && above(shares.cpu_pressure, CPU_PRESSURE),
        ),
        (
            Taint::MemoryPressure,
            above(shares.memory_pressure, MEMORY_PRESSURE),
        ),
        (Taint::OtherProcesses, others),
        (Taint::Steal, above(shares.steal, STEAL_SHARE)),
    ];
    (all.into_iter())
        .filter_map(|(taint, holds)| holds.then_some(taint))
        .collect()
}

/// Whether `clock_mhz` is low for this run, in which `clocks` were read before.
pub(crate) fn is_slow(clock_mhz: f64, clocks: &ClockHistogram, shares: &HostShares) -> bool {
    let works = shares.own_processors >= Some(WORKING_PROCESSORS);
    let median = clocks.median(LEAST_CLOCKS);
    works && median.is_some_and(|median| clock_mhz < FREQUENCY_SHARE * median)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::load::Machine;

    /// A second of two processors, 200 ticks.
    fn after(change: impl Fn(&mut HostReading)) -> (HostReading, HostReading) {
        let first = HostReading {
            at_s: 10.0,
            machine: Some(Machine {
                processors: 2,
                busy: 1000,
                steal: 50,
                all: 4000,
            }),
            own_ticks: Some(500),
            cpu_pressure_us: Some(7_000_000),
            memory_pressure_us: Some(0),
            clock_mhz: None,
        };
        let mut last = first.clone();
        last.at_s = 11.0;
        if let Some(machine) = &mut last.machine {
            machine.all += 200;
        }
        change(&mut last);
        (first, last)
    }

    fn tainted(change: impl Fn(&mut HostReading)) -> Vec<Taint> {
        let (first, last) = after(change);
        taints(&shares(&first, &last).expect("a second"), true)
    }

    fn machine(reading: &mut HostReading) -> &mut Machine {
        reading.machine.as_mut().expect("known")
    }

    #[test]
    fn each_condition_has_its_threshold() {
        assert_eq!(tainted(|_| ()), []);
        assert_eq!(tainted(|last| machine(last).steal += 10), []);
        assert_eq!(tainted(|last| machine(last).steal += 11), [Taint::Steal]);
        // The program itself may use all it gets.
        let own = |last: &mut HostReading| {
            machine(last).busy += 200;
            last.own_ticks = Some(700);
        };
        assert_eq!(tainted(own), []);
        let others = |last: &mut HostReading| {
            machine(last).busy += 121;
            last.own_ticks = Some(600);
        };
        assert_eq!(tainted(others), [Taint::OtherProcesses]);
        let memory = |last: &mut HostReading| last.memory_pressure_us = Some(110_000);
        assert_eq!(tainted(memory), [Taint::MemoryPressure]);
    }

    #[test]
    fn a_pressure_of_the_programs_own_is_none() {
        let pressure = |last: &mut HostReading| last.cpu_pressure_us = Some(7_600_000);
        let with = |busy: u64| {
            tainted(|last| {
                pressure(last);
                machine(last).busy += busy;
            })
        };
        assert_eq!(with(0), []);
        assert_eq!(with(11), [Taint::CpuPressure], "others: 5.5 %");
        assert_eq!(with(21), [Taint::CpuPressure, Taint::OtherProcesses]);
        let unknown = tainted(|last| {
            pressure(last);
            last.own_ticks = None;
        });
        assert_eq!(unknown, [Taint::CpuPressure], "nobody knows whose it is");
        let (first, last) = after(|last| {
            pressure(last);
            machine(last).busy += 100;
        });
        let shares = shares(&first, &last).expect("a second");
        assert_eq!(taints(&shares, false), [], "the server is here");
    }

    #[test]
    fn what_is_unknown_or_went_back_taints_nothing() {
        assert_eq!(tainted(|last| last.machine = None), []);
        assert_eq!(tainted(|last| machine(last).all = 0), []);
        assert_eq!(tainted(|last| last.cpu_pressure_us = Some(0)), []);
        let (first, mut last) = after(|last| machine(last).steal += 200);
        last.at_s = 10.4;
        assert_eq!(shares(&first, &last), None, "too short to judge");
    }

    #[test]
    fn a_clock_is_slow_in_comparison_with_the_run() {
        let mut clocks = ClockHistogram::default();
        let busy = HostShares {
            own_processors: Some(1.0),
            ..HostShares::default()
        };
        assert!(!is_slow(100.0, &clocks, &busy), "nothing to compare with");
        (0..5).for_each(|_| clocks.add(3000.0));
        assert!(is_slow(2300.0, &clocks, &busy));
        assert!(!is_slow(2500.0, &clocks, &busy));
        assert!(!is_slow(800.0, &clocks, &HostShares::default()), "idle");
    }
}
