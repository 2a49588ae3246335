//! Clocks of the processors, as cpufreq has them in `/sys`. Virtual machines mostly have none.

use std::path::Path;

use super::kept::KeptFile;

/// At most so many processors are read, spread over all of them: a reading may interrupt the processor.
const MOST_READ: usize = 8;

#[derive(Debug)]
pub(super) struct Frequency(Vec<KeptFile>);

impl Frequency {
    /// # Errors
    /// Why there is nothing to read.
    pub(super) fn open(sys: &Path) -> Result<Self, String> {
        let folder = sys.join("devices/system/cpu");
        let path = |cpu: usize| folder.join(format!("cpu{cpu}/cpufreq/scaling_cur_freq"));
        let entries = std::fs::read_dir(&folder)
            .map_err(|error| format!("failed to read {}: {error}", folder.display()))?;
        let number = |name: &str| name.strip_prefix("cpu")?.parse().ok();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut cpus: Vec<usize> = names.filter_map(|name| number(&name)).collect();
        cpus.sort_unstable();
        let stride = cpus.len().div_ceil(MOST_READ).max(1);
        let files = cpus.iter().step_by(stride);
        let files: Vec<KeptFile> = files
            .filter_map(|cpu| KeptFile::open(&path(*cpu)).ok())
            .collect();
        match files.is_empty() {
            true => Err(format!("{} has no cpufreq", folder.display())),
            false => Ok(Self(files)),
        }
    }

    /// The highest clock in MHz; `None` if none can be read. Idle processors clock down, so their clocks say
    /// nothing of the ones that work.
    pub(super) fn highest_mhz(&mut self) -> Option<f64> {
        let kilohertz = self.0.iter_mut().filter_map(KeptFile::number).max()?;
        Some(kilohertz as f64 / 1e3)
    }
}

/// Counts of clocks in steps of [`Self::STEP_MHZ`], for a median in bounded memory.
#[derive(Debug, Clone)]
pub(crate) struct ClockHistogram {
    counts: Vec<u32>,
    total: u32,
}

impl Default for ClockHistogram {
    fn default() -> Self {
        Self {
            counts: vec![0; 512],
            total: 0,
        }
    }
}

impl ClockHistogram {
    /// Fine enough to tell 80 % of any clock.
    const STEP_MHZ: f64 = 25.0;

    pub(crate) fn add(&mut self, mhz: f64) {
        let last = self.counts.len() - 1;
        let bin = (mhz / Self::STEP_MHZ).clamp(0.0, last as f64) as usize;
        self.counts[bin] = self.counts[bin].saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// The median, to a step; `None` of fewer than `least` values.
    pub(crate) fn median(&self, least: u32) -> Option<f64> {
        if self.total < least.max(1) {
            return None;
        }
        let mut below = 0;
        let bin = self.counts.iter().position(|count| {
            below += count;
            below > self.total / 2
        })?;
        Some((bin as f64 + 0.5) * Self::STEP_MHZ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::host::testing::Tree;

    #[test]
    fn the_highest_of_the_processors_counts() {
        let tree = Tree::new();
        assert!(Frequency::open(tree.path()).is_err());
        tree.write("devices/system/cpu/cpu0/topology/id", "0");
        let none = Frequency::open(tree.path()).expect_err("a virtual machine");
        assert!(none.ends_with("has no cpufreq"), "{none}");
        for (cpu, kilohertz) in [(0, "800000"), (1, "3100000\n"), (2, "garbage")] {
            let file = format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq");
            tree.write(&file, kilohertz);
        }
        let mut frequency = Frequency::open(tree.path()).expect("three files");
        assert_eq!(frequency.highest_mhz(), Some(3100.0));
        for cpu in 0..3 {
            let file = format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq");
            tree.write(&file, "");
        }
        assert_eq!(frequency.highest_mhz(), None);
    }

    #[test]
    fn the_median_of_a_histogram() {
        let mut clocks = ClockHistogram::default();
        assert_eq!(clocks.median(1), None);
        for mhz in [3000.0, 3010.0, 1000.0, 3020.0, 1e9, f64::NAN] {
            clocks.add(mhz);
        }
        assert_eq!(clocks.median(7), None, "too few");
        assert_eq!(clocks.median(6), Some(3012.5));
    }
}
