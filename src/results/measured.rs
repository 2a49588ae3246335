//! Reads of a run what comparisons need, without the texts of its steps.

use std::io::{BufRead, BufReader};
use std::path::Path;

use super::reading;
use crate::error::{Error, Result};
use crate::record::Status;
use crate::record::compare::{MeasuredRun, MeasuredStep};

/// Reads the run in `folder`.
///
/// # Errors
/// Exit code 2 if it is no run, or cannot be read or parsed.
pub fn read_measured(folder: &Path) -> Result<MeasuredRun> {
    let record = reading::record(&folder.join("run.json"))?;
    let file = folder.join("steps.jsonl");
    let open = std::fs::File::open(&file).map_err(|source| reading::cannot_read(&file, source))?;
    let mut reader = BufReader::with_capacity(1 << 16, open);
    let mut steps = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line);
        if read.map_err(|source| reading::cannot_read(&file, source))? == 0 {
            break;
        }
        match serde_json::from_slice::<MeasuredStep>(&line) {
            Ok(step) => steps.push(step),
            // The last line of a killed run may be incomplete.
            Err(_) if line.last() != Some(&b'\n') => {}
            Err(source) => return Err(reading::not_a_step(&file, number, source)),
        }
    }
    // Only what is in the totals: of a killed run, the first measurements.
    let killed = record.status == Status::Running;
    steps.retain(|step: &MeasuredStep| !(step.discarded || killed && step.rerun));
    Ok(MeasuredRun { record, steps })
}

/// Reads several runs.
///
/// # Errors
/// As [`read_measured`]; exit code 2 also for a run that is still going on.
pub fn read_all(folders: &[std::path::PathBuf]) -> Result<Vec<MeasuredRun>> {
    let read = |folder: &std::path::PathBuf| {
        let run = read_measured(folder)?;
        if super::run_folder::is_in_use(folder) {
            let message = format!("{}: the run is still going on", folder.display());
            return Err(Error::usage(message).hint("compare it when it has ended"));
        }
        Ok(run)
    };
    folders.iter().map(read).collect()
}
