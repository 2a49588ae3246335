//! Load of the machine during a run, from Linux's `/proc`.

use std::collections::HashMap;
use std::fs;

use crate::record::load::LoadRecord;

/// Unit of `/proc`: USER_HZ, which is 100 on every architecture this program is built for.
const TICKS_PER_S: f64 = 100.0;

/// A first reading to compare later ones with.
#[derive(Debug, Clone)]
pub struct LoadMeter(Reading);

impl LoadMeter {
    pub fn start() -> Self {
        Self(Reading::take())
    }

    /// Compares a new reading with the first. `None` if the system has no `/proc/stat` or no tick
    /// has passed.
    pub fn read(&self) -> Option<LoadRecord> {
        compare(&self.0, &Reading::take())
    }
}

/// Times in kernel ticks since boot (or since the process started).
#[derive(Debug, Clone, Default)]
struct Reading {
    load_average: Option<f64>,
    machine: Option<Machine>,
    /// This process and its children, including those that have exited.
    own: Option<u64>,
}

/// `/proc/stat`, the sum of all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) processors: usize,
    pub(super) busy: u64,
    pub(super) steal: u64,
    pub(super) all: u64,
}

impl Reading {
    fn take() -> Self {
        Self {
            load_average: super::load_average(),
            machine: fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|text| machine(&text)),
            own: own(std::process::id()),
        }
    }
}

fn compare(first: &Reading, last: &Reading) -> Option<LoadRecord> {
    let (from, to) = (first.machine?, last.machine?);
    let all = to.all.checked_sub(from.all).filter(|ticks| *ticks > 0)?;
    let share = |ticks: u64| ticks as f64 / all as f64;
    let busy = to.busy.saturating_sub(from.busy);
    let own = first.own.zip(last.own);
    let own = own.map(|(from, to)| to.saturating_sub(from));
    Some(LoadRecord {
        seconds: all as f64 / to.processors.max(1) as f64 / TICKS_PER_S,
        processors: to.processors,
        load_average_start: first.load_average,
        load_average_end: last.load_average,
        // Processes and processors are accounted for at different moments, so own time can exceed
        // the total by a few ticks.
        own_share: own.map(|own| share(own).min(1.0)),
        others_share: own.map(|own| share(busy.saturating_sub(own))),
        steal_share: Some(share(to.steal.saturating_sub(from.steal))),
    })
}

/// Parses `/proc/stat` (proc_stat(5)).
pub(super) fn machine(text: &str) -> Option<Machine> {
    let processors = text.lines().filter(|line| {
        let number = line
            .strip_prefix("cpu")
            .and_then(|line| line.chars().next());
        number.is_some_and(|digit| digit.is_ascii_digit())
    });
    let all = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks = all.split_whitespace().map(|word| word.parse().ok());
    let ticks: Vec<u64> = ticks.collect::<Option<_>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal. Guest time is already part of user and
    // nice.
    let [user, nice, system, idle, iowait, irq, softirq, steal] = *ticks.first_chunk()?;
    let busy = user + nice + system + irq + softirq;
    Some(Machine {
        processors: processors.count(),
        busy,
        steal,
        all: busy + idle + iowait + steal,
    })
}

/// A process in `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    parent: u32,
    /// Its own time and that of the children it has waited for.
    pub(super) ticks: u64,
}

pub(super) fn process(text: &str) -> Option<Process> {
    // The name in the field before can contain spaces and brackets.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = fields
        .get(11..15)?
        .iter()
        .map(|field| field.parse::<u64>().ok());
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        ticks: ticks.sum::<Option<u64>>()?,
    })
}

/// Ticks of a process and its descendants. Evaluated programs run in child processes whose parents
/// live until the end of the run, so their time is not lost.
fn own(pid: u32) -> Option<u64> {
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let read = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, process(&text)?))
    };
    let mut processes: HashMap<u32, Process> = pids.filter_map(read).collect();
    // A container may hide other processes, but a process can always read its own entry.
    let own = processes
        .get(&pid)
        .copied()
        .or_else(|| Some(read(pid)?.1))?;
    processes.insert(pid, own);
    Some(tree(&processes, pid))
}

/// Ticks of a process and its living descendants.
fn tree(processes: &HashMap<u32, Process>, root: u32) -> u64 {
    let is_below = |mut pid: u32| {
        // Parent chains are no longer than the list. Readings at different moments can form a
        // cycle.
        for _ in 0..processes.len() {
            if pid == root {
                return true;
            }
            match processes.get(&pid) {
                Some(process) => pid = process.parent,
                None => return false,
            }
        }
        false
    };
    let below = processes.iter().filter(|(pid, _)| is_below(**pid));
    below.map(|(_, process)| process.ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 5 40 800 20 3 2 30 50 0\ncpu0 50 5 20 400 10 3 2 15 25 0\n\
        cpu1 50 0 20 400 10 0 0 15 25 0\nintr 12345 0\nctxt 99\ncpufreq 1\n";

    #[test]
    fn guest_time_is_not_counted_twice() {
        let read = machine(STAT).expect("eight columns and more");
        let expected = Machine {
            processors: 2,
            busy: 150,
            steal: 30,
            all: 1000,
        };
        assert_eq!(read, expected);
        for bad in ["", "cpu  1 2 3", "cpu  a b c d e f g h", "intr 5"] {
            assert_eq!(machine(bad), None, "{bad}");
        }
    }

    #[test]
    fn shares_are_of_the_time_between_two_readings() {
        let reading = |busy, steal, all, own, load_average| Reading {
            load_average: Some(load_average),
            machine: Some(Machine {
                processors: 4,
                busy,
                steal,
                all,
            }),
            own: Some(own),
        };
        let first = reading(1000, 10, 50_000, 500, 0.5);
        let last = reading(1600, 50, 50_800, 900, 3.5);
        let load = compare(&first, &last).expect("time went by");
        assert_eq!((load.own_share, load.others_share), (Some(0.5), Some(0.25)));
        assert_eq!((load.steal_share, load.processors), (Some(0.05), 4));
        assert_eq!(
            (load.load_average_start, load.load_average_end),
            (Some(0.5), Some(3.5))
        );
        assert!(load.seconds > 0.0);

        assert_eq!(compare(&first, &first), None, "no time went by");
        assert_eq!(compare(&last, &first), None, "the counters went back");
        assert_eq!(compare(&first, &Reading::default()), None);
        // Own time is accounted for earlier than the machine's, so nothing remains for others.
        let own = reading(1200, 10, 50_800, 1000, 0.5);
        assert_eq!(
            compare(&first, &own).and_then(|load| load.others_share),
            Some(0.0)
        );
    }

    #[test]
    fn a_process_name_with_brackets_is_skipped() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 99 0 0\n";
        let expected = Process {
            parent: 7,
            ticks: 100,
        };
        assert_eq!(process(text), Some(expected));
        for bad in ["", "42 (a) S 7", "42 a S 7 1 1 1"] {
            assert_eq!(process(bad), None, "{bad}");
        }
    }

    #[test]
    fn descendants_count_and_other_processes_do_not() {
        let of = |parent, ticks| Process { parent, ticks };
        let processes = HashMap::from([
            (1, of(0, 1000)),
            (5, of(1, 1)),
            (6, of(5, 20)),
            (7, of(6, 300)),
            (8, of(1, 4000)),
            (9, of(10, 50_000)),
            (10, of(9, 50_000)),
        ]);
        assert_eq!(tree(&processes, 5), 321);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_can_be_read() {
        let meter = LoadMeter::start();
        let begun = std::time::Instant::now();
        let mut sum = 0u64;
        while begun.elapsed().as_millis() < 200 {
            sum = sum.wrapping_mul(31).wrapping_add(7);
        }
        std::hint::black_box(sum);
        let load = meter.read().expect("Linux has /proc/stat");
        assert!(load.processors >= 1 && load.seconds > 0.0, "{load:?}");
        for share in [load.own_share, load.others_share, load.steal_share] {
            let share = share.expect("readable");
            assert!((0.0..=1.0).contains(&share), "{load:?}");
        }
        assert!(load.own_share > Some(0.0), "{load:?}");
    }
}
