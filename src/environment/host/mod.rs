//! Readings of the machine that are cheap enough to be taken again and again while a run goes on: Linux's
//! `/proc` and `/sys`, whose files are kept open.

mod conditions;
mod frequency;
mod kept;
mod own;
mod rapl;
#[cfg(test)]
pub(super) mod testing;

use std::path::{Path, PathBuf};

pub(crate) use conditions::{is_slow, shares, taints};
pub(crate) use frequency::ClockHistogram;

use super::load::{Machine, machine};
use crate::record::gpu::Missing;
use frequency::Frequency;
use kept::KeptFile;
use own::OwnTime;
use rapl::Rapl;

/// Where the kernel's files are.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    pub(crate) proc: PathBuf,
    pub(crate) sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
        }
    }
}

/// A reading. What is unknown is `None`.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostReading {
    /// Seconds since any fixed moment.
    pub(crate) at_s: f64,
    /// `/proc/stat`.
    pub(super) machine: Option<Machine>,
    /// Kernel ticks of this process and its descendants.
    pub(super) own_ticks: Option<u64>,
    /// Microseconds in which some task waited, since boot (`total` of PSI's line `some`).
    pub(super) cpu_pressure_us: Option<u64>,
    pub(super) memory_pressure_us: Option<u64>,
    /// Highest clock of the processors that are read.
    pub(crate) clock_mhz: Option<f64>,
}

/// The files, kept open. What cannot be opened, or can no longer be read, is in `missing`.
#[derive(Debug)]
pub(crate) struct HostWatch {
    stat: Option<KeptFile>,
    own: Option<OwnTime>,
    cpu_pressure: Option<KeptFile>,
    memory_pressure: Option<KeptFile>,
    frequency: Option<Frequency>,
    rapl: Option<Rapl>,
    /// Reasons by `stat`, `own_time`, `cpu_pressure`, `memory_pressure`, `frequency`, `rapl`.
    pub(crate) missing: Missing,
}

impl HostWatch {
    /// Opens the files for process `pid`.
    pub(crate) fn open(roots: &Roots, pid: u32) -> Self {
        let mut missing = Missing::new();
        let kept = |path: &Path| {
            let failed = |error| format!("failed to read {}: {error}", path.display());
            let mut file = KeptFile::open(path).map_err(failed)?;
            // Pressure that is turned off (`psi=0`) fails here.
            file.read().map_err(failed)?;
            Ok(file)
        };
        let proc = &roots.proc;
        Self {
            stat: known(&mut missing, "stat", kept(&proc.join("stat"))),
            own: known(&mut missing, "own_time", OwnTime::open(proc, pid)),
            cpu_pressure: known(
                &mut missing,
                "cpu_pressure",
                kept(&proc.join("pressure/cpu")),
            ),
            memory_pressure: known(
                &mut missing,
                "memory_pressure",
                kept(&proc.join("pressure/memory")),
            ),
            frequency: known(&mut missing, "frequency", Frequency::open(&roots.sys)),
            rapl: known(&mut missing, "rapl", Rapl::open(&roots.sys)),
            missing,
        }
    }

    /// Reads everything but the energy. Some tens of microseconds.
    pub(crate) fn read(&mut self, at_s: f64) -> HostReading {
        let missing = &mut self.missing;
        HostReading {
            at_s,
            machine: read(missing, "stat", &mut self.stat, |file| {
                machine(file.read().ok()?)
            }),
            own_ticks: read(missing, "own_time", &mut self.own, OwnTime::ticks),
            cpu_pressure_us: read(missing, "cpu_pressure", &mut self.cpu_pressure, |file| {
                some_total(file.read().ok()?)
            }),
            memory_pressure_us: read(
                missing,
                "memory_pressure",
                &mut self.memory_pressure,
                |file| some_total(file.read().ok()?),
            ),
            clock_mhz: read(
                missing,
                "frequency",
                &mut self.frequency,
                Frequency::highest_mhz,
            ),
        }
    }

    /// Joules of the processors' packages since the files were opened. A counter that fails is not read again,
    /// since its energy up to then would be lost.
    pub(crate) fn joules(&mut self) -> Option<f64> {
        match self.rapl.as_mut()?.joules() {
            Ok(joules) => Some(joules),
            Err(reason) => {
                self.missing.insert("rapl".to_owned(), reason);
                self.rapl = None;
                None
            }
        }
    }
}

fn known<T>(missing: &mut Missing, name: &str, opened: Result<T, String>) -> Option<T> {
    let unknown = |reason| missing.insert(name.to_owned(), reason);
    opened.map_err(unknown).ok()
}

/// Reads a source, if it was opened.
fn read<T, V>(
    missing: &mut Missing,
    name: &str,
    source: &mut Option<T>,
    read: impl Fn(&mut T) -> Option<V>,
) -> Option<V> {
    let value = read(source.as_mut()?);
    if value.is_none() && !missing.contains_key(name) {
        let reason = "not readable at some time of the run";
        missing.insert(name.to_owned(), reason.to_owned());
    }
    value
}

/// Microseconds of the line `some` of `/proc/pressure/*`: `some avg10=0.00 … total=1358873` (kernel
/// documentation, `accounting/psi.rst`).
fn some_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let mut words = line.split_whitespace();
    words
        .find_map(|word| word.strip_prefix("total="))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::testing::{Tree, stat_of};
    use super::*;

    const STAT: &str = "cpu  100 5 40 800 20 3 2 30 50 0\ncpu0 50 5 20 400 10 3 2 15 25 0\n\
        cpu1 50 0 20 400 10 0 0 15 25 0\nintr 12345 0\n";
    const PRESSURE: &str = "some avg10=87.70 avg60=80.23 avg300=34.28 total=128693983\n\
        full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";

    fn watch(tree: &Tree) -> HostWatch {
        let roots = Roots {
            proc: tree.path().to_owned(),
            sys: tree.path().join("sys"),
        };
        HostWatch::open(&roots, 5)
    }

    #[test]
    fn a_machine_is_read() {
        let tree = Tree::new();
        tree.write("stat", STAT);
        tree.write("5/stat", stat_of(5, 1, 100));
        tree.write("5/task/5/children", "");
        tree.write("pressure/cpu", PRESSURE);
        tree.write("pressure/memory", PRESSURE);
        let clock = "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq";
        tree.write(clock, "2500000\n");
        let mut watch = watch(&tree);
        let reading = watch.read(1.5);
        assert_eq!(reading.machine.map(|machine| machine.busy), Some(150));
        assert_eq!(reading.own_ticks, Some(100));
        assert_eq!(reading.cpu_pressure_us, Some(128_693_983));
        assert_eq!((reading.at_s, reading.clock_mhz), (1.5, Some(2500.0)));
        let names: Vec<&str> = watch.missing.keys().map(String::as_str).collect();
        assert_eq!(names, ["rapl"]);
        assert_eq!(watch.joules(), None);
    }

    #[test]
    fn garbage_is_unknown_and_has_a_reason() {
        let tree = Tree::new();
        tree.write("stat", STAT);
        tree.write("pressure/cpu", "some total=many");
        let mut watch = watch(&tree);
        let reading = watch.read(0.0);
        assert!(reading.machine.is_some() && reading.own_ticks.is_none());
        tree.write("stat", "cpu  1 2 3");
        let reading = watch.read(1.0);
        assert!(reading.machine.is_none() && reading.cpu_pressure_us.is_none());
        for name in ["stat", "cpu_pressure"] {
            assert_eq!(watch.missing[name], "not readable at some time of the run");
        }
        assert!(watch.missing["memory_pressure"].contains("No such file"));
        assert_eq!(some_total("full total=5"), None);
    }

    #[test]
    fn a_counter_that_vanishes_is_given_up_with_its_reason() {
        let tree = Tree::new();
        let zone = "sys/class/powercap/intel-rapl:0";
        tree.write(&format!("{zone}/name"), "package-0");
        tree.write(&format!("{zone}/energy_uj"), "5");
        let mut watch = watch(&tree);
        assert_eq!(watch.joules(), Some(0.0));
        tree.write(&format!("{zone}/energy_uj"), "");
        assert_eq!(watch.joules(), None);
        tree.write(&format!("{zone}/energy_uj"), "9");
        assert_eq!(watch.joules(), None, "not from the middle on");
        assert!(watch.missing["rapl"].starts_with("intel-rapl:0: "));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_can_be_watched() {
        let mut watch = HostWatch::open(&Roots::default(), std::process::id());
        let reading = watch.read(0.0);
        assert!(reading.machine.is_some(), "{:?}", watch.missing);
    }
}
