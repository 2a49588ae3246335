//! `flowbench export`: a run in another program's format.

use std::fs;
use std::path::Path;

use crate::cli::ExportArgs;
use crate::config::ExportFormat;
use crate::error::{Error, Exit, Result};
use crate::record::Status;
use crate::report::Console;
use crate::report::export::{self, Run, SUMMARY_LIMIT};
use crate::results::{self, SavedRun};

/// The variable of the file that `-o github-summary` appends to, unless `--to` is given.
const STEP_SUMMARY: &str = "GITHUB_STEP_SUMMARY";

/// Writes the run to stdout, to the file of `--to`, or as GitHub's summary to `step_summary`.
///
/// # Errors
/// Exit code 2 if there is no such run, it cannot be parsed, or it has not ended and the format is for
/// figures; 4 if it has no figures; 110 if the output cannot be written.
pub(crate) fn run(
    arguments: &ExportArgs,
    step_summary: Option<&Path>,
    console: &mut Console,
) -> Result<Exit> {
    let saved = SavedRun::read(arguments.run.as_deref(), &arguments.results.folder())?;
    let format = arguments.output;
    let summary =
        step_summary.filter(|_| format == ExportFormat::GithubSummary && arguments.to.is_none());
    let used = summary.and_then(|file| fs::metadata(file).ok());
    let used = used.map_or(0, |file| usize::try_from(file.len()).unwrap_or(usize::MAX));
    let run = Run {
        record: &saved.record,
        steps: &saved.steps,
        evolutions: &saved.evolutions,
    };
    let text = export::export(format, run, SUMMARY_LIMIT.saturating_sub(used))?;
    if saved.record.status == Status::Running {
        console.warning(&format!(
            "warning: run {} has not ended, or was killed: the export has the steps that had ended",
            saved.record.run_id
        ));
    }
    match (summary, &arguments.to) {
        (Some(file), _) => results::append_summary(file, STEP_SUMMARY, text.as_bytes())?,
        (None, Some(file)) if file.as_os_str() != "-" => write(file, &saved, text.as_bytes())?,
        _ => console.data(text.strip_suffix('\n').unwrap_or(&text))?,
    }
    Ok(Exit::Done)
}

/// Replaces `file`, unless it is one of the files that the run was read from.
fn write(file: &Path, run: &SavedRun, text: &[u8]) -> Result<()> {
    let file = results::ordinary(file, "--to")?;
    let own = ["run.json", "steps.jsonl"].map(|name| fs::canonicalize(run.folder.join(name)));
    if own.iter().flatten().any(|own| *own == file) {
        let what = format!("--to names {}, which is part of the run", file.display());
        return Err(Error::usage(what).hint("the export would replace it: name another file"));
    }
    results::replace_named(&file, "--to", text)
}
