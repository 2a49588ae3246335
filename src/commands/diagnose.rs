//! `flowbench diagnose`: why a run took as long as it did.

use crate::cli::DiagnoseArgs;
use crate::config::DiagnoseFormat;
use crate::error::{Context, Exit, Result};
use crate::report::Console;
use crate::report::diagnose::{diagnose, markdown};
use crate::results::SavedRun;

/// # Errors
/// Exit code 2 if there is no such run or it cannot be parsed, 110 if stdout is closed.
pub(crate) fn run(arguments: &DiagnoseArgs, console: &mut Console) -> Result<Exit> {
    let run = SavedRun::read(arguments.run.as_deref(), &arguments.results.folder())?;
    let diagnosis = diagnose(&run.record, &run.steps);
    match arguments.output {
        DiagnoseFormat::Md => console.result(markdown(&diagnosis).trim_end())?,
        DiagnoseFormat::Json => {
            let text = serde_json::to_string_pretty(&diagnosis).or_exit(Exit::Output, || {
                "failed to write the diagnosis as JSON".to_owned()
            })?;
            console.data(&text)?;
        }
    }
    Ok(Exit::Done)
}
