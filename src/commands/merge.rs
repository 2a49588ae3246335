//! `flowbench merge`: merges the runs of a job's shards into one run.

use std::path::PathBuf;

use crate::cli::MergeArgs;
use crate::error::{Error, Exit, Result};
use crate::record::{RunRecord, Status};
use crate::report::warnings::{self, Gathered};
use crate::report::{Console, timing, traffic};
use crate::results::merge::Shards;
use crate::results::{RunFolder, run_name};
use crate::session::verdict;
use crate::workflow::Outcome;

/// Merges the runs, and saves the result as a run.
///
/// # Errors
/// Exit code 2 if a run cannot be read, or they are not parts of one job; 106 if parts are missing (the
/// merged run is saved), 100 if flows failed, 110 if it cannot be written.
pub(crate) fn run(arguments: &MergeArgs, console: &mut Console) -> Result<Exit> {
    let out = arguments.results.folder();
    let paths = arguments.runs.iter().map(PathBuf::as_path);
    let shards = Shards::read(paths, &out)?;
    let (steps, mut record) = shards.merge();
    let missing = shards.missing();
    let (status, error) = if missing.is_empty() {
        verdict(
            &Outcome::Ended,
            &record.totals,
            record.workflows.len(),
            None,
        )
    } else {
        let error = Error::new(Exit::Incomplete, missing.join("; "));
        (Status::Incomplete, Some(error))
    };
    record.status = status;
    record.error = error.as_ref().map(Error::chain);
    let mut gathered = Gathered::default();
    steps.iter().for_each(|step| gathered.add(step));
    record.warnings = warnings::warnings(&record, &gathered);

    let (mut folder, run_id) = RunFolder::create(&out, &run_name("merged"))?;
    record.run_id = run_id;
    for step in &steps {
        folder.add_step(step)?;
    }
    folder.save(&record)?;

    for note in shards.differences() {
        console.warning(&note);
    }
    for line in lines(&record, !missing.is_empty()) {
        console.result(&line)?;
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

/// The result lines, the first of which is `[MERGE] shards=… of=… workflows=… of_workflows=…`.
fn lines(record: &RunRecord, incomplete: bool) -> Vec<String> {
    let of = record.shards.first().map_or(0, |run| run.shard.of);
    let mut lines = vec![format!(
        "[MERGE] shards={} of={of} workflows={} of_workflows={}{}",
        record.shards.len(),
        record.workflows.len(),
        record.expansion.num_flows,
        if incomplete { " (incomplete)" } else { "" }
    )];
    lines.extend(timing::totals(&record.totals, record.expansion.num_flows));
    lines.extend(timing::scores(&record.totals));
    lines.extend(timing::reward(&record.totals));
    lines.extend(record.totals.remote.as_ref().map(traffic::line));
    lines
}
