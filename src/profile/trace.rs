//! The trace, in Chrome's JSON trace event format, which Perfetto and chrome://tracing open.
//!
//! Each running flow has a lane, which contains its steps and their phases. Concurrent steps of a
//! flow go to branches of the lane. A lane is reused once its flow has ended. Events in a lane are
//! nested or disjoint, as both viewers require. Format:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::device::DevicePass;
use super::log::{Ended, EndedPass, Log};
use super::names::Span;

const FLOWS: u32 = 1;
const DEVICE: u32 = 2;
const GPU: u32 = 3;

/// Open events of a lane at the current position: ID and end.
type Lane = Vec<(u64, u64)>;

/// The lanes of one flow at a time.
#[derive(Default)]
struct Group {
    lanes: Vec<Lane>,
    free_at: u64,
}

/// Converts `log` to a trace. `nanos` converts clock ticks to nanoseconds since the start of the
/// profile.
pub(super) fn json(log: &Log, nanos: impl Fn(u64) -> u64) -> Value {
    let mut events = vec![
        json!({"ph": "M", "name": "process_name", "pid": FLOWS, "args": {"name": "flows"}}),
        json!({"ph": "M", "name": "process_name", "pid": DEVICE, "args": {"name": "device"}}),
    ];
    add_flows(&mut events, &log.activities, &nanos);
    add_passes(&mut events, &log.passes, &nanos);
    if let Some(device) = log.passes.iter().find_map(|pass| pass.device.as_ref()) {
        let args = json!({"name": device.device});
        events.push(json!({"ph": "M", "name": "process_name", "pid": GPU, "args": args}));
    }
    json!({
        "displayTimeUnit": "ms",
        "otherData": {"events_dropped": log.dropped},
        "traceEvents": events,
    })
}

/// Trace events use microseconds.
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

fn complete(name: &str, span: Span, pid: u32, lane: usize, (start, end): (u64, u64)) -> Value {
    json!({
        "ph": "X", "name": name, "cat": span.name(), "pid": pid, "tid": lane + 1,
        "ts": micros(start), "dur": micros(end - start),
    })
}

fn lane_name(pid: u32, lane: usize, name: &str) -> Value {
    let args = json!({"name": name});
    json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": lane + 1, "args": args})
}

/// Clamps activities to their parents and returns the root of each. An aborted request can outlast
/// its parent. An activity whose parent is not in the log is a root.
fn cut_to_parents(activities: &mut [Ended]) -> HashMap<u64, u64> {
    // The ID of a parent is smaller than those of its children.
    activities.sort_by_key(|activity| activity.id);
    let mut known: HashMap<u64, (u64, u64, u64)> = HashMap::new();
    for activity in &mut *activities {
        let parent = activity.parent.and_then(|id| known.get(&id));
        let root = match parent {
            Some(&(root, start, end)) => {
                activity.start = activity.start.clamp(start, end);
                activity.end = activity.end.clamp(activity.start, end);
                root
            }
            None => activity.id,
        };
        known.insert(activity.id, (root, activity.start, activity.end));
    }
    let roots = known.into_iter();
    roots.map(|(id, (root, ..))| (id, root)).collect()
}

fn add_flows(events: &mut Vec<Value>, activities: &[Ended], nanos: &impl Fn(u64) -> u64) {
    let mut activities = activities.to_vec();
    let roots = cut_to_parents(&mut activities);
    activities.sort_by_key(|activity| (activity.start, activity.id));

    let mut groups: Vec<Group> = Vec::new();
    let mut group_of: HashMap<u64, usize> = HashMap::new();
    let mut placed = Vec::with_capacity(activities.len());
    for activity in &activities {
        let root = roots.get(&activity.id).copied().unwrap_or(activity.id);
        let group = *group_of.entry(root).or_insert_with(|| {
            let free = |group: &Group| group.free_at <= activity.start;
            let place = groups.iter().position(free).unwrap_or_else(|| {
                groups.push(Group::default());
                groups.len() - 1
            });
            // The root comes first: its descendants neither start before it nor end after it.
            groups[place].free_at = activity.end;
            place
        });
        placed.push((group, place(&mut groups[group].lanes, activity)));
    }

    let mut first = Vec::with_capacity(groups.len());
    let mut lanes = 0;
    for (number, group) in groups.iter().enumerate() {
        first.push(lanes);
        for branch in 0..group.lanes.len() {
            let name = match branch {
                0 => format!("flow lane {}", number + 1),
                _ => format!("flow lane {}, branch {branch}", number + 1),
            };
            events.push(lane_name(FLOWS, lanes, &name));
            lanes += 1;
        }
    }
    for (activity, (group, branch)) in activities.iter().zip(placed) {
        let name = activity.label.as_deref().unwrap_or(activity.span.name());
        let times = (nanos(activity.start), nanos(activity.end));
        let lane = first[group] + branch;
        events.push(complete(name, activity.span, FLOWS, lane, times));
    }
}

/// Lane of an activity: one whose innermost open event is its parent, or an empty one.
fn place(lanes: &mut Vec<Lane>, activity: &Ended) -> usize {
    for lane in lanes.iter_mut() {
        while lane.last().is_some_and(|(_, end)| *end <= activity.start) {
            lane.pop();
        }
    }
    let inside = |lane: &Lane| lane.last().map(|(id, _)| *id) == activity.parent;
    let lane = (lanes
        .iter()
        .position(|lane| !lane.is_empty() && inside(lane)))
    .or_else(|| lanes.iter().position(Vec::is_empty))
    .unwrap_or_else(|| {
        lanes.push(Lane::new());
        lanes.len() - 1
    });
    lanes[lane].push((activity.id, activity.end));
    lane
}

fn add_passes(events: &mut Vec<Value>, passes: &[EndedPass], nanos: &impl Fn(u64) -> u64) {
    let mut passes = passes.to_vec();
    passes.sort_by_key(|pass| pass.start);
    // Concurrent engines have separate lanes.
    let mut free_at: Vec<u64> = Vec::new();
    for pass in &passes {
        let free = free_at.iter().position(|end| *end <= pass.start);
        let lane = free.unwrap_or_else(|| {
            events.push(lane_name(DEVICE, free_at.len(), "passes"));
            free_at.push(0);
            free_at.len() - 1
        });
        free_at[lane] = pass.end;
        let (start, end) = (nanos(pass.start), nanos(pass.end));
        let mut event = complete(pass.span.name(), pass.span, DEVICE, lane, (start, end));
        event["args"] = json!({
            "sequences": pass.of.sequences,
            "prefill_tokens": pass.of.prefill_tokens,
            "decode_tokens": pass.of.decode_tokens,
        });
        events.push(event);
        if let Some(device) = &pass.device {
            add_device_time(events, device, pass.span, lane, (start, end));
        }
        let counter = |name: &str, at: u64, args: Value| json!({"ph": "C", "name": name, "pid": DEVICE, "ts": micros(at), "args": args});
        events.push(counter(
            "tokens in the pass",
            start,
            json!({"prefill": pass.of.prefill_tokens, "decode": pass.of.decode_tokens}),
        ));
        events.push(counter(
            "sequences",
            start,
            json!({"sequences": pass.of.sequences}),
        ));
        events.push(counter("KV pages", end, json!({"held": pass.kv_pages})));
    }
}

/// Adds a pass's time on the GPU, and its kernels if they were timed. The device's clock is not the host's: the
/// pass ends on the device when the host sees its end, and `device_ms` is the device's own figure. Only a
/// simulated device takes longer than the host waits; then its times are scaled to fit.
fn add_device_time(
    events: &mut Vec<Value>,
    device: &DevicePass,
    span: Span,
    lane: usize,
    (start, end): (u64, u64),
) {
    let shown = device.nanos.min(end - start);
    let scaled = |nanos: u64| match device.nanos {
        0 => 0,
        all => (u128::from(nanos) * u128::from(shown) / u128::from(all)) as u64,
    };
    let first = end - shown;
    let mut add = |name: &str, span: Span, from: u64, nanos: u64| {
        let from = from.min(device.nanos);
        let to = (from + nanos).min(device.nanos);
        let at = (first + scaled(from), first + scaled(to));
        let mut event = complete(name, span, GPU, lane, at);
        event["args"] = json!({"device_ms": nanos as f64 / 1e6});
        events.push(event);
    };
    add("pass", span, 0, device.nanos);
    let mut at = 0;
    for (kernel, nanos) in &device.kernels {
        add(kernel.name(), *kernel, at, *nanos);
        at += nanos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::PassTokens;
    use proptest::prelude::*;

    fn ended(id: u64, parent: u64, span: Span, start: u64, end: u64) -> Ended {
        let parent = (parent != 0).then_some(parent);
        let label = None;
        Ended {
            id,
            parent,
            span,
            label,
            start,
            end,
        }
    }

    /// Lane, start, end and name of each event; times in nanoseconds.
    fn spans(trace: &Value) -> Vec<((u64, u64), u64, u64, String)> {
        let events = trace["traceEvents"].as_array().expect("a list");
        let nanos = |value: &Value| (value.as_f64().expect("a number") * 1000.0).round() as u64;
        let number = |value: &Value| value.as_u64().expect("a number");
        events
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| {
                let start = nanos(&event["ts"]);
                let lane = (number(&event["pid"]), number(&event["tid"]));
                let name = event["name"].as_str().expect("a name").to_owned();
                (lane, start, start + nanos(&event["dur"]), name)
            })
            .collect()
    }

    /// Asserts that any two events of a lane are nested or disjoint.
    fn assert_nested(trace: &Value) {
        let spans = spans(trace);
        for (index, (lane, start, end, name)) in spans.iter().enumerate() {
            for (other_lane, other_start, other_end, other) in &spans[index + 1..] {
                let apart = end <= other_start || other_end <= start;
                let inside = (start <= other_start && other_end <= end)
                    || (other_start <= start && end <= other_end);
                assert!(
                    lane != other_lane || apart || inside,
                    "{name} {start}..{end} and {other} {other_start}..{other_end} in {lane:?}"
                );
            }
        }
    }

    #[test]
    fn concurrent_steps_branch_and_free_lanes_are_reused() {
        let log = Log {
            activities: vec![
                ended(1, 0, Span::Flow, 0, 100),
                ended(2, 1, Span::Step, 0, 60),
                ended(3, 1, Span::Step, 10, 40),
                ended(4, 3, Span::Prefill, 10, 20),
                // Aborted with its flow, but reported later.
                ended(5, 1, Span::Step, 90, 130),
                ended(6, 0, Span::Flow, 50, 90),
                ended(7, 0, Span::Flow, 100, 120),
            ],
            ..Log::default()
        };
        let trace = json(&log, |ticks| ticks);
        assert_nested(&trace);
        let lanes: Vec<_> = spans(&trace)
            .into_iter()
            .map(|((_, lane), start, end, name)| (name, start, end, lane))
            .collect();
        let expected = [
            ("flow", 0, 100, 1),
            ("step", 0, 60, 1),
            ("step", 10, 40, 2),
            ("prefill", 10, 20, 2),
            ("flow", 50, 90, 3),
            ("step", 90, 100, 1),
            ("flow", 100, 120, 1),
        ];
        let expected = expected.map(|(name, start, end, lane)| (name.to_owned(), start, end, lane));
        assert_eq!(lanes, expected);
    }

    #[test]
    fn passes_carry_their_token_counts() {
        let of = PassTokens {
            sequences: 2,
            prefill_tokens: 30,
            decode_tokens: 1,
        };
        let pass = |start, end| EndedPass {
            span: Span::Forward,
            of,
            start,
            end,
            kv_pages: 7,
            device: None,
        };
        let log = Log {
            passes: vec![pass(0, 10), pass(5, 12), pass(10, 20)],
            dropped: 4,
            ..Log::default()
        };
        let trace = json(&log, |ticks| ticks);
        assert_nested(&trace);
        let lanes: Vec<u64> = spans(&trace).iter().map(|((_, lane), ..)| *lane).collect();
        assert_eq!(lanes, [1, 2, 1]);
        assert_eq!(trace["otherData"]["events_dropped"], 4);
        let events = trace["traceEvents"].as_array().expect("a list");
        let forward = events.iter().find(|event| event["name"] == "forward");
        assert_eq!(forward.expect("a pass")["args"]["prefill_tokens"], 30);
        let kv = events.iter().find(|event| event["name"] == "KV pages");
        assert_eq!(kv.expect("a counter")["args"]["held"], 7);
    }

    #[test]
    fn device_times_are_nested_and_end_with_their_pass() {
        let pass = |start, end, nanos, kernels: &[(Span, u64)]| EndedPass {
            span: Span::Forward,
            of: PassTokens::default(),
            start,
            end,
            kv_pages: 0,
            device: Some(DevicePass {
                device: "a card".to_owned(),
                nanos,
                kernels: kernels.to_vec(),
            }),
        };
        let log = Log {
            passes: vec![
                pass(0, 100, 40, &[(Span::Norm, 10), (Span::Linear, 25)]),
                // A simulated device's time, and sums that are rounded up.
                pass(100, 110, 1000, &[(Span::Norm, 600), (Span::Head, 500)]),
            ],
            ..Log::default()
        };
        let trace = json(&log, |ticks| ticks);
        assert_nested(&trace);
        let found: Vec<_> = spans(&trace)
            .into_iter()
            .filter(|((pid, _), ..)| *pid == u64::from(GPU))
            .map(|(_, start, end, name)| (name, start, end))
            .collect();
        let expected = [
            ("pass", 60, 100),
            ("norm", 60, 70),
            ("linear", 70, 95),
            ("pass", 100, 110),
            ("norm", 100, 106),
            ("head", 106, 110),
        ];
        assert_eq!(
            found,
            expected.map(|(name, start, end)| (name.to_owned(), start, end))
        );
    }

    proptest! {
        /// For arbitrary nesting and durations.
        #[test]
        fn lanes_are_nested(
            activities in prop::collection::vec((0u64..12, 0u64..40, 0u64..30), 0..40),
        ) {
            let activities = (1..).zip(activities).map(|(id, (back, start, length))| {
                let parent = if back == 0 || back >= id { 0 } else { id - back };
                ended(id, parent, Span::Step, start, start + length)
            });
            let log = Log { activities: activities.collect(), ..Log::default() };
            assert_nested(&json(&log, |ticks| ticks));
        }
    }
}
