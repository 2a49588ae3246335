//! `flowbench report`: a run as one HTML file, or as Markdown.

use crate::cli::ReportArgs;
use crate::config::ReportFormat;
use crate::error::{Exit, Result};
use crate::report::{Console, page};
use crate::results::{self, SavedRun};

/// Reads a run and writes `report.html` into its folder, or prints Markdown.
///
/// # Errors
/// Exit code 2 where there is no such run or it cannot be understood, 110 where the output cannot be
/// written.
pub(crate) fn run(arguments: &ReportArgs, console: &mut Console) -> Result<Exit> {
    let run = SavedRun::read(arguments.run.as_deref(), &arguments.results.folder())?;
    match arguments.output {
        ReportFormat::Md => {
            console.result(page::markdown(&run.record, &run.steps, &run.evolutions).trim_end())?
        }
        ReportFormat::Html => {
            let file = run.folder.join("report.html");
            let page = page::html(&run.record, &run.steps, &run.evolutions)?;
            results::replace(&file, page.as_bytes())?;
            console.data(&file.display().to_string())?;
        }
    }
    Ok(Exit::Done)
}
