//! Reads the files of a run, and says why one cannot be read.

use std::path::Path;

use super::files::not_a_record;
use crate::error::{Error, Result};
use crate::record::{RECORD_SCHEMA, RunRecord};
use crate::text_file;

#[derive(serde::Deserialize)]
struct Version {
    schema: u32,
}

/// Reads a `run.json`.
///
/// # Errors
/// Exit code 2 if it cannot be read or parsed, or is of another version.
pub fn record(file: &Path) -> Result<RunRecord> {
    let text = read(file)?;
    let version: Version = parse(&text, file)?;
    if version.schema != RECORD_SCHEMA {
        return Err(Error::usage(format!(
            "{}: the record's schema is {}, this program reads {RECORD_SCHEMA}",
            file.display(),
            version.schema
        ))
        .hint("use the flowbench that wrote it"));
    }
    parse(&text, file)
}

pub(super) fn read(file: &Path) -> Result<String> {
    text_file::read_text(file).map_err(|source| cannot_read(file, source))
}

pub(super) fn cannot_read(
    file: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::usage(format!("failed to read {}", file.display()))
        .hint("name a run's folder (results/RUN) or its run.json, or none for the latest run")
        .caused_by(source)
}

/// The error for a line of `steps.jsonl` (from 1) that does not parse.
pub(super) fn not_a_step(file: &Path, line: usize, source: serde_json::Error) -> Error {
    Error::usage(format!("{}:{line}: not a step", file.display()))
        .hint("each line is one step, as a run wrote it")
        .caused_by(source)
}

pub(super) fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str, file: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|source| not_a_record(file, source))
}
