//! `flowbench diagnose`: why a run took as long as it did.

use crate::cli::DiagnoseArgs;
use crate::config::{DiagnoseFormat, Gates, WhatIf};
use crate::error::{Context, Exit, Result};
use crate::metrics::compare::{Metric, Quantity, Steps};
use crate::record::compare::CompareRecord;
use crate::report::Console;
use crate::report::diagnose::{diagnose, markdown, what_if};
use crate::report::verdicts;
use crate::results::SavedRun;
use crate::session::{self, CompareRequest};

/// # Errors
/// Exit code 2 if there is no such run or it cannot be parsed, 110 if stdout is closed.
pub(crate) fn run(arguments: &DiagnoseArgs, console: &mut Console) -> Result<Exit> {
    let run = SavedRun::read(arguments.run.as_deref(), &arguments.results.folder())?;
    if let Some(changes) = &arguments.what_if {
        return predict(&run, changes, arguments, console);
    }
    let diagnosis = diagnose(&run.record, &run.steps);
    let change = match &arguments.baseline {
        Some(baseline) => Some(against(baseline, &run, arguments, console)?),
        None => None,
    };
    match arguments.output {
        DiagnoseFormat::Md => {
            console.result(markdown(&diagnosis).trim_end())?;
            if let Some(change) = &change {
                console.result(&format!(
                    "\n# Against the baseline\n\n{}",
                    verdicts::markdown(change)
                ))?;
            }
        }
        DiagnoseFormat::Json => {
            let mut value = serde_json::to_value(&diagnosis).unwrap_or_default();
            if let (Some(change), Some(members)) = (&change, value.as_object_mut()) {
                let change = serde_json::to_value(change).unwrap_or_default();
                members.insert("against".to_owned(), change);
            }
            print_json(&value, console)?;
        }
    }
    Ok(Exit::Done)
}

/// What the run would have taken under other settings.
fn predict(
    run: &SavedRun,
    changes: &WhatIf,
    arguments: &DiagnoseArgs,
    console: &mut Console,
) -> Result<Exit> {
    let record = session::what_if(run, changes, &arguments.results.folder())?;
    match arguments.output {
        DiagnoseFormat::Md => console.result(what_if(&record).trim_end())?,
        DiagnoseFormat::Json => print_json(&record, console)?,
    }
    Ok(Exit::Done)
}

fn print_json(value: &impl serde::Serialize, console: &mut Console) -> Result<()> {
    let text = serde_json::to_string_pretty(value).or_exit(Exit::Output, || {
        "failed to write the diagnosis as JSON".to_owned()
    })?;
    console.data(&text)
}

/// What changed since `baseline`.
fn against(
    baseline: &str,
    run: &SavedRun,
    arguments: &DiagnoseArgs,
    console: &mut Console,
) -> Result<CompareRecord> {
    let workflow_ms = Metric {
        quantity: Quantity::WorkflowMs,
        steps: Steps::All,
    };
    let compared = session::compared(
        &CompareRequest {
            base: baseline,
            new: &run.folder.display().to_string(),
            out: &arguments.results.folder(),
            metrics: &[workflow_ms],
            threshold: 0.03,
            subject: &[],
            allow_different: &arguments.allow_different,
            assumed_noise: None,
            gates: &Gates::default(),
        },
        console,
    )?;
    Ok(compared.record)
}
