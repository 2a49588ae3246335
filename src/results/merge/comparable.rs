//! Whether two runs measured the same job.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ShardPart;
use crate::config::Scope;
use crate::results::identity::flat;

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

/// The first difference between the jobs of two runs, in words.
pub(super) fn difference(one: &ShardPart, other: &ShardPart) -> Option<String> {
    let (first, second) = (identity(one), identity(other));
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let differs = |name: &&&String| {
        let values = [first.get(**name), second.get(**name)];
        // An engine that was never started says nothing.
        let is_unknown = |value: &Option<&Value>| value.is_none_or(Value::is_null);
        let unknown = name.starts_with(ENGINE) && values.iter().any(is_unknown);
        !unknown && values[0] != values[1]
    };
    let name = names.iter().find(differs)?;
    let show = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
    Some(format!(
        "{name} is {} in {} and {} in {}",
        show(first.get(*name)),
        one.name(),
        show(second.get(*name)),
        other.name()
    ))
}

/// Everything that must be equal in runs of one job, by its name in errors.
fn identity(part: &ShardPart) -> BTreeMap<String, Value> {
    let record = part.record();
    let expansion = &record.expansion;
    let mut all: BTreeMap<String, Value> = [
        ("the number of shards", Value::from(part.shard.of)),
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
            all.insert(format!("the setting {name}"), value);
        }
    }
    all
}
