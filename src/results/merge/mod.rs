//! Merges the runs of a job's shards into one run.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::SavedRun;
use super::comparable;
use crate::error::{Error, Result};
use crate::metrics::{self, Tally};
use crate::record::evaluation::{UsageRecord, VerificationRecord};
use crate::record::remote::RemoteRecord;
use crate::record::shard::{Shard, ShardRun};
use crate::record::{Energy, PrefixRecord, RunRecord, Status, StepRecord, Totals, WorkflowRecord};
use crate::units::{Millis, plural};

/// The runs of a job's shards, in the order of the shards.
pub struct Shards(Vec<ShardPart>);

/// A run of one shard.
struct ShardPart {
    shard: Shard,
    run: SavedRun,
}

impl ShardPart {
    fn record(&self) -> &RunRecord {
        &self.run.record
    }

    /// Its name in errors.
    fn name(&self) -> String {
        format!("{} (shard {})", self.run.folder.display(), self.shard)
    }
}

impl Shards {
    /// Reads the runs, and checks that they are distinct parts of one job.
    ///
    /// # Errors
    /// Exit code 2 if a run cannot be read, is no shard, or is not part of the same job.
    pub fn read<'a>(paths: impl Iterator<Item = &'a Path>, out: &Path) -> Result<Self> {
        let parts = paths.map(|path| part(SavedRun::read(Some(path), out)?));
        let mut parts = parts.collect::<Result<Vec<ShardPart>>>()?;
        parts.sort_by_key(|part| part.shard);
        check(&parts)?;
        Ok(Self(parts))
    }

    /// What is missing from the job, in words; empty if it is complete.
    pub fn missing(&self) -> Vec<String> {
        let parts = &self.0;
        let of = parts.first().map_or(0, |part| part.shard.of);
        let given: BTreeSet<usize> = parts.iter().map(|part| part.shard.index).collect();
        let mut missing: Vec<String> = (1..=of)
            .filter(|index| !given.contains(index))
            .map(|index| format!("shard {index}/{of} is missing"))
            .collect();
        for part in parts {
            let record = part.record();
            let expected = part.shard.count(record.expansion.num_flows);
            let ended = record.workflows.len();
            if ended < expected || matches!(record.status, Status::Running | Status::Incomplete) {
                missing.push(format!(
                    "shard {} ended early, with {ended} of its {}",
                    part.shard,
                    plural(expected, "workflow")
                ));
            }
        }
        missing
    }

    /// Steps and record of the merged run. Steps are sorted by flow, and within a flow by when they ended.
    /// Times are as each machine measured them; those of a whole run are the longest of all shards.
    pub fn merge(&self) -> (Vec<StepRecord>, RunRecord) {
        let parts = &self.0;
        let records = || parts.iter().map(ShardPart::record);
        let mut steps: Vec<StepRecord> = (parts.iter())
            .flat_map(|part| part.run.steps.iter().cloned())
            .collect();
        steps.sort_by_key(|step| step.flow);
        let mut workflows: Vec<WorkflowRecord> = records()
            .flat_map(|record| record.workflows.clone())
            .collect();
        workflows.sort_by_key(|workflow| workflow.flow);

        let mut record = parts[0].record().clone();
        let longest = |times: Vec<Option<Millis>>| {
            let known = times.into_iter().flatten();
            known.max_by(|a, b| a.0.total_cmp(&b.0))
        };
        record.started_at = (records().map(|record| record.started_at.clone()))
            .min()
            .unwrap_or_default();
        let mut engines = records().map(|record| &record.engine);
        if let Some(engine) = engines.find(|engine| !engine.is_null()) {
            record.engine = engine.clone();
        }
        record.engine_init_ms = longest(records().map(|record| record.engine_init_ms).collect());
        record.pool_init_ms = longest(records().map(|record| record.pool_init_ms).collect());
        record.engine_starts = records()
            .map(|record| record.engine_starts)
            .max()
            .unwrap_or(0);
        record.expansion.flow_expansion_ms = longest(
            records()
                .map(|record| Some(record.expansion.flow_expansion_ms))
                .collect(),
        )
        .unwrap_or_default();
        record.expansion.prefix = prefix(parts);
        record.totals = totals(&steps, &workflows, parts);
        record.totals.benchmark_total_ms = longest(
            records()
                .map(|record| record.totals.benchmark_total_ms)
                .collect(),
        );
        record.workflows = workflows;
        record.profile = None;
        // These stay with each shard.
        record.environment.load = None;
        record.gpu = None;
        record.validity = None;
        record.discarded = records()
            .flat_map(|record| record.discarded.clone())
            .collect();
        record.rollouts = None;
        record.segments = Vec::new();
        record.shard = None;
        record.shards = parts
            .iter()
            .map(|part| ShardRun {
                shard: part.shard,
                run_id: part.record().run_id.clone(),
                started_at: part.record().started_at.clone(),
                status: part.record().status,
                environment: part.record().environment.clone(),
                engine: part.record().engine.clone(),
                gpu: part.record().gpu.clone(),
                engine_init_ms: part.record().engine_init_ms,
                benchmark_total_ms: part.record().totals.benchmark_total_ms,
                segments: part.record().segments.clone(),
            })
            .collect();
        (steps, record)
    }

    /// Differences between the machines that matter when their times are compared.
    pub fn differences(&self) -> Vec<String> {
        let parts = &self.0;
        let differing = |what: &str, of: fn(&RunRecord) -> String| {
            let values: BTreeSet<String> = parts.iter().map(|part| of(part.record())).collect();
            let list = || values.iter().cloned().collect::<Vec<_>>().join("; ");
            (values.len() > 1)
                .then(|| format!("note: {what} differ between the shards: {}", list()))
        };
        [
            differing("processors", |record| record.environment.cpu.clone()),
            differing("devices", |record| {
                let name = record
                    .engine
                    .pointer("/device/name")
                    .and_then(Value::as_str);
                name.unwrap_or_default().to_owned()
            }),
            differing("endpoints", |record| {
                let endpoint =
                    (record.settings.get("remote")).and_then(|remote| remote.get("endpoint"));
                endpoint
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            }),
            differing("versions of flowbench", |record| {
                let environment = &record.environment;
                let revision = environment.git_revision.as_deref().unwrap_or("no revision");
                format!("{} ({revision})", environment.flowbench)
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Checks that a run is a shard and holds no flow of another one.
fn part(run: SavedRun) -> Result<ShardPart> {
    let folder = run.folder.display().to_string();
    let shard = run.record.shard.ok_or_else(|| {
        Error::usage(format!("{folder}: the run is no shard"))
            .hint("run the parts of a job with --shard 1/n, --shard 2/n, … (SHARD)")
    })?;
    if run.record.comparison.is_some()
        || run.record.settings.get("mode").and_then(Value::as_str) == Some("both")
    {
        return Err(
            Error::usage(format!("{folder}: a run of MODE=both cannot be joined")).hint(
                "its rounds compare two modes on one machine; read each shard's table by itself",
            ),
        );
    }
    let flows = (run.record.workflows.iter().map(|workflow| workflow.flow))
        .chain(run.steps.iter().map(|step| step.flow));
    let of = run.record.expansion.num_flows;
    for flow in flows {
        if !shard.holds(flow) || !(1..=of).contains(&flow) {
            return Err(Error::usage(format!(
                "{folder}: flow {flow} is not in shard {shard} of {}",
                plural(of, "flow")
            ))
            .hint("the record was changed after the run: take it as the run wrote it"));
        }
    }
    Ok(ShardPart { shard, run })
}

/// Checks that the runs are parts of one job, each given once.
fn check(parts: &[ShardPart]) -> Result<()> {
    let Some((first, others)) = parts.split_first() else {
        return Err(Error::usage("there is no run to join"));
    };
    for pair in parts.windows(2) {
        if pair[0].shard == pair[1].shard {
            return Err(Error::usage(format!(
                "shard {} is given twice: {} and {}",
                pair[0].shard,
                pair[0].run.folder.display(),
                pair[1].run.folder.display()
            ))
            .hint("give each shard's run once"));
        }
    }
    for other in others {
        if let Some(difference) = difference(first, other) {
            return Err(
                Error::usage(format!("the runs are not parts of one job: {difference}"))
                    .hint("join runs of the same flows, engine and settings, made with SHARD=i/n"),
            );
        }
    }
    Ok(())
}

/// The first difference between the jobs of two shards, in words.
fn difference(one: &ShardPart, other: &ShardPart) -> Option<String> {
    let (name, first, second) = if one.shard.of == other.shard.of {
        let difference = comparable::difference(one.record(), other.record())?;
        (difference.name, difference.base, difference.new)
    } else {
        let [first, second] = [one, other].map(|part| part.shard.of.to_string());
        ("the number of shards".to_owned(), first, second)
    };
    let (one, other) = (one.name(), other.name());
    Some(format!(
        "{name} is {first} in {one} and {second} in {other}"
    ))
}

/// Sums over the shards: each shares prefixes among its own prompts only.
fn prefix(parts: &[ShardPart]) -> Option<PrefixRecord> {
    let prefixes = parts.iter().map(|part| part.record().expansion.prefix);
    let known = prefixes.collect::<Option<Vec<PrefixRecord>>>()?;
    let sum = |of: fn(&PrefixRecord) -> u64| known.iter().map(of).sum();
    Some(PrefixRecord {
        prompt_bytes: sum(|prefix| prefix.prompt_bytes),
        reusable_bytes: sum(|prefix| prefix.reusable_bytes),
        reusable_bytes_reordered: sum(|prefix| prefix.reusable_bytes_reordered),
    })
}

/// Recomputed from steps and workflows; what is known of whole runs only is summed.
fn totals(steps: &[StepRecord], workflows: &[WorkflowRecord], parts: &[ShardPart]) -> Totals {
    let mut tally = Tally::default();
    steps.iter().for_each(|step| tally.step(step));
    workflows.iter().for_each(|flow| tally.workflow(flow));
    let all = || parts.iter().map(|part| &part.record().totals);
    let energies: Option<Vec<&Energy>> = all().map(|totals| totals.energy.as_ref()).collect();
    let remotes: Vec<&RemoteRecord> = all().filter_map(|totals| totals.remote.as_ref()).collect();
    let mut totals = Totals {
        usage: usage(all().flat_map(|totals| &totals.usage)),
        verification: VerificationRecord::sum(
            all().filter_map(|totals| totals.verification.clone()),
        ),
        energy: energies.and_then(|energies| energy(&energies)),
        remote: (!remotes.is_empty()).then(|| {
            let mut sum = RemoteRecord::default();
            remotes.into_iter().for_each(|remote| sum.add(remote));
            sum
        }),
        memory_shortages: all()
            .flat_map(|totals| totals.memory_shortages.clone())
            .collect(),
        ..Totals::default()
    };
    tally.set_totals(&mut totals);
    let correct = (workflows.iter()).filter(|flow| metrics::is_correct(flow));
    if let Some(energy) = &mut totals.energy {
        metrics::set_rates(energy, totals.tokens.decode, correct.count());
    }
    totals
}

/// Sums over the shards, if all have it from the same source.
fn energy(all: &[&Energy]) -> Option<Energy> {
    let source = &all.first()?.source;
    let sum = |of: fn(&Energy) -> Option<f64>| all.iter().map(|energy| of(energy)).sum();
    (all.iter().all(|energy| energy.source == *source)).then(|| Energy {
        source: source.clone(),
        watts: all.iter().map(|energy| energy.watts).sum(),
        joules: all.iter().map(|energy| energy.joules).sum(),
        steps_joules: sum(|energy| energy.steps_joules),
        processors_joules: sum(|energy| energy.processors_joules),
        ..Energy::default()
    })
}

/// Sums by model and kind of step.
fn usage<'a>(all: impl Iterator<Item = &'a UsageRecord>) -> Vec<UsageRecord> {
    let mut sums: Vec<UsageRecord> = Vec::new();
    for usage in all {
        let same = |sum: &&mut UsageRecord| sum.model == usage.model && sum.kind == usage.kind;
        match sums.iter_mut().find(same) {
            None => sums.push(usage.clone()),
            Some(sum) => {
                sum.requests += usage.requests;
                sum.prompt_tokens += usage.prompt_tokens;
                sum.reused_tokens += usage.reused_tokens;
                sum.decode_tokens += usage.decode_tokens;
                sum.cost = sum.cost.zip(usage.cost).map(|(a, b)| a + b);
            }
        }
    }
    sums
}
