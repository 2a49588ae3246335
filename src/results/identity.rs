//! What a run measured, and where: the facts that decide whether runs can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use crate::config::{Limits, Scope};
use crate::error::{Error, Result};
use crate::hash::PartsHasher;
use crate::record::RunRecord;
use crate::record::compare::{Difference, MeasuredRun};

/// Settings that are objects of further settings.
const NESTED: [&str; 2] = ["remote", "rollouts"];

/// Settings that only choose what the engine reports as a fact, and those that say what tokens cost.
const NO_FACTS: &[&str] = &["backend", "device", "prices"];

/// Facts under which outputs stay the same: a difference in them does not explain other outputs.
const HARMLESS: &[&str] = &[
    "revision",
    "version",
    "machine",
    "processor",
    "memory",
    "os",
    "gpu",
    "driver",
    "endpoint",
    "concurrency",
    "kv_cache_bytes",
    "gpu_memory_utilization",
    "cuda_graphs",
    "speculate",
    "mode",
    "rounds",
    SEGMENTS,
];

/// Number of processes of a resumed run. Its times are never taken for those of one process.
const SEGMENTS: &str = "segments";

/// What is known from the engine alone.
const OF_THE_ENGINE: &[&str] = &["engine", "model", "weights", "backend", "device"];

/// The name of the host.
const HOST: &str = "machine";

/// Facts of the machine itself.
const OF_THE_MACHINE: &[&str] = &["machine", "processor", "memory", "gpu", "driver", "os"];

/// Facts that may differ between the runs of one side.
const PER_RUN: &[&str] = &["revision", HOST];

/// Memory of virtual machines differs by a few pages from boot to boot.
const MEMORY_STEP: f64 = (1u64 << 29) as f64;

/// The facts of a run, by the names of `--subject` and `--allow-different`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Identity {
    /// What is measured: template, fixture, engine, model, and the job's settings.
    pub job: BTreeMap<String, Value>,
    /// Where: machine, processor, GPU, driver, memory, operating system.
    pub machine: BTreeMap<String, Value>,
    /// Which program, which state of the checkout, and whether it ran in several processes.
    pub program: BTreeMap<String, Value>,
}

impl Identity {
    pub fn of(record: &RunRecord) -> Self {
        let settings = flat(&record.settings);
        let engine = |name: &str| record.engine.get(name).cloned().unwrap_or_default();
        let device = record.engine.get("device").cloned().unwrap_or_default();
        let mut job: BTreeMap<String, Value> = settings
            .iter()
            .filter(|(name, _)| Scope::of(name) == Scope::Job)
            // Limits decide where a run ends early, not what it measures.
            .filter(|(name, _)| !Limits::NAMES.contains(&name.as_str()))
            .filter(|(name, _)| !NO_FACTS.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let facts = [
            ("template", short(&record.expansion.template_hash)),
            ("fixture", short(&record.expansion.fixture_hash)),
            ("engine", engine("kind")),
            ("model", model(record)),
            ("weights", engine("weights")),
            ("backend", engine("backend")),
            ("device", device.get("kind").cloned().unwrap_or_default()),
        ];
        job.extend(named(facts));
        if let Some(shard) = record.shard {
            job.insert("shard".to_owned(), shard.to_string().into());
        }
        job.insert("num_flows".to_owned(), record.expansion.num_flows.into());

        let environment = &record.environment;
        let card = record.gpu.as_ref().map(|gpu| &gpu.card);
        let is_gpu = device.get("kind").and_then(Value::as_str) == Some("cuda");
        let gpu = card.and_then(|card| card.uuid.clone()).map(Value::from);
        let threads = environment.cpu_threads;
        let memory = environment.memory_bytes as f64 / MEMORY_STEP;
        let machine = [
            ("machine", environment.hostname_hash.clone().into()),
            (
                "processor",
                format!("{}, {threads} threads", environment.cpu).into(),
            ),
            ("memory", format!("{:.1} GiB", memory.round() / 2.0).into()),
            ("os", environment.os.as_str().into()),
            (
                "gpu",
                gpu.or_else(|| device.get("name").filter(|_| is_gpu).cloned())
                    .unwrap_or_default(),
            ),
            ("driver", card.and_then(|card| card.driver.clone()).into()),
            (
                "endpoint",
                settings.get("endpoint").cloned().unwrap_or_default(),
            ),
        ];
        let program = [
            ("version", environment.flowbench.as_str().into()),
            ("revision", environment.git_revision.clone().into()),
        ];
        let mut program: BTreeMap<String, Value> = named(program).collect();
        let segments = segments(record);
        if segments > 1 {
            program.insert(SEGMENTS.to_owned(), segments.into());
        }
        Self {
            job,
            machine: named(machine).collect(),
            program,
        }
    }

    /// What differs, by name. An engine that was never started says nothing.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let parts = [
            (&self.job, &other.job),
            (&self.machine, &other.machine),
            (&self.program, &other.program),
        ];
        let mut differences = Vec::new();
        for (one, other) in parts {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let values = [one, other].map(|facts| facts.get(name).unwrap_or(&Value::Null));
                let is_unknown =
                    OF_THE_ENGINE.contains(&name.as_str()) && values.contains(&&Value::Null);
                if values[0] != values[1] && !is_unknown {
                    let [base, new] = values.map(shown);
                    differences.push(Difference {
                        name: name.clone(),
                        base,
                        new,
                    });
                }
            }
        }
        differences
    }

    /// First 16 hex digits of the SHA-256 of the job's facts.
    pub fn job_digest(&self) -> String {
        digest(&self.job)
    }

    /// The same of the machine's facts. The host's name is not among them: that of a container changes with every
    /// start.
    pub fn machine_digest(&self) -> String {
        let mut facts = self.machine.clone();
        facts.remove(HOST);
        digest(&facts)
    }
}

/// The identity that the runs of one side have in common; `allowed` facts may differ.
///
/// # Errors
/// Exit code 2 if the runs differ in anything else.
pub fn common(
    folders: &[PathBuf],
    identities: &[Identity],
    allowed: &[String],
) -> Result<Identity> {
    let Some(first) = identities.first() else {
        return Err(Error::usage("no run was named"));
    };
    for (folder, identity) in folders.iter().zip(identities).skip(1) {
        let differences = first.differences(identity);
        let differs = |difference: &&Difference| {
            !allowed.contains(&difference.name) && !PER_RUN.contains(&difference.name.as_str())
        };
        if let Some(difference) = differences.iter().find(differs) {
            let message = format!(
                "the runs of one side differ: {} is {} in {} and {} in {}",
                difference.name,
                difference.base,
                folders[0].display(),
                difference.new,
                folder.display()
            );
            return Err(Error::usage(message).hint(format!(
                "name runs of one kind, or accept it with --allow-different {}",
                difference.name
            )));
        }
    }
    Ok(first.clone())
}

/// Refuses runs that were interrupted and resumed, unless that is `allowed`.
///
/// # Errors
/// Exit code 2, with the run.
pub fn undisturbed(folders: &[PathBuf], runs: &[MeasuredRun], allowed: &[String]) -> Result<()> {
    if allowed.iter().any(|name| name == SEGMENTS) {
        return Ok(());
    }
    let mut runs = folders.iter().zip(runs);
    match runs.find(|(_, run)| segments(&run.record) > 1) {
        None => Ok(()),
        Some((folder, _)) => {
            let message = format!(
                "{}: the run was interrupted and resumed, so its times are those of several processes",
                folder.display()
            );
            Err(Error::usage(message).hint(
                "name runs that were not interrupted, or accept it with --allow-different segments",
            ))
        }
    }
}

/// The number of segments; of a merged run the largest of its shards'.
pub fn segments(record: &RunRecord) -> usize {
    let shards = record.shards.iter().map(|shard| shard.segments.len());
    shards.max().unwrap_or(0).max(record.segments.len())
}

/// Divides what differs between two sides into the subject of the comparison and what is accepted besides.
/// Without a named subject, the only thing that differs is it. Another host's name is accepted if nothing else of
/// the machine differs, since that of a container changes with every start.
///
/// # Errors
/// Exit code 2 for differences that are neither.
pub fn subject(
    differences: Vec<Difference>,
    subject: &[String],
    allowed: &[String],
) -> Result<(Vec<Difference>, Vec<Difference>)> {
    let other_machine = |difference: &Difference| {
        difference.name != HOST && OF_THE_MACHINE.contains(&difference.name.as_str())
    };
    let same_machine = !differences.iter().any(other_machine);
    let is_accepted = |difference: &Difference| {
        let is_name_alone = difference.name == HOST && same_machine;
        let is_subject = subject.contains(&difference.name);
        allowed.contains(&difference.name) || (is_name_alone && !is_subject)
    };
    let (accepted, left): (Vec<Difference>, Vec<Difference>) =
        differences.into_iter().partition(is_accepted);
    if subject.is_empty() && left.len() <= 1 {
        return Ok((left, accepted));
    }
    let (named, obstacles): (Vec<Difference>, Vec<Difference>) =
        (left.into_iter()).partition(|difference| subject.contains(&difference.name));
    if obstacles.is_empty() {
        return Ok((named, accepted));
    }
    let facts: Vec<String> = (obstacles.iter())
        .map(|fact| format!("{} ({} and {})", fact.name, fact.base, fact.new))
        .collect();
    let names: Vec<&str> = obstacles.iter().map(|fact| fact.name.as_str()).collect();
    let names = names.join(",");
    let message = if subject.is_empty() {
        format!(
            "the runs differ in more than one thing: {}",
            facts.join(", ")
        )
    } else {
        format!("the runs also differ in {}", facts.join(", "))
    };
    let hint = format!(
        "say what is compared with --subject, such as --subject {names}, or accept it with --allow-different {names}"
    );
    Err(Error::usage(message).hint(hint))
}

/// Whether other outputs are to be expected where `differences` exist.
pub fn explains_outputs(differences: &[Difference]) -> bool {
    let mut names = differences
        .iter()
        .map(|difference| difference.name.as_str());
    names.any(|name| !HARMLESS.contains(&name))
}

/// The model by its content if that is known, otherwise by its name.
fn model(record: &RunRecord) -> Value {
    let text = |name: &str| record.engine.get(name).and_then(Value::as_str);
    match (text("model"), text("model_sha256")) {
        (Some(model), Some(hash)) => format!("{model} ({})", prefix(hash)).into(),
        (Some(model), None) => model.into(),
        (None, _) => Value::Null,
    }
}

fn short(hash: &str) -> Value {
    prefix(hash).into()
}

fn prefix(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn named<const N: usize>(facts: [(&str, Value); N]) -> impl Iterator<Item = (String, Value)> {
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect::<Vec<_>>()
        .into_iter()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "unset".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn digest(facts: &BTreeMap<String, Value>) -> String {
    let mut hasher = PartsHasher::default();
    for (name, value) in facts {
        hasher.part(name.as_bytes());
        hasher.part(value.to_string().as_bytes());
    }
    hasher.finish()[..16].to_owned()
}

/// The settings, with nested ones beside the others.
pub(super) fn flat(settings: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (name, value) in settings {
        match value {
            Value::Object(members) if NESTED.contains(&name.as_str()) => {
                flat.extend(members.clone())
            }
            value => {
                flat.insert(name.clone(), value.clone());
            }
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::compare::made::run;

    fn named(names: &[&str]) -> Vec<Difference> {
        let difference = |name: &&str| Difference {
            name: (*name).to_owned(),
            base: "a".to_owned(),
            new: "b".to_owned(),
        };
        names.iter().map(difference).collect()
    }

    /// The names of the subject and of what is accepted.
    fn divided(differing: &[&str], about: &[&str], allowed: &[&str]) -> Option<[Vec<String>; 2]> {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let names = |facts: Vec<Difference>| facts.into_iter().map(|fact| fact.name).collect();
        let (subject, accepted) = subject(named(differing), &owned(about), &owned(allowed)).ok()?;
        Some([names(subject), names(accepted)])
    }

    #[test]
    fn the_only_difference_is_the_subject_and_others_are_obstacles() {
        let [of_one, accepted] = divided(&["seed"], &[], &[]).expect("one");
        assert_eq!((of_one, accepted), (vec!["seed".to_owned()], Vec::new()));
        assert_eq!(divided(&["seed", "model"], &[], &[]), None);
        assert_eq!(divided(&["seed", "model"], &["seed"], &[]), None);
        assert!(divided(&["seed", "model"], &["seed", "model"], &[]).is_some());
        let [about, accepted] = divided(&["seed", "model"], &[], &["seed"]).expect("one is left");
        assert_eq!(
            (about, accepted),
            (vec!["model".to_owned()], vec!["seed".to_owned()])
        );
        assert_eq!(
            divided(&[], &["model"], &[]),
            Some([Vec::new(), Vec::new()])
        );
    }

    #[test]
    fn the_name_of_the_host_alone_makes_no_other_machine() {
        let [about, accepted] = divided(&["machine", "revision"], &[], &[]).expect("one is left");
        assert_eq!(
            (about, accepted),
            (vec!["revision".to_owned()], vec!["machine".to_owned()])
        );
        assert_eq!(divided(&["machine", "processor"], &[], &[]), None);
        let [about, _] = divided(&["machine"], &["machine"], &[]).expect("the subject");
        assert_eq!(about, ["machine"]);
        let mut one = run("a", 1, |_, _| 1.0).record;
        let digest = |record: &RunRecord| Identity::of(record).machine_digest();
        let before = digest(&one);
        one.environment.hostname_hash = Some("0123".to_owned());
        assert_eq!(digest(&one), before);
        one.environment.cpu = "another".to_owned();
        assert_ne!(digest(&one), before);
    }

    #[test]
    fn an_engine_that_was_never_started_is_no_other_engine() {
        let one = run("a", 1, |_, _| 1.0).record;
        let mut killed = one.clone();
        killed.engine = Value::Null;
        let differences = |other: &RunRecord| Identity::of(&one).differences(&Identity::of(other));
        assert_eq!(differences(&killed), []);
        killed.engine = serde_json::json!({"kind": "remote"});
        assert_eq!(differences(&killed)[0].name, "engine");
    }

    #[test]
    fn limits_prices_and_paths_make_no_other_job() {
        let mut one = run("a", 1, |_, _| 1.0).record;
        let digest = |record: &RunRecord| Identity::of(record).job_digest();
        let before = digest(&one);
        for name in ["deadline_s", "prices", "out", "script", "quiet", "backend"] {
            one.settings.insert(name.to_owned(), Value::from(1));
            assert_eq!(digest(&one), before, "{name}");
        }
        one.settings.insert("seed".to_owned(), Value::from(1));
        assert_ne!(digest(&one), before);
    }
}
