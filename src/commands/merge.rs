//! `flowbench merge`: the runs of a job's shards become one run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::MergeArgs;
use crate::error::{Error, Exit, Result};
use crate::metrics::{Positions, Scores, set_rewards};
use crate::record::evaluation::{UsageRecord, VerificationRecord};
use crate::record::remote::RemoteRecord;
use crate::record::shard::{Shard, ShardRun};
use crate::record::{Energy, PrefixRecord, RunRecord, Status, StepRecord, Totals, WorkflowRecord};
use crate::report::folder::RunFolder;
use crate::report::saved::SavedRun;
use crate::report::warnings::{self, Gathered};
use crate::report::{Console, timing, traffic};
use crate::statistics::{distribution, mean};
use crate::units::{Millis, plural};

/// Settings that say where and how a machine works and not what is computed: they may differ.
const OF_THE_MACHINE: &[&str] = &[
    "cache_dir",
    "endpoint",
    "gpu_power",
    "hf_cache_dir",
    "hf_endpoint",
    "input",
    "model",
    "offline",
    "out",
    "output",
    "profile",
    "profile_dir",
    "profile_name",
    "proxy",
    "python",
    "quiet",
    "record",
    "resume",
    "root",
    "script",
    "show_output",
    "show_prompt",
    "stats_addr",
    "template",
    "tokenizer",
    "wait_ready_s",
];

/// What must be the same of the engines; the rest is the machine's (path, device).
const OF_THE_ENGINE: &[&str] = &[
    "kind",
    "model",
    "model_sha256",
    "architecture",
    "backend",
    "weights",
];

/// How errors call what is the engine's.
const ENGINE: &str = "the engine's ";

/// Joins the runs and keeps what came of it as a run of its own.
///
/// # Errors
/// Exit code 2 where a run cannot be read, or they are not parts of one job; 106 where parts are
/// missing (the joined run is kept), 100 where flows failed, 110 where it cannot be written.
pub(crate) fn run(arguments: &MergeArgs, console: &mut Console) -> Result<Exit> {
    let out = arguments.results.folder();
    let read = |path| SavedRun::read(Some(path), &out);
    let runs = (arguments.runs.iter()).map(|path| read(path.as_path()));
    let mut parts = runs.map(part).collect::<Result<Vec<Part>>>()?;
    parts.sort_by_key(|part| part.shard);
    check(&parts)?;

    let name = format!(
        "{}-merged",
        jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")
    );
    let (steps, mut record) = join(&parts);
    let missing = missing(&parts);
    let error = verdict(&record, &missing);
    record.status = match &error {
        None => Status::Complete,
        Some(error) if error.exit() == Exit::Incomplete => Status::Incomplete,
        Some(_) => Status::Failed,
    };
    record.error = error.as_ref().map(Error::chain);
    let mut gathered = Gathered::default();
    steps.iter().for_each(|step| gathered.add(step));
    record.warnings = warnings::warnings(&record, &gathered);

    let (mut folder, run_id) = RunFolder::create(&out, &name)?;
    record.run_id = run_id;
    for step in &steps {
        folder.add_step(step)?;
    }
    folder.save(&record)?;

    for note in differences(&parts) {
        console.warning(&note);
    }
    console.result(&shards_line(&record, &missing))?;
    for line in timing::totals(&record.totals, record.expansion.num_flows) {
        console.result(&line)?;
    }
    for line in timing::scores(&record.totals) {
        console.result(&line)?;
    }
    if let Some(line) = timing::reward(&record.totals) {
        console.result(&line)?;
    }
    if let Some(remote) = &record.totals.remote {
        console.result(&traffic::line(remote))?;
    }
    for warning in &record.warnings {
        console.warning(&format!("warning: {warning}"));
    }
    console.result(&timing::run(folder.path()))?;
    match error {
        None => Ok(Exit::Done),
        Some(error) => {
            let folder = folder.path().display();
            Err(error.hint(format!("what there is has been joined in {folder}")))
        }
    }
}

/// A run and the part of the flows that it is.
struct Part {
    shard: Shard,
    run: SavedRun,
}

impl Part {
    fn record(&self) -> &RunRecord {
        &self.run.record
    }

    /// How errors call it.
    fn name(&self) -> String {
        format!("{} (shard {})", self.run.folder.display(), self.shard)
    }
}

/// A run as a part of a job, if that is what it is.
fn part(run: Result<SavedRun>) -> Result<Part> {
    let run = run?;
    let folder = run.folder.display().to_string();
    let shard = run.record.shard.ok_or_else(|| {
        Error::usage(format!("{folder}: the run is no shard"))
            .hint("run the parts of a job with --shard 1/n, --shard 2/n, … (SHARD)")
    })?;
    if run.record.comparison.is_some() || text(&run.record.settings, "mode") == Some("both") {
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
    Ok(Part { shard, run })
}

fn text<'a>(map: &'a BTreeMap<String, Value>, name: &str) -> Option<&'a str> {
    map.get(name)?.as_str()
}

/// Whether they are parts of one job, each given once.
fn check(parts: &[Part]) -> Result<()> {
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
    let ours = identity(first);
    for other in others {
        let theirs = identity(other);
        let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        for name in names {
            let (one, two) = (ours.get(name), theirs.get(name));
            // An engine that was never started has no say.
            let unsaid = |value: Option<&Value>| value.is_none_or(Value::is_null);
            if name.starts_with(ENGINE) && (unsaid(one) || unsaid(two)) {
                continue;
            }
            if one != two {
                let show = |value: Option<&Value>| {
                    value.map_or_else(|| "unset".to_owned(), Value::to_string)
                };
                return Err(Error::usage(format!(
                    "the runs are not parts of one job: {name} is {} in {} and {} in {}",
                    show(one),
                    first.name(),
                    show(two),
                    other.name()
                ))
                .hint("join runs of the same flows, engine and settings, made with SHARD=i/n"));
            }
        }
    }
    Ok(())
}

/// All that must be the same in every part.
fn identity(part: &Part) -> BTreeMap<String, Value> {
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
        if !OF_THE_MACHINE.contains(&name.as_str()) {
            all.insert(format!("the setting {name}"), value);
        }
    }
    all
}

/// The settings, those of `remote` and `rollouts` beside the others.
fn flat(settings: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (name, value) in settings {
        match value {
            Value::Object(members) if ["remote", "rollouts"].contains(&name.as_str()) => {
                flat.extend(members.clone())
            }
            value => {
                flat.insert(name.clone(), value.clone());
            }
        }
    }
    flat
}

/// What is not as it should be of the shards, in words; empty where all is there.
fn missing(parts: &[Part]) -> Vec<String> {
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

fn verdict(record: &RunRecord, missing: &[String]) -> Option<Error> {
    let totals = &record.totals;
    if !missing.is_empty() {
        return Some(Error::new(Exit::Incomplete, missing.join("; ")));
    }
    (totals.workflows_failed > 0).then(|| {
        let exit = match totals.steps_done {
            0 => Exit::NothingRan,
            _ => Exit::FlowFailed,
        };
        let all = record.workflows.len();
        Error::new(
            exit,
            format!(
                "{} of {} failed",
                totals.workflows_failed,
                plural(all, "workflow")
            ),
        )
    })
}

/// Joins what was measured. Steps come in the order of their flows, and within a flow in that in which
/// they ended. Times are as each machine measured them; of those that are of a whole run, the longest.
fn join(parts: &[Part]) -> (Vec<StepRecord>, RunRecord) {
    let records = || parts.iter().map(Part::record);
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
    // Each machine's is in its shard.
    record.environment.load = None;
    // Each part's rows are in a file of their own.
    record.rollouts = None;
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
            engine_init_ms: part.record().engine_init_ms,
            benchmark_total_ms: part.record().totals.benchmark_total_ms,
        })
        .collect();
    (steps, record)
}

/// What each part could share of its own prompts.
fn prefix(parts: &[Part]) -> Option<PrefixRecord> {
    let prefixes = parts.iter().map(|part| part.record().expansion.prefix);
    let known = prefixes.collect::<Option<Vec<PrefixRecord>>>()?;
    let sum = |of: fn(&PrefixRecord) -> u64| known.iter().map(of).sum();
    Some(PrefixRecord {
        prompt_bytes: sum(|prefix| prefix.prompt_bytes),
        reusable_bytes: sum(|prefix| prefix.reusable_bytes),
        reusable_bytes_reordered: sum(|prefix| prefix.reusable_bytes_reordered),
    })
}

/// Counts and spreads anew, from the steps and workflows themselves.
fn totals(steps: &[StepRecord], workflows: &[WorkflowRecord], parts: &[Part]) -> Totals {
    let mut positions = Positions::default();
    let mut scores = Scores::default();
    for step in steps {
        positions.add(step);
        scores.add(step);
    }
    let done: Vec<f64> = (workflows.iter())
        .filter(|workflow| workflow.error.is_none())
        .map(|workflow| workflow.workflow_ms.0)
        .collect();
    let sum = |of: fn(&StepRecord) -> usize| steps.iter().map(of).sum();
    let all = || parts.iter().map(|part| &part.record().totals);
    let energies: Option<Vec<&Energy>> = all().map(|totals| totals.energy.as_ref()).collect();
    let remotes: Vec<&RemoteRecord> = all().filter_map(|totals| totals.remote.as_ref()).collect();
    let mut totals = Totals {
        workflows_done: done.len(),
        workflows_failed: workflows.len() - done.len(),
        steps_done: steps.len(),
        prompt_tokens: sum(|step| step.prompt_tokens),
        prefill_tokens: sum(|step| step.prefill_tokens),
        reused_tokens: sum(|step| step.reused_tokens),
        decode_tokens: sum(|step| step.decode_tokens),
        drafted_tokens: sum(|step| step.drafted_tokens),
        accepted_tokens: sum(|step| step.accepted_tokens),
        avg_workflow_ms: mean(&done).map(Millis),
        workflow_ms: distribution(&done),
        ttft_ms: positions.ttft_ms(),
        positions: positions.records(),
        usage: usage(all().flat_map(|totals| &totals.usage)),
        scores: scores.records(),
        verification: verification(all().filter_map(|totals| totals.verification.as_ref())),
        energy: energies.and_then(|energies| {
            Some(Energy {
                source: energies.first()?.source.clone(),
                watts: energies.iter().map(|energy| energy.watts).sum(),
                joules: energies.iter().map(|energy| energy.joules).sum(),
            })
        }),
        remote: (!remotes.is_empty()).then(|| {
            let mut sum = RemoteRecord::default();
            remotes.into_iter().for_each(|remote| sum.add(remote));
            sum
        }),
        ..Totals::default()
    };
    set_rewards(&mut totals, workflows);
    totals
}

/// What was asked of each model, for each kind of step.
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

fn verification<'a>(
    all: impl Iterator<Item = &'a VerificationRecord>,
) -> Option<VerificationRecord> {
    all.cloned().reduce(|sum, other| VerificationRecord {
        library: sum.library.or(other.library),
        no_library: sum.no_library.or(other.no_library),
        in_process: sum.in_process + other.in_process,
        by_library: sum.by_library + other.by_library,
        cached: sum.cached + other.cached,
    })
}

/// What differs between the machines and matters to who compares their times.
fn differences(parts: &[Part]) -> Vec<String> {
    let differing = |what: &str, of: fn(&RunRecord) -> String| {
        let values: BTreeSet<String> = parts.iter().map(|part| of(part.record())).collect();
        let list = || values.iter().cloned().collect::<Vec<_>>().join("; ");
        (values.len() > 1).then(|| format!("note: {what} differ between the shards: {}", list()))
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

/// `[MERGE] shards=… of=… workflows=… of_workflows=…`
fn shards_line(record: &RunRecord, missing: &[String]) -> String {
    let of = record.shards.first().map_or(0, |run| run.shard.of);
    let mut line = format!(
        "[MERGE] shards={} of={of} workflows={} of_workflows={}",
        record.shards.len(),
        record.workflows.len(),
        record.expansion.num_flows
    );
    if !missing.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(line, " (incomplete)");
    }
    line
}
