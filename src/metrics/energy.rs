//! Energy over time, and whose it is.

use crate::record::{Energy, WorkflowRecord};

/// Readings that are kept: 29 hours of ten a second, 16 MiB. Beyond, every second one is dropped, and from
/// then on every second reading is added.
const MOST_READINGS: usize = 1 << 20;

/// Readings of a counter that only rises: times in milliseconds, energy in joules.
#[derive(Debug, Clone)]
pub struct EnergySeries {
    readings: Vec<[f64; 2]>,
    most: usize,
    /// One of so many readings is kept.
    stride: usize,
    skipped: usize,
    /// The last reading, kept or not.
    last: Option<[f64; 2]>,
}

impl Default for EnergySeries {
    fn default() -> Self {
        Self::at_most(MOST_READINGS)
    }
}

impl EnergySeries {
    fn at_most(most: usize) -> Self {
        Self {
            readings: Vec::new(),
            most,
            stride: 1,
            skipped: 0,
            last: None,
        }
    }

    /// Adds a reading; one that is not later than the last, or shows less energy, is ignored.
    pub fn add(&mut self, ms: f64, joules: f64) {
        let is_next = (self.last).is_none_or(|[at, before]| ms > at && joules >= before);
        if !is_next || !ms.is_finite() || !joules.is_finite() {
            return;
        }
        self.last = Some([ms, joules]);
        self.skipped += 1;
        if self.readings.is_empty() || self.skipped >= self.stride {
            self.skipped = 0;
            self.readings.push([ms, joules]);
        }
        if self.readings.len() > self.most {
            let mut index = 0;
            self.readings.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// The time of the last reading.
    pub fn end_ms(&self) -> Option<f64> {
        self.last.map(|[ms, _]| ms)
    }

    /// The kept readings, and the last one.
    fn all(&self) -> Vec<[f64; 2]> {
        let mut all = self.readings.clone();
        let last = self.last.filter(|last| all.last() != Some(last));
        all.extend(last);
        all
    }

    /// Joules from `start` to `end`; `None` if no two readings lie around any part of it. Between two readings
    /// the power is taken as even; before the first and after the last there is none.
    pub fn between(&self, start: f64, end: f64) -> Option<f64> {
        let readings = self.all();
        let (first, last) = (readings.first()?[0], readings.last()?[0]);
        let covered = end.min(last) - start.max(first);
        (covered > 0.0).then(|| at(&readings, end) - at(&readings, start))
    }
}

/// The counter at a time.
fn at(readings: &[[f64; 2]], ms: f64) -> f64 {
    let next = readings.partition_point(|[at, _]| *at <= ms);
    let Some([from_ms, from]) = next.checked_sub(1).map(|index| readings[index]) else {
        return readings.first().map_or(0.0, |[_, joules]| *joules);
    };
    match readings.get(next) {
        None => from,
        Some([to_ms, to]) => from + (to - from) * (ms - from_ms) / (to_ms - from_ms),
    }
}

/// The energy of each of the `steps`, which are times from start to end in milliseconds.
///
/// At every moment, the power is divided equally among the steps in flight. So the shares add up to the energy
/// of the time in which at least one step was in flight. A step that waits in a queue is in flight, as is one
/// that is evaluated; steps that failed are not known and have no share.
pub fn shares(series: &EnergySeries, steps: &[[f64; 2]]) -> Vec<f64> {
    let readings = series.all();
    // Joules of a step that has been in flight since the first start: the integral of power / steps in flight.
    let mut events: Vec<(f64, i64)> = steps
        .iter()
        .flat_map(|[start, end]| [(*start, 1), (end.max(*start), -1)])
        .collect();
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut in_flight = 0i64;
    let mut integral = 0.0;
    let mut before = events.first().map_or(0.0, |(ms, _)| *ms);
    // Times of the events, and the integral at each.
    let mut integrals: Vec<[f64; 2]> = Vec::with_capacity(events.len());
    for (ms, change) in events {
        if in_flight > 0 && ms > before {
            integral += (at(&readings, ms) - at(&readings, before)) / in_flight as f64;
        }
        in_flight += change;
        before = ms;
        integrals.push([ms, integral]);
    }
    let integral_at = |ms: f64| {
        let index = integrals.partition_point(|[at, _]| *at < ms);
        integrals.get(index).map_or(integral, |[_, joules]| *joules)
    };
    steps
        .iter()
        .map(|[start, end]| integral_at(end.max(*start)) - integral_at(*start))
        .collect()
}

/// Whether a workflow's answer counts as correct: a reward of 1.
pub fn is_correct(workflow: &WorkflowRecord) -> bool {
    workflow
        .reward
        .is_some_and(|reward| (reward - 1.0).abs() < 1e-9)
}

/// Sets the energy per generated token and per correct answer.
pub fn set_rates(energy: &mut Energy, tokens: usize, correct: usize) {
    let joules = energy.steps_joules.unwrap_or(energy.joules);
    let per = |count: usize| (count > 0).then(|| joules / count as f64);
    energy.joules_per_token = per(tokens);
    energy.joules_per_correct = per(correct);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn series(readings: &[(f64, f64)]) -> EnergySeries {
        let mut series = EnergySeries::default();
        for (ms, joules) in readings {
            series.add(*ms, *joules);
        }
        series
    }

    #[test]
    fn energy_between_readings_is_interpolated() {
        let energy = series(&[(100.0, 5.0), (200.0, 15.0), (300.0, 15.0), (400.0, 19.0)]);
        assert_eq!(energy.between(100.0, 400.0), Some(14.0));
        assert_eq!(energy.between(150.0, 250.0), Some(5.0));
        assert_eq!(energy.between(0.0, 1000.0), Some(14.0));
        assert_eq!(energy.between(0.0, 100.0), None, "before all readings");
        assert_eq!(energy.between(400.0, 500.0), None, "after them");
        assert_eq!(series(&[]).between(0.0, 1.0), None);
        assert_eq!(series(&[(5.0, 1.0)]).between(0.0, 9.0), None);
        let odd = series(&[
            (1.0, 5.0),
            (2.0, 4.0),
            (1.0, 9.0),
            (3.0, f64::NAN),
            (4.0, 6.0),
        ]);
        assert_eq!(odd.between(0.0, 9.0), Some(1.0), "a counter only rises");
    }

    #[test]
    fn steps_in_flight_at_once_share_the_power() {
        // 10 W from 0 to 1 s, then 50 W.
        let energy = series(&[(0.0, 0.0), (1000.0, 10.0), (2000.0, 60.0)]);
        let steps = [
            [0.0, 1000.0],
            [500.0, 1500.0],
            [1800.0, 1800.0],
            [1700.0, 2000.0],
        ];
        let shares = shares(&energy, &steps);
        let expected = [7.5, 2.5 + 25.0, 0.0, 15.0];
        for (share, expected) in shares.iter().zip(expected) {
            assert!((share - expected).abs() < 1e-9, "{shares:?}");
        }
    }

    #[test]
    fn rates_need_something_to_count() {
        let mut energy = Energy {
            joules: 12.0,
            ..Energy::default()
        };
        set_rates(&mut energy, 6, 0);
        assert_eq!(energy.joules_per_token, Some(2.0));
        assert_eq!(energy.joules_per_correct, None);
        energy.steps_joules = Some(9.0);
        set_rates(&mut energy, 0, 3);
        assert_eq!(energy.joules_per_token, None);
        assert_eq!(energy.joules_per_correct, Some(3.0));
        let rewarded = |reward| WorkflowRecord {
            reward,
            ..WorkflowRecord::default()
        };
        assert!(is_correct(&rewarded(Some(1.0))));
        assert!(
            [None, Some(0.5), Some(2.6)]
                .iter()
                .all(|reward| !is_correct(&rewarded(*reward)))
        );
    }

    #[test]
    fn a_long_series_is_thinned_and_keeps_its_ends() {
        let mut energy = EnergySeries::at_most(8);
        for index in 0..1000 {
            energy.add(f64::from(index), 2.0 * f64::from(index));
        }
        assert!(energy.readings.len() <= 9);
        assert_eq!(energy.end_ms(), Some(999.0));
        assert_eq!(energy.between(0.0, 999.0), Some(1998.0));
        assert_eq!(energy.between(500.0, 600.0), Some(200.0));
    }

    proptest! {
        /// The shares add up to the energy of the time in which a step was in flight.
        #[test]
        fn shares_add_up_to_the_energy_of_the_run(
            power in prop::collection::vec((1u32..300, 0u32..500), 2..40),
            steps in prop::collection::vec((0u32..4000, 0u32..2000), 1..30),
        ) {
            let mut energy = EnergySeries::default();
            let (mut ms, mut joules) = (0.0, 0.0);
            energy.add(ms, joules);
            for (time, watts) in power {
                ms += f64::from(time);
                joules += f64::from(watts) * f64::from(time) / 1e3;
                energy.add(ms, joules);
            }
            let steps: Vec<[f64; 2]> = (steps.iter())
                .map(|(start, length)| [f64::from(*start), f64::from(start + length)])
                .collect();
            let shares = shares(&energy, &steps);
            prop_assert!(shares.iter().all(|share| *share >= -1e-9));
            // Millisecond by millisecond, which all times are multiples of.
            let busy: f64 = (0..6000)
                .map(f64::from)
                .filter(|ms| steps.iter().any(|step| step[0] <= *ms && *ms + 1.0 <= step[1]))
                .filter_map(|ms| energy.between(ms, ms + 1.0))
                .sum();
            let sum: f64 = shares.iter().sum();
            prop_assert!((sum - busy).abs() < 1e-6 * (1.0 + busy), "{} of {}", sum, busy);
        }
    }
}
