//! What is only known at the end of a run, added to the lines of `steps.jsonl`: why a step is tainted, its
//! energy, and whether another measurement has replaced it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Error, Result as IoResult, Write};
use std::path::{Path, PathBuf};

use super::RunFolder;
use super::files::{TEMPORARY, cannot_write};
use crate::error::Result;
use crate::record::{StepAmendment, StepRecord};

impl RunFolder {
    /// Calls `visit` with each step, in the order of the lines.
    ///
    /// # Errors
    /// Exit code 110 if the file is not as this run has written it.
    pub fn each_step(&self, visit: &mut dyn FnMut(StepRecord)) -> Result<()> {
        let path = self.steps_path();
        let mut read = || -> IoResult<()> {
            for line in BufReader::new(File::open(&path)?).lines() {
                visit(serde_json::from_str(&line?)?);
            }
            Ok(())
        };
        read().map_err(|source| cannot_write(&path, source))
    }

    /// Adds to each line what `amendment` gives for its number, from 0. The file is replaced at once (temporary
    /// file, fsync, rename), and the text of the lines stays as it is.
    ///
    /// # Errors
    /// Exit code 110 if it cannot be written; the lines are then as they were.
    pub fn amend_steps(
        &mut self,
        amendment: &mut dyn FnMut(usize) -> Option<StepAmendment>,
    ) -> Result<()> {
        let path = self.steps_path();
        let amended = amend(&path, amendment).map_err(|source| cannot_write(&path, source))?;
        self.steps = amended;
        Ok(())
    }

    fn steps_path(&self) -> PathBuf {
        self.path().join("steps.jsonl")
    }
}

/// Returns the new file, to be appended to, with the lock that marks its run as alive.
fn amend(path: &Path, amendment: &mut dyn FnMut(usize) -> Option<StepAmendment>) -> IoResult<File> {
    let old = File::open(path)?;
    let permissions = old.metadata()?.permissions();
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .permissions(permissions)
        .tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    {
        let mut out = BufWriter::new(temporary.as_file_mut());
        for (number, line) in BufReader::new(old).lines().enumerate() {
            let line = line?;
            match amendment(number).unwrap_or_default() {
                nothing if nothing == StepAmendment::default() => out.write_all(line.as_bytes())?,
                amendment => {
                    let members = serde_json::to_string(&amendment)?;
                    let members = members.trim_start_matches('{');
                    let head = line.strip_suffix('}').filter(|head| head.len() > 1);
                    let head = head.ok_or_else(|| Error::other("a line is no JSON object"))?;
                    write!(out, "{head},{members}")?;
                }
            }
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
    temporary.as_file().sync_all()?;
    let file = OpenOptions::new().append(true).open(temporary.path())?;
    let _ = file.try_lock();
    temporary.persist(path)?;
    // The rename is on disk with the folder.
    if let Some(folder) = path.parent() {
        let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::validity::Taint;
    use crate::units::Millis;

    fn step(flow: usize) -> StepRecord {
        StepRecord {
            flow,
            // Not read back to the last bit without care.
            latency_ms: Millis(0.1 + 0.2 + flow as f64 / 3.0),
            ..StepRecord::default()
        }
    }

    #[test]
    fn lines_keep_their_text_and_gain_members() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let (mut folder, _) = RunFolder::create(out.path(), "run").expect("writable");
        for flow in 1..=3 {
            folder.add_step(&step(flow)).expect("writable");
        }
        let text = || fs::read_to_string(folder_of(&out).join("steps.jsonl")).expect("readable");
        let before = text();
        folder
            .amend_steps(&mut |number| {
                (number == 1).then(|| StepAmendment {
                    tainted: vec![Taint::Steal],
                    energy_joules: Some(0.5),
                    discarded: true,
                })
            })
            .expect("writable");
        let after = text();
        let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
        assert_eq!((before[0], before[2]), (after[0], after[2]));
        let head = before[1].strip_suffix('}').expect("an object");
        let added = ",\"tainted\":[\"steal\"],\"energy_joules\":0.5,\"discarded\":true}";
        assert_eq!(after[1], format!("{head}{added}"));
        // Later steps go to the new file.
        folder.add_step(&step(4)).expect("writable");
        let mut flows = Vec::new();
        folder
            .each_step(&mut |step| flows.push((step.flow, step.discarded)))
            .expect("readable");
        assert_eq!(flows, [(1, false), (2, true), (3, false), (4, false)]);
        let files = fs::read_dir(folder_of(&out)).expect("readable").count();
        assert_eq!(files, 1, "no temporary file is left");
    }

    fn folder_of(out: &tempfile::TempDir) -> PathBuf {
        out.path().join("run")
    }

    #[test]
    fn a_file_that_was_changed_meanwhile_is_left_alone() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let (mut folder, _) = RunFolder::create(out.path(), "run").expect("writable");
        let path = folder_of(&out).join("steps.jsonl");
        fs::write(&path, "garbage\n").expect("writable");
        let amendment = StepAmendment {
            discarded: true,
            ..StepAmendment::default()
        };
        let error = folder.amend_steps(&mut |_| Some(amendment.clone()));
        assert!(error.is_err() && folder.each_step(&mut |_| ()).is_err());
        assert_eq!(fs::read_to_string(&path).expect("readable"), "garbage\n");
    }
}
