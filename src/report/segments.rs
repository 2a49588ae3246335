//! The steps of a resumed run on one axis of time.

use std::borrow::Cow;

use crate::record::{RunRecord, StepRecord};
use crate::units::Millis;

/// The steps with their starts counted from the start of the first segment, as if there had been no time
/// between the segments.
pub(super) fn on_one_axis<'a>(run: &RunRecord, steps: &'a [StepRecord]) -> Cow<'a, [StepRecord]> {
    if run.segments.len() < 2 {
        return Cow::Borrowed(steps);
    }
    let mut starts = Vec::with_capacity(run.segments.len());
    let mut start = 0.0;
    for segment in &run.segments {
        starts.push(start);
        start += segment.benchmark_total_ms.map_or(0.0, |ms| ms.0);
    }
    let moved = |step: &StepRecord| {
        let segment = step.segment.unwrap_or(1).saturating_sub(1);
        let start = starts.get(segment).copied().unwrap_or(start);
        StepRecord {
            start_ms: Millis(step.start_ms.0 + start),
            ..step.clone()
        }
    };
    Cow::Owned(steps.iter().map(moved).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::segment::Segment;
    use crate::report::testing::run;

    #[test]
    fn segments_follow_one_another() {
        let (mut record, mut steps) = run(2, 1.0, 2.0, 3.0);
        assert_eq!(*on_one_axis(&record, &steps), steps);
        let segment = |ms: f64| Segment {
            benchmark_total_ms: Some(Millis(ms)),
            ..Segment::starting(String::new())
        };
        record.segments = vec![segment(500.0), segment(7.0)];
        let before = steps.clone();
        steps[1].segment = Some(2);
        let moved = on_one_axis(&record, &steps);
        assert_eq!(moved[0].start_ms, before[0].start_ms);
        assert_eq!(moved[1].start_ms, Millis(before[1].start_ms.0 + 500.0));
    }
}
