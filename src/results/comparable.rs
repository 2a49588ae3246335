//! Whether two runs measured the same job, and how their machines differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::identity::flat;
use crate::config::{Limits, Scope};
use crate::record::RunRecord;

/// What must be equal of the engines; the rest (path, device) belongs to the machine.
const OF_THE_ENGINE: &[&str] = &[
    "kind",
    "model",
    "model_sha256",
    "architecture",
    "backend",
    "weights",
];

/// Prefix of the engine's names in errors.
const ENGINE: &str = "the engine's ";

/// Prefix of the settings' names in errors.
const SETTING: &str = "the setting ";

/// What is told before anything else: it explains further differences.
const FIRST: [&str; 3] = ["the template", "the number of flows", "the template's hash"];

/// A difference between two runs' jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What differs, such as `the setting seed`.
    pub name: String,
    /// The values of both, as JSON; `unset` for none.
    pub values: [String; 2],
}

/// The first difference between the jobs of two runs.
pub(super) fn difference(one: &RunRecord, other: &RunRecord) -> Option<Difference> {
    first(identity(one), identity(other))
}

/// The first difference that keeps `again` from going on with the flows of `earlier`. Limits may differ: they
/// decide where a run ends early, not what it measures.
pub fn obstacle(earlier: &RunRecord, again: &RunRecord) -> Option<Difference> {
    let of = |record: &RunRecord| {
        let mut all = identity(record);
        all.retain(|name, _| {
            let setting = name.strip_prefix(SETTING);
            !setting.is_some_and(|name| Limits::NAMES.contains(&name))
        });
        let shard = record.shard.map(|shard| Value::from(shard.to_string()));
        all.insert("the shard".to_owned(), shard.unwrap_or_default());
        all
    };
    first(of(earlier), of(again))
}

fn first(one: BTreeMap<String, Value>, other: BTreeMap<String, Value>) -> Option<Difference> {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differs = |name: &&&String| {
        let values = [one.get(**name), other.get(**name)];
        // An engine that was never started says nothing.
        let is_unknown = |value: &Option<&Value>| value.is_none_or(Value::is_null);
        let unknown = name.starts_with(ENGINE) && values.iter().any(is_unknown);
        !unknown && values[0] != values[1]
    };
    // What explains the others comes first.
    let rank = |name: &&&String| {
        let known = FIRST.iter().position(|first| first == &name.as_str());
        known.unwrap_or(FIRST.len())
    };
    let name = *names.iter().filter(differs).min_by_key(rank)?;
    let show = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
    Some(Difference {
        name: name.clone(),
        values: [show(one.get(name)), show(other.get(name))],
    })
}

/// Everything that must be equal in runs of one job, by its name in errors.
fn identity(record: &RunRecord) -> BTreeMap<String, Value> {
    let expansion = &record.expansion;
    let mut all: BTreeMap<String, Value> = [
        ("the number of flows", Value::from(expansion.num_flows)),
        ("the template", Value::from(expansion.template.as_str())),
        (
            "the template's hash",
            Value::from(expansion.template_hash.as_str()),
        ),
        (
            "the fixture's hash",
            Value::from(expansion.fixture_hash.as_str()),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for name in OF_THE_ENGINE {
        let value = record.engine.get(name).cloned().unwrap_or_default();
        all.insert(format!("{ENGINE}{name}"), value);
    }
    for (name, value) in flat(&record.settings) {
        if Scope::of(&name) == Scope::Job {
            all.insert(format!("{SETTING}{name}"), value);
        }
    }
    all
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
