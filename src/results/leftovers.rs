//! Removes what killed runs left behind: folders in which nothing was measured, and temporary files.
//!
//! A run locks its `steps.jsonl` until its process ends. A folder whose lock is free belongs to a dead run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;

use super::files::TEMPORARY;
use super::names::start_time;

/// Cleans the folder of runs. Measurements, and files that flowbench did not create, are never touched;
/// errors are ignored.
pub(super) fn remove(out: &Path) {
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            let _ = clean(&entry.path());
        } else if kind.is_file() && is_temporary(&entry.file_name()) {
            let _ = remove_unlocked(&entry.path());
        }
    }
}

/// Removes a temporary file unless a process is writing it.
fn remove_unlocked(file: &Path) -> std::io::Result<()> {
    if File::open(file)?.try_lock().is_ok() {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// Removes the temporary files in a killed run's folder and the folders below. The caller holds the run's lock.
pub(super) fn remove_temporary(run: &Path) {
    for entry in walkdir::WalkDir::new(run).into_iter().flatten() {
        if entry.file_type().is_file() && is_temporary(entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn clean(run: &Path) -> std::io::Result<()> {
    let mut temporary = Vec::new();
    let mut is_empty = true;
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_temporary(&name) && entry.file_type()?.is_file() {
            temporary.push(entry.path());
        } else if name != "steps.jsonl" || entry.metadata()?.len() > 0 {
            is_empty = false;
        }
    }
    if temporary.is_empty() && !is_empty {
        return Ok(());
    }
    let steps = run.join("steps.jsonl");
    // Killed before its first file. No run can be at this point now: the caller holds the folder's lock.
    if is_empty && temporary.is_empty() && !steps.exists() && start_time(run).is_some() {
        return fs::remove_dir(run);
    }
    // A folder without `steps.jsonl` was not created by a run; opening it fails then.
    if File::open(&steps)?.try_lock().is_err() {
        return Ok(());
    }
    for file in temporary {
        fs::remove_file(file)?;
    }
    if is_empty {
        fs::remove_file(steps)?;
        fs::remove_dir(run)?;
    }
    Ok(())
}

fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(TEMPORARY.0.as_bytes()) && name.ends_with(TEMPORARY.1.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::RunFolder;

    #[test]
    fn only_leftovers_of_killed_runs_are_removed() {
        let out = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            let path = out.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            fs::write(path, text).expect("writable");
        };
        write("killed/steps.jsonl", "");
        write("killed/.run1a2b.tmp", "{");
        write("kept/steps.jsonl", "{}\n");
        write("kept/run.json", "{}");
        write("kept/.run3c4d.tmp", "{");
        write("unmeasured/steps.jsonl", "");
        write("unmeasured/run.json", "{}");
        write("theirs/notes.txt", "");
        write("theirs/.runx.tmp", "");
        write("file", "");
        write(".run5e6f.tmp", "{");
        write(".run7a8b.tmp", "{");
        let written = File::open(out.path().join(".run7a8b.tmp")).expect("there");
        written.lock().expect("free");
        for folder in ["empty", "20260131T093000Z-scripted"] {
            fs::create_dir(out.path().join(folder)).expect("writable");
        }
        let (running, _) = RunFolder::create(out.path(), "now").expect("writable");
        let (_second, _) = RunFolder::create(out.path(), "next").expect("writable");
        let mut left: Vec<String> = walkdir::WalkDir::new(out.path())
            .min_depth(1)
            .into_iter()
            .map(|entry| {
                let entry = entry.expect("readable");
                let path = entry.path().strip_prefix(out.path()).expect("below");
                path.display().to_string()
            })
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                ".run7a8b.tmp",
                "empty",
                "file",
                "kept",
                "kept/run.json",
                "kept/steps.jsonl",
                "next",
                "next/steps.jsonl",
                "now",
                "now/steps.jsonl",
                "theirs",
                "theirs/.runx.tmp",
                "theirs/notes.txt",
                "unmeasured",
                "unmeasured/run.json",
                "unmeasured/steps.jsonl",
            ]
        );
        drop(running);
    }
}
