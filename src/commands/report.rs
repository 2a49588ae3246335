//! `flowbench report`: a run as one HTML file, or as Markdown.

use crate::cli::ReportArgs;
use crate::config::ReportFormat;
use crate::error::{Exit, Result};
use crate::report::{Console, page};
use crate::results::{self, SavedRun};

/// Writes `report.html` into the run's folder, or prints Markdown.
///
/// # Errors
/// Exit code 2 if there is no such run or it cannot be parsed, 110 if the output cannot be written.
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
