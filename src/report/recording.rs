//! A run's answers as a script, for `MODE=scripted` and for `--pin-outputs`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folder::cannot_write_file;
use crate::error::Result;
use crate::record::StepRecord;
use crate::units::Millis;

/// The flag that names the file.
const FLAG: &str = "--record";

/// A line of a script.
#[derive(Serialize)]
struct Line<'a> {
    flow: usize,
    row: &'a str,
    step: &'a str,
    sample: usize,
    output: &'a str,
    queue_ms: Option<Millis>,
    ttft_ms: Option<Millis>,
    latency_ms: Millis,
}

/// A recording that grows beside its file, and takes its place at the end.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
}

impl Recording {
    /// Begins one; a file that is there stays until the end.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let file =
            File::create(&partial).map_err(|source| cannot_write_file(&partial, FLAG, source))?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            file: BufWriter::new(file),
        })
    }

    /// Adds what the model has answered; other steps are left out.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn add(&mut self, step: &StepRecord) -> Result<()> {
        if !matches!(step.kind(), "generate" | "judge") {
            return Ok(());
        }
        let line = Line {
            flow: step.flow,
            row: &step.row,
            step: &step.step,
            sample: step.sample.unwrap_or(1),
            output: &step.output,
            queue_ms: step.queue_ms,
            ttft_ms: step.ttft_ms,
            latency_ms: step.latency_ms,
        };
        let mut write = || -> std::io::Result<()> {
            serde_json::to_writer(&mut self.file, &line)?;
            self.file.write_all(b"\n")?;
            self.file.flush()
        };
        write().map_err(|source| cannot_write_file(&self.partial, FLAG, source))
    }

    /// Puts it into its place.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn finish(mut self) -> Result<()> {
        let mut end = || -> std::io::Result<()> {
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            fs::rename(&self.partial, &self.path)
        };
        end().map_err(|source| cannot_write_file(&self.path, FLAG, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_a_script_and_an_old_one_stays_until_then() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("base.jsonl");
        fs::write(&path, "old").expect("writable");
        let mut recording = Recording::create(&path).expect("writable");
        let step = StepRecord {
            flow: 2,
            row: "r".to_owned(),
            step: "plan".to_owned(),
            output: "a \"b\"".to_owned(),
            latency_ms: Millis(5.0),
            ..StepRecord::default()
        };
        recording.add(&step).expect("writable");
        let evaluated = StepRecord {
            kind: Some("evaluate".to_owned()),
            ..step
        };
        recording.add(&evaluated).expect("writable");
        assert_eq!(fs::read_to_string(&path).expect("there"), "old");
        recording.finish().expect("writable");
        let text = fs::read_to_string(&path).expect("there");
        assert_eq!(
            text,
            "{\"flow\":2,\"row\":\"r\",\"step\":\"plan\",\"sample\":1,\"output\":\"a \\\"b\\\"\",\
             \"queue_ms\":null,\"ttft_ms\":null,\"latency_ms\":5.0}\n"
        );
    }
}
