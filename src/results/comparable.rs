//! Whether the measurements of two runs can be put together, as of one job, and how their machines differ.
//!
//! The facts are those of [`Identity`], by the same names, and what comparisons leave out: limits and prices, and the
//! device as it was chosen instead of the one that it turned out to be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::identity::{Identity, flat};
use crate::config::{Limits, Scope};
use crate::record::RunRecord;
use crate::record::compare::Difference;

/// Settings that are no facts of [`Identity`], besides the limits.
const CHOSEN: [&str; 2] = ["device", "prices"];

/// What is told before anything else: it explains further differences.
const FIRST: [&str; 2] = ["template", "num_flows"];

/// The first difference between the jobs of two shards.
pub(super) fn difference(one: &RunRecord, other: &RunRecord) -> Option<Difference> {
    let of = |record: &RunRecord| {
        let mut all = identity(record, Limits::NAMES);
        all.job.remove("shard");
        all
    };
    first(&of(one), &of(other))
}

/// The first difference that keeps `again` from going on with the flows of `earlier`. Limits may differ: they
/// decide where a run ends early, not what it measures.
pub fn obstacle(earlier: &RunRecord, again: &RunRecord) -> Option<Difference> {
    first(&identity(earlier, &[]), &identity(again, &[]))
}

fn first(one: &Identity, other: &Identity) -> Option<Difference> {
    let rank = |difference: &Difference| {
        let known = FIRST.iter().position(|first| *first == difference.name);
        known.unwrap_or(FIRST.len())
    };
    one.differences(other).into_iter().min_by_key(rank)
}

/// Everything that must be equal, with the settings that `limits` names.
fn identity(record: &RunRecord, limits: &[&str]) -> Identity {
    let mut job = Identity::of(record).job;
    let settings = flat(&record.settings);
    for name in CHOSEN.iter().chain(limits) {
        let value = settings.get(*name).cloned().unwrap_or_default();
        job.insert((*name).to_owned(), value);
    }
    // The name says more than the hash.
    if let Some(Value::String(hash)) = job.get("template") {
        let template = format!("{} ({hash})", record.expansion.template);
        job.insert("template".to_owned(), template.into());
    }
    Identity {
        job,
        ..Identity::default()
    }
}

/// Facts of the environment and the engine, and settings of the machine and limits, in which `again` differs
/// from `first`: by name, with the values of `again`.
pub fn circumstances(first: &RunRecord, again: &RunRecord) -> BTreeMap<String, Value> {
    let of = |record: &RunRecord| {
        let mut all = BTreeMap::new();
        let environment = serde_json::to_value(&record.environment).unwrap_or_default();
        for (part, value) in [("environment", &environment), ("engine", &record.engine)] {
            for (name, value) in value.as_object().into_iter().flatten() {
                // Measured anew each time.
                if !matches!(name.as_str(), "load" | "jit_ms") {
                    all.insert(format!("{part}.{name}"), value.clone());
                }
            }
        }
        for (name, value) in flat(&record.settings) {
            let scope = Scope::of(&name);
            // Whether rows are resumed is none of the circumstances.
            let is_how = name == "resume";
            if !is_how && scope == Scope::Machine || Limits::NAMES.contains(&name.as_str()) {
                all.insert(format!("settings.{name}"), value);
            }
        }
        all
    };
    let before = of(first);
    let mut differing = of(again);
    differing.retain(|name, value| before.get(name).unwrap_or(&Value::Null) != value);
    differing
}
