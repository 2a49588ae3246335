//! Keeps a run from writing over what it reads, and from writing two things to one file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::RunConfig;
use crate::engine::ModelFile;
use crate::error::{Error, Result};
use crate::flow::Expansion;
use crate::report::recording;

use super::profile::PendingProfile;

/// A file and what it is to the run.
type Named = (&'static str, PathBuf);

/// Refuses settings by which an output would replace one of the files that the run is made from, or
/// another output. Nothing is written before this.
///
/// # Errors
/// Exit code 2, with both names of the file.
pub(super) fn check(config: &RunConfig, expansion: &Expansion) -> Result<()> {
    let outputs = outputs(config);
    if outputs.is_empty() {
        return Ok(());
    }
    let mut inputs = Vec::new();
    if let Some(rollouts) = &config.workflow.rollouts {
        inputs.push(("the rows of --input", rollouts.input.clone()));
    }
    if config.is_scripted() {
        let own = expansion.script.clone();
        let own = own.text.is_none().then_some(own.path);
        let script = config.script.clone().or(own);
        inputs.extend(script.map(|script| ("the script", script)));
    }
    let pins = config.workflow.pin_outputs.clone();
    inputs.extend(pins.map(|pins| ("the recording of --pin-outputs", pins)));
    let tokenizer = (config.remote.as_ref()).and_then(|remote| remote.tokenizer.as_deref());
    inputs.extend(
        tokenizer
            .into_iter()
            .flat_map(|path| files_at(path, "the tokenizer")),
    );
    inputs.extend(expansion.sources());
    inputs.extend(flows(&config.layout.flows(), &outputs));
    refuse_shared(&outputs, &inputs)?;
    for (index, output) in outputs.iter().enumerate() {
        refuse_shared(std::slice::from_ref(output), &outputs[..index])?;
    }
    Ok(())
}

/// The same for the model, which is found later.
///
/// # Errors
/// As [`check`].
pub(super) fn check_model(config: &RunConfig, model: &ModelFile) -> Result<()> {
    let outputs = outputs(config);
    if outputs.is_empty() {
        return Ok(());
    }
    refuse_shared(&outputs, &files_at(&model.path, "the model"))
}

/// A file of a model, with all parts of one that is split, or the files of its folder.
fn files_at(path: &Path, what: &'static str) -> Vec<Named> {
    let is_folder = path.is_dir();
    let folder = match path.parent() {
        _ if is_folder => path,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.map(|entry| entry.path());
    let is_part = |file: &PathBuf| {
        let both = [file.as_path(), path];
        both.iter()
            .all(|file| file.extension().is_some_and(|kind| kind == "gguf"))
    };
    let parts = files.filter(|file| is_folder || is_part(file));
    std::iter::once(path.to_owned())
        .chain(parts)
        .map(|file| (what, file))
        .collect()
}

/// The files that the run writes beside its own folder.
fn outputs(config: &RunConfig) -> Vec<Named> {
    let mut outputs = Vec::new();
    if let Some(record) = &config.workflow.record {
        outputs.push(("--record", record.clone()));
        outputs.push(("the unfinished --record", recording::partial(record)));
    }
    let rollouts = config.workflow.rollouts.as_ref();
    let rows = rollouts.and_then(|rollouts| rollouts.output.clone());
    outputs.extend(rows.map(|rows| ("--output", rows)));
    // Without a name of its own, the copy has that of the run, which is new.
    if config.profile.profile_name.is_some() {
        let copy = PendingProfile::copy(&config.profile, "");
        outputs.extend(copy.map(|copy| ("--profile-name", copy)));
    }
    outputs
}

/// The outputs that would be one of the expanded flows, or their cache.
fn flows(folder: &Path, outputs: &[Named]) -> Vec<Named> {
    let names = outputs.iter().filter_map(|(_, path)| path.file_name());
    let ours = names.filter(|name| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"_expanded_") || name.starts_with(b".expanded_cache")
    });
    ours.map(|name| ("an expanded flow", folder.join(name)))
        .collect()
}

fn refuse_shared(outputs: &[Named], others: &[Named]) -> Result<()> {
    for (flag, output) in outputs {
        let Some(file) = Identity::of(output) else {
            continue;
        };
        let other = others
            .iter()
            .find(|(_, other)| Identity::of(other).is_some_and(|other| other == file));
        if let Some((what, _)) = other {
            let path = output.display();
            return Err(
                Error::usage(format!("{flag} names {path}, which is {what}"))
                    .hint("what is written would replace it: name another file"),
            );
        }
    }
    Ok(())
}

/// What makes two paths one file.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// Device and inode, behind links of both kinds.
    File(u64, u64),
    /// A file that is not there yet: its name in the real path of its folder.
    Name(PathBuf),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        if let Ok(file) = fs::metadata(path) {
            return Some(Self::File(file.dev(), file.ino()));
        }
        let folder = match path.parent()? {
            folder if folder.as_os_str().is_empty() => Path::new("."),
            folder => folder,
        };
        // The folder may have to be made first.
        let folder = folder
            .canonicalize()
            .or_else(|_| std::path::absolute(folder));
        Some(Self::Name(folder.ok()?.join(path.file_name()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_by_any_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "").expect("writable");
        fs::write(at("b"), "").expect("writable");
        fs::hard_link(at("a"), at("hard")).expect("a link");
        std::os::unix::fs::symlink("a", at("soft")).expect("a link");
        fs::create_dir(at("sub")).expect("writable");
        std::os::unix::fs::symlink("sub", at("other")).expect("a link");
        let same = |one: &str, two: &str| Identity::of(&at(one)) == Identity::of(&at(two));
        assert!(same("a", "hard") && same("a", "soft") && same("a", "sub/../a"));
        assert!(!same("a", "b") && !same("a", "new"));
        assert!(same("sub/new", "other/new") && same("new", "./new"));
        assert!(!same("sub/new", "new"));
    }
}
