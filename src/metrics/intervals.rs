//! When measurements were tainted, by reason.

use std::collections::BTreeMap;

use crate::record::validity::{Taint, TaintInterval, TaintRecord};

/// Intervals of a reason that are kept while a run goes on. Beyond, those with the shortest gap between them
/// are joined, so that a reason that comes and goes all night stays in bounded memory.
const MOST_KEPT: usize = 4096;

/// Intervals of a reason in a record.
const MOST_RECORDED: usize = 200;

/// Intervals of time by reason, in milliseconds from the start of the benchmark.
#[derive(Debug, Clone, Default)]
pub struct TaintIntervals(BTreeMap<Taint, Vec<[f64; 2]>>);

impl TaintIntervals {
    /// Adds an interval that does not begin before any earlier one of the reason. It is joined with the last one
    /// if they touch.
    pub fn add(&mut self, taint: Taint, start: f64, end: f64) {
        let all = self.0.entry(taint).or_default();
        match all.last_mut() {
            Some(last) if start <= last[1] => last[1] = last[1].max(end),
            _ => all.push([start, end]),
        }
        if all.len() > MOST_KEPT {
            // To half of them, so that it is rare.
            thin(all, MOST_KEPT / 2);
        }
    }

    /// The reasons that held at some time from `start` to `end`, sorted by name.
    pub fn over(&self, start: f64, end: f64) -> Vec<Taint> {
        let overlaps = |intervals: &Vec<[f64; 2]>| {
            let first = intervals.partition_point(|interval| interval[1] <= start);
            // The first part is for a measurement without duration.
            (intervals.get(first)).is_some_and(|[from, _]| *from <= start || *from < end)
        };
        let held = self.0.iter().filter(|(_, intervals)| overlaps(intervals));
        held.map(|(taint, _)| *taint).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn records(&self) -> Vec<TaintRecord> {
        let record = |(reason, intervals): (&Taint, &Vec<[f64; 2]>)| {
            let total_ms = intervals.iter().map(|[start, end]| end - start).sum();
            let mut intervals = intervals.clone();
            thin(&mut intervals, MOST_RECORDED);
            let round = |ms: f64| (ms * 1e3).round() / 1e3;
            TaintRecord {
                reason: *reason,
                total_ms,
                intervals: (intervals.into_iter())
                    .map(|[start, end]| TaintInterval {
                        start_ms: round(start),
                        end_ms: round(end),
                    })
                    .collect(),
            }
        };
        self.0.iter().map(record).collect()
    }

    /// The intervals of a record.
    pub fn of(records: &[TaintRecord]) -> Self {
        let intervals = |record: &TaintRecord| {
            let intervals = record.intervals.iter();
            let intervals = intervals.map(|interval| [interval.start_ms, interval.end_ms]);
            (record.reason, intervals.collect())
        };
        Self(records.iter().map(intervals).collect())
    }
}

/// Joins neighbours with the shortest gaps until at most `most` are left.
fn thin(intervals: &mut Vec<[f64; 2]>, most: usize) {
    if intervals.len() <= most {
        return;
    }
    let surplus = intervals.len() - most;
    let mut gaps: Vec<(f64, usize)> = (intervals.windows(2).enumerate())
        .map(|(index, pair)| (pair[1][0] - pair[0][1], index + 1))
        .collect();
    gaps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<usize> = gaps.iter().take(surplus).map(|(_, index)| *index).collect();
    joined.sort_unstable();
    for index in joined.into_iter().rev() {
        intervals[index - 1][1] = intervals[index][1];
        intervals.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_measurement_has_the_reasons_that_it_overlaps() {
        let mut taints = TaintIntervals::default();
        taints.add(Taint::Steal, 100.0, 200.0);
        taints.add(Taint::Steal, 200.0, 300.0);
        taints.add(Taint::GpuLost, 250.0, 900.0);
        taints.add(Taint::Steal, 500.0, 600.0);
        assert_eq!(taints.over(0.0, 100.0), []);
        assert_eq!(taints.over(0.0, 101.0), [Taint::Steal]);
        assert_eq!(taints.over(240.0, 260.0), [Taint::GpuLost, Taint::Steal]);
        assert_eq!(taints.over(300.0, 500.0), [Taint::GpuLost]);
        assert_eq!(taints.over(550.0, 550.0), [Taint::GpuLost, Taint::Steal]);
        let records = taints.records();
        let of_steal = [(100.0, 300.0), (500.0, 600.0)];
        let of_steal = of_steal.map(|(start_ms, end_ms)| TaintInterval { start_ms, end_ms });
        assert_eq!(records[1].intervals, of_steal);
        assert_eq!(records[1].total_ms, 300.0);
        let again = TaintIntervals::of(&records);
        assert_eq!(again.over(240.0, 260.0), taints.over(240.0, 260.0));
    }

    proptest! {
        /// However many intervals there are, few are kept, and none of the time that they covered is lost.
        #[test]
        fn intervals_are_bounded_and_lose_nothing(
            lengths in prop::collection::vec((1u32..50, 1u32..50), 1..60),
            most in 1usize..20,
        ) {
            let mut all = Vec::new();
            let mut at = 0.0;
            for (gap, length) in lengths {
                let start = at + f64::from(gap);
                at = start + f64::from(length);
                all.push([start, at]);
            }
            let mut kept = all.clone();
            thin(&mut kept, most);
            prop_assert!(kept.len() <= most && kept.len() == most.min(all.len()));
            for [start, end] in all {
                prop_assert!(kept.iter().any(|kept| kept[0] <= start && end <= kept[1]));
            }
            prop_assert!(kept.windows(2).all(|pair| pair[0][1] < pair[1][0]));
        }
    }
}
