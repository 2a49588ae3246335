//! `flowbench compare`: whether runs differ from a baseline, and why.

use std::path::Path;

use crate::cli::{CompareArgs, FailOn};
use crate::config::CompareFormat;
use crate::error::{Exit, Result};
use crate::record::compare::{CompareRecord, Verdict};
use crate::report::{Console, verdicts};
use crate::results::{self, baselines};
use crate::session::{self, CompareRequest};

/// # Errors
/// Exit code 2 if the runs cannot be found, read, or compared; 98 if the new ones must not be judged by; 99 if a gate
/// is not passed; 110 if something cannot be written.
pub(super) fn run(arguments: &CompareArgs, console: &mut Console) -> Result<Exit> {
    let out = arguments.results.folder();
    let compared = session::compared(
        &CompareRequest {
            base: &arguments.base,
            new: &arguments.new,
            out: &out,
            metrics: &arguments.metric,
            threshold: arguments.threshold,
            subject: &arguments.subject,
            allow_different: &arguments.allow_different,
            assumed_noise: arguments.assume_noise,
            gates: &arguments.gates.resolve(false),
        },
        console,
    )?;
    let record = &compared.record;
    show(record, &compared.folder, arguments.output, console)?;
    if let Some(error) = session::failure(&record.invalid, &record.gates) {
        return Err(error);
    }
    let exit = exit(record.verdict, arguments);
    if let (Some(name), Exit::Done) = (&arguments.save_baseline, exit) {
        let ids: Vec<String> = record.new.iter().map(|run| run.run_id.clone()).collect();
        baselines::save(&out, name, &ids)?;
        console.progress(&format!("Baseline {name}: {}", ids.join(", ")));
    }
    Ok(exit)
}

/// Shows a comparison; a page is written into `folder`.
pub(super) fn show(
    record: &CompareRecord,
    folder: &Path,
    format: CompareFormat,
    console: &mut Console,
) -> Result<()> {
    match format {
        CompareFormat::Text => {
            for line in verdicts::lines(record) {
                console.result(&line)?;
            }
        }
        CompareFormat::Md => console.result(&verdicts::markdown(record))?,
        CompareFormat::Json => {
            console.data(&serde_json::to_string_pretty(record).unwrap_or_default())?;
        }
        CompareFormat::Html => {
            let file = folder.join("compare.html");
            results::replace(&file, verdicts::html(record)?.as_bytes())?;
            console.result(&file.display().to_string())?;
        }
    }
    Ok(())
}

fn exit(verdict: Verdict, arguments: &CompareArgs) -> Exit {
    match verdict {
        Verdict::Regressed if arguments.fail_on == FailOn::Regression => Exit::Gate,
        Verdict::NoVerdict if arguments.require_verdict => Exit::Invalid,
        _ => Exit::Done,
    }
}
