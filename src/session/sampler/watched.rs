//! What the readings of a run say: taints, energy, and a series for the report.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::engine::GpuSample;
use crate::environment::host::{self, ClockHistogram, HostReading};
use crate::metrics::{EnergySeries, Readings, TaintIntervals, ThinnedSeries};
use crate::record::gpu::Missing;
use crate::record::validity::{Taint, ValidityRecord};

/// The wall clock may move so much against the monotonic one between two readings. Corrections of a time
/// server are far below (0.05 %, adjtimex(2)); a second would change dates and the order of logs.
const CLOCK_JUMP_MS: f64 = 1000.0;

/// A reading of everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// From the start of the benchmark, by the monotonic clock.
    pub(super) ms: f64,
    /// The wall clock.
    pub(super) wall_ms: f64,
    /// `None` while the process has opened no card.
    pub(super) gpu: Option<GpuSample>,
    /// Energy of the processors' packages.
    pub(super) processors_joules: Option<f64>,
    /// In readings in full only.
    pub(super) host: Option<HostReading>,
}

/// What was found, by time.
#[derive(Debug, Clone)]
pub(in crate::session) struct Measured {
    pub(in crate::session) taints: TaintIntervals,
    /// Energy by the best source that there is, and its name; `None` if there is none.
    pub(in crate::session) energy: Option<(&'static str, EnergySeries)>,
    /// Energy of the processors' packages, if that is not `energy`.
    pub(in crate::session) processors: Option<EnergySeries>,
}

#[derive(Debug, Default)]
pub(super) struct Watched {
    judges_others: bool,
    samples: usize,
    longest_gap_ms: f64,
    cpu_ms: Option<f64>,
    lived_ms: f64,
    before: Option<Before>,
    /// Time of the last reading in full of the GPU.
    gpu_in_full_ms: f64,
    host_before: Option<(f64, HostReading)>,
    clocks: ClockHistogram,
    taints: TaintIntervals,
    gpu_counter: EnergySeries,
    /// The power, integrated, while there is no counter.
    gpu_power: EnergySeries,
    gpu_power_joules: f64,
    processors: EnergySeries,
    series: ThinnedSeries,
    missing: Missing,
}

/// The reading before.
#[derive(Debug)]
struct Before {
    ms: f64,
    wall_ms: f64,
    gpu_taints: Vec<Taint>,
    gpu_watts: Option<f64>,
    gpu_joules: Option<f64>,
    processors_joules: Option<f64>,
}

impl Watched {
    pub(super) fn new(judges_others: bool) -> Self {
        Self {
            judges_others,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        self.samples += 1;
        let mut readings = Readings::default();
        if let Some(before) = &self.before {
            self.longest_gap_ms = self.longest_gap_ms.max(sample.ms - before.ms);
            let moved = (sample.wall_ms - before.wall_ms) - (sample.ms - before.ms);
            if moved.abs() > CLOCK_JUMP_MS {
                self.taints.add(Taint::ClockJump, before.ms, sample.ms);
            }
        }
        if let Some(gpu) = &sample.gpu {
            self.add_gpu(sample.ms, gpu, &mut readings);
        }
        if let Some(joules) = sample.processors_joules {
            self.processors.add(sample.ms, joules);
        }
        if let Some(host) = &sample.host {
            self.add_host(sample.ms, host, &mut readings);
        }
        if let Some(before) = &self.before {
            let gpu = sample.gpu.as_ref();
            let seconds = (sample.ms - before.ms) / 1e3;
            let watts = |from: Option<f64>, to: Option<f64>| {
                Some((to? - from?) / seconds).filter(|watts| seconds > 0.0 && *watts >= 0.0)
            };
            readings.power_watts = match gpu {
                Some(gpu) => gpu.power_watts.or_else(|| {
                    // A counter that moves in steps of some tens of milliseconds.
                    watts(before.gpu_joules, gpu.energy_joules)
                }),
                None => watts(before.processors_joules, sample.processors_joules),
            };
        }
        self.series.add(sample.ms, &readings);
        let gpu = sample.gpu.as_ref();
        self.before = Some(Before {
            ms: sample.ms,
            wall_ms: sample.wall_ms,
            gpu_taints: gpu.map(|gpu| gpu.taints.clone()).unwrap_or_default(),
            gpu_watts: gpu.and_then(|gpu| gpu.power_watts),
            gpu_joules: gpu.and_then(|gpu| gpu.energy_joules),
            processors_joules: sample.processors_joules,
        });
    }

    fn add_gpu(&mut self, ms: f64, gpu: &GpuSample, readings: &mut Readings) {
        let before = self.before.as_ref();
        let from = before.map_or(ms, |before| before.ms);
        // Nobody knows when a condition began before this reading, or ended after the one before.
        let held = before.map_or(&[][..], |before| &before.gpu_taints);
        for taint in held.iter().filter(|taint| !gpu.taints.contains(taint)) {
            self.taints.add(*taint, from, ms);
        }
        for taint in &gpu.taints {
            let is_new = !held.contains(taint);
            let from = match taint {
                // Looked for in readings in full only.
                Taint::OtherProcess if is_new => from.min(self.gpu_in_full_ms),
                _ => from,
            };
            self.taints.add(*taint, from, ms);
        }
        let in_full = gpu.memory_used_bytes.is_some() || gpu.temperature_celsius.is_some();
        if in_full {
            self.gpu_in_full_ms = ms;
        }
        if let Some(joules) = gpu.energy_joules {
            let last = before.and_then(|before| before.gpu_joules);
            if last.is_some_and(|last| joules < last) {
                let reason = "the GPU's counter went back: the driver was loaded again";
                self.miss("energy", reason.to_owned());
            }
            self.gpu_counter.add(ms, joules);
        } else if let Some(watts) = gpu.power_watts {
            let last = before.and_then(|before| before.gpu_watts);
            let seconds = (ms - from) / 1e3;
            self.gpu_power_joules += seconds * f64::midpoint(last.unwrap_or(watts), watts);
            self.gpu_power.add(ms, self.gpu_power_joules);
        }
        readings.gpu_clock_mhz = gpu.clock_sm_mhz;
        readings.gpu_temperature_celsius = gpu.temperature_celsius;
        readings.gpu_memory_bytes = gpu.memory_used_bytes;
        self.miss_all(&gpu.missing);
    }

    fn add_host(&mut self, ms: f64, host: &HostReading, readings: &mut Readings) {
        readings.cpu_clock_mhz = host.clock_mhz;
        let Some((from, before)) = &self.host_before else {
            self.host_before = Some((ms, host.clone()));
            return;
        };
        // A reading that comes too early leaves the one before in place.
        let Some(shares) = host::shares(before, host) else {
            return;
        };
        let from = *from;
        for taint in host::taints(&shares, self.judges_others) {
            self.taints.add(taint, from, ms);
        }
        if let Some(mhz) = host.clock_mhz {
            if host::is_slow(mhz, &self.clocks, &shares) {
                self.taints.add(Taint::Frequency, from, ms);
            }
            self.clocks.add(mhz);
        }
        readings.others_share = shares.others;
        readings.steal_share = shares.steal;
        self.host_before = Some((ms, host.clone()));
    }

    /// Notes what is missing; the first reason stays.
    pub(super) fn miss(&mut self, what: &str, reason: String) {
        if !self.missing.contains_key(what) {
            self.missing.insert(what.to_owned(), reason);
        }
    }

    pub(super) fn miss_all(&mut self, missing: &Missing) {
        for (what, reason) in missing {
            if !self.missing.contains_key(what) {
                self.missing.insert(what.clone(), reason.clone());
            }
        }
    }

    /// Processor time of the thread so far, and how long it has lived.
    pub(super) fn cost(&mut self, cpu_ms: Option<f64>, lived_ms: f64) {
        self.cpu_ms = cpu_ms;
        self.lived_ms = lived_ms;
    }

    pub(super) fn measured(&self) -> Measured {
        let covers = |series: &EnergySeries| series.between(0.0, f64::MAX).is_some();
        let sources = [
            ("nvml_energy_counter", &self.gpu_counter),
            ("nvml_power", &self.gpu_power),
            ("rapl", &self.processors),
        ];
        // A counter that went back has lost a part.
        let best = sources.into_iter().find(|(name, series)| {
            covers(series) && (*name == "rapl" || !self.missing.contains_key("energy"))
        });
        let has_gpu = best.is_some_and(|(name, _)| name != "rapl");
        Measured {
            taints: self.taints.clone(),
            energy: best.map(|(name, series)| (name, series.clone())),
            processors: Some(&self.processors)
                .filter(|series| has_gpu && covers(series))
                .cloned(),
        }
    }

    pub(super) fn record(&self, with_series: bool) -> ValidityRecord {
        let cost = self.cpu_ms.filter(|_| self.lived_ms > 0.0);
        ValidityRecord {
            samples: self.samples,
            longest_gap_ms: self.longest_gap_ms,
            cpu_ms: self.cpu_ms,
            cost_share: cost.map(|cpu| cpu / self.lived_ms),
            taints: self.taints.records(),
            missing: self.missing.clone(),
            series: with_series.then(|| self.series.record()),
        }
    }
}

/// Processor time of the calling thread, by `/proc/thread-self/schedstat` (kernel documentation,
/// `scheduler/sched-stats.rst`): nanoseconds on a processor come first.
pub(super) struct ThreadTime(File);

impl ThreadTime {
    pub(super) fn open() -> Option<Self> {
        File::open("/proc/thread-self/schedstat").ok().map(Self)
    }

    pub(super) fn ms(&mut self) -> Option<f64> {
        let mut buffer = [0; 64];
        let length = self.0.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        let nanoseconds: u64 = text.split_whitespace().next()?.parse().ok()?;
        Some(nanoseconds as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a reading every 100 ms.
    fn watched(change: impl Fn(usize, &mut Sample)) -> Watched {
        let mut watched = Watched::new(true);
        for index in 0..10 {
            let ms = 100.0 * index as f64;
            let mut sample = Sample {
                ms,
                wall_ms: 1.7e12 + ms,
                ..Sample::default()
            };
            change(index, &mut sample);
            watched.add(&sample);
        }
        watched
    }

    fn gpu(taints: &[Taint]) -> GpuSample {
        GpuSample {
            taints: taints.to_vec(),
            power_watts: Some(100.0),
            ..GpuSample::default()
        }
    }

    fn intervals(watched: &Watched) -> Vec<(Taint, Vec<[f64; 2]>)> {
        let records = watched.record(false).taints.into_iter();
        records
            .map(|record| {
                let intervals = record.intervals.iter();
                let intervals = intervals.map(|interval| [interval.start_ms, interval.end_ms]);
                (record.reason, intervals.collect())
            })
            .collect()
    }

    #[test]
    fn a_condition_counts_from_the_reading_before_to_the_one_after() {
        let watched = watched(|index, sample| {
            let capped = matches!(index, 3 | 4 | 8);
            let taints: &[Taint] = if capped { &[Taint::SwPowerCap] } else { &[] };
            sample.gpu = Some(gpu(taints));
        });
        assert_eq!(
            intervals(&watched),
            [(Taint::SwPowerCap, vec![[200.0, 500.0], [700.0, 900.0]])]
        );
        assert_eq!(watched.measured().taints.over(500.0, 700.0), []);
    }

    #[test]
    fn another_process_may_have_come_since_it_was_looked_for() {
        let watched = watched(|index, sample| {
            let taints: &[Taint] = if index >= 5 {
                &[Taint::OtherProcess]
            } else {
                &[]
            };
            sample.gpu = Some(GpuSample {
                memory_used_bytes: (index % 5 == 0).then_some(1.0),
                ..gpu(taints)
            });
        });
        assert_eq!(
            intervals(&watched),
            [(Taint::OtherProcess, vec![[0.0, 900.0]])]
        );
    }

    #[test]
    fn the_wall_clock_may_jump_either_way() {
        let watched = watched(|index, sample| {
            sample.wall_ms += match index {
                0..3 => 0.0,
                3..7 => 1500.0,
                _ => -200.0,
            };
        });
        assert_eq!(
            intervals(&watched),
            [(Taint::ClockJump, vec![[200.0, 300.0], [600.0, 700.0]])]
        );
        let slewed = self::watched(|index, sample| sample.wall_ms += 900.0 * index as f64);
        assert_eq!(intervals(&slewed), []);
    }

    #[test]
    fn energy_comes_from_the_best_source() {
        let counter = watched(|index, sample| {
            sample.processors_joules = Some(index as f64);
            sample.gpu = Some(GpuSample {
                energy_joules: Some(50.0 + 2.0 * index as f64),
                ..gpu(&[])
            });
        });
        let measured = counter.measured();
        let (source, energy) = measured.energy.expect("measured");
        assert_eq!(
            (source, energy.between(0.0, 900.0)),
            ("nvml_energy_counter", Some(18.0))
        );
        let processors = measured
            .processors
            .and_then(|series| series.between(0.0, 900.0));
        assert_eq!(processors, Some(9.0));

        let power = watched(|_, sample| sample.gpu = Some(gpu(&[])));
        let (source, energy) = power.measured().energy.expect("measured");
        let joules = energy.between(0.0, 900.0).expect("covered");
        assert_eq!(source, "nvml_power");
        assert!((joules - 90.0).abs() < 1e-9);
        assert_eq!(
            power
                .record(true)
                .series
                .map(|series| series.power_watts[1]),
            Some(Some(100.0))
        );

        let rapl = watched(|index, sample| sample.processors_joules = Some(3.0 * index as f64));
        let measured = rapl.measured();
        assert_eq!(measured.energy.map(|(source, _)| source), Some("rapl"));
        assert!(measured.processors.is_none());
        assert_eq!(
            rapl.record(true).series.map(|series| series.power_watts[1]),
            Some(Some(30.0))
        );
        assert!(watched(|_, _| ()).measured().energy.is_none());
    }

    #[test]
    fn a_counter_that_goes_back_measures_nothing() {
        let watched = watched(|index, sample| {
            sample.gpu = Some(GpuSample {
                energy_joules: Some(if index < 5 { 100.0 + index as f64 } else { 1.0 }),
                ..gpu(&[])
            });
        });
        assert!(watched.measured().energy.is_none());
        assert!(watched.record(false).missing["energy"].contains("went back"));
    }

    #[test]
    fn the_cost_is_a_share_of_the_time() {
        let mut watched = watched(|_, _| ());
        assert_eq!(watched.record(false).cost_share, None);
        watched.cost(Some(2.0), 4000.0);
        let record = watched.record(false);
        assert_eq!((record.samples, record.longest_gap_ms), (10, 100.0));
        assert_eq!(
            (record.cpu_ms, record.cost_share),
            (Some(2.0), Some(0.0005))
        );
        if let Some(mut time) = ThreadTime::open() {
            // Counted when the thread leaves a processor, which it may not have done yet.
            assert!(time.ms().is_some());
        }
    }
}
