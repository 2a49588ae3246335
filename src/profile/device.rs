//! Device time of passes on a GPU, as its events show it: sums by phase and kind of kernel.

use std::collections::BTreeMap;

use super::names::Span;
use crate::record::profile::{DeviceKernel, DevicePhase, DeviceTimes};

/// A pass's time on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePass {
    /// Name of the card.
    pub device: String,
    /// From the start of its upload to its last kernel's end, in nanoseconds.
    pub nanos: u64,
    /// Its kernels in their order, in nanoseconds, if they were timed one by one. A span counts as one call.
    pub kernels: Vec<(Span, u64)>,
}

/// Calls and nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    calls: u64,
    nanos: u64,
}

impl Sum {
    fn add(&mut self, nanos: u64) {
        self.calls += 1;
        self.nanos += nanos;
    }

    fn seconds(self) -> f64 {
        self.nanos as f64 / 1e9
    }
}

/// Sums over the passes of a phase.
#[derive(Debug, Clone, Default)]
struct Phase {
    all: Sum,
    /// Those whose kernels were timed.
    timed: Sum,
    kernels: BTreeMap<Span, Sum>,
}

/// Sums over all passes.
#[derive(Debug, Clone, Default)]
pub(super) struct DeviceSums {
    name: Option<String>,
    prefill: Phase,
    decode: Phase,
}

impl DeviceSums {
    /// `is_prefill`: it computes prompt tokens.
    pub(super) fn add(&mut self, pass: &DevicePass, is_prefill: bool) {
        self.name.get_or_insert_with(|| pass.device.clone());
        let phase = match is_prefill {
            true => &mut self.prefill,
            false => &mut self.decode,
        };
        phase.all.add(pass.nanos);
        if !pass.kernels.is_empty() {
            phase.timed.add(pass.nanos);
        }
        for (span, nanos) in &pass.kernels {
            phase.kernels.entry(*span).or_default().add(*nanos);
        }
    }

    /// `None` if no pass ran on a GPU.
    pub(super) fn read(&self) -> Option<DeviceTimes> {
        let phases = [("prefill", &self.prefill), ("decode", &self.decode)];
        Some(DeviceTimes {
            name: self.name.clone()?,
            phases: phases
                .into_iter()
                .filter(|(_, phase)| phase.all.calls > 0)
                .map(|(name, phase)| phase.read(name))
                .collect(),
        })
    }
}

impl Phase {
    fn read(&self, name: &str) -> DevicePhase {
        let total: u64 = self.kernels.values().map(|sum| sum.nanos).sum();
        let mut kernels: Vec<DeviceKernel> = self
            .kernels
            .iter()
            .map(|(span, sum)| DeviceKernel {
                name: span.name().to_owned(),
                ncall: sum.calls,
                ttot_s: sum.seconds(),
                tavg_s: sum.seconds() / sum.calls as f64,
                share: sum.nanos as f64 / total.max(1) as f64,
            })
            .collect();
        kernels.sort_by(|a, b| b.ttot_s.total_cmp(&a.ttot_s).then(a.name.cmp(&b.name)));
        DevicePhase {
            phase: name.to_owned(),
            passes: self.all.calls,
            total_s: self.all.seconds(),
            timed_passes: self.timed.calls,
            timed_s: self.timed.seconds(),
            kernels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_summed_by_phase_and_kind() {
        let mut sums = DeviceSums::default();
        assert_eq!(sums.read(), None);
        let pass = |nanos, kernels: &[(Span, u64)]| DevicePass {
            device: "a card".to_owned(),
            nanos,
            kernels: kernels.to_vec(),
        };
        let kernels = [
            (Span::Norm, 1_000_000),
            (Span::Linear, 6_000_000),
            (Span::Norm, 1_000_000),
        ];
        sums.add(&pass(9_000_000, &kernels), false);
        sums.add(&pass(5_000_000, &[]), false);
        sums.add(&pass(70_000_000, &[]), true);
        let times = sums.read().expect("passes");
        assert_eq!(times.name, "a card");
        let [prefill, decode] = &times.phases[..] else {
            panic!("{times:?}");
        };
        assert_eq!((prefill.passes, prefill.timed_passes), (1, 0));
        assert_eq!((decode.passes, decode.timed_passes), (2, 1));
        assert_eq!((decode.total_s, decode.timed_s), (0.014, 0.009));
        let rows: Vec<_> = decode
            .kernels
            .iter()
            .map(|row| (row.name.as_str(), row.ncall, row.ttot_s, row.share))
            .collect();
        assert_eq!(rows, [("linear", 1, 0.006, 0.75), ("norm", 2, 0.002, 0.25)]);
    }
}
