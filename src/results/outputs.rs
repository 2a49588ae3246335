//! Refuses settings by which a run would overwrite a file that it reads, or write two outputs to one file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::flow::Expansion;

use super::{profile, recording};

/// A file, and what the run uses it for.
type Named = (&'static str, PathBuf);

/// Checks the outputs against all inputs but the model, and against each other. Called before anything is
/// written.
///
/// # Errors
/// Exit code 2, with both uses of the file.
pub fn check(config: &RunConfig, expansion: &Expansion) -> Result<()> {
    let outputs = outputs(config);
    if outputs.is_empty() {
        return Ok(());
    }
    let mut inputs = Vec::new();
    if let Some(rollouts) = &config.rollouts {
        inputs.push(("the rows of --input", rollouts.files.input.clone()));
    }
    if config.is_scripted() {
        let own = expansion.script.clone();
        let own = own.text.is_none().then_some(own.path);
        let script = config.machine.script.clone().or(own);
        inputs.extend(script.map(|script| ("the script", script)));
    }
    let pins = config.job.pin_outputs.clone();
    inputs.extend(pins.map(|pins| ("the recording of --pin-outputs", pins)));
    let tokenizer = (config.remote.as_ref()).and_then(|remote| remote.server.tokenizer.as_deref());
    inputs.extend(
        tokenizer
            .into_iter()
            .flat_map(|path| files_at(path, "the tokenizer")),
    );
    inputs.extend(expansion.sources());
    inputs.extend(flows(&config.machine.layout.flows(), &outputs));
    refuse_shared(&outputs, &inputs)?;
    for (index, output) in outputs.iter().enumerate() {
        refuse_shared(std::slice::from_ref(output), &outputs[..index])?;
    }
    Ok(())
}

/// Checks the outputs against the model at `model`, which is found later.
///
/// # Errors
/// As [`check`].
pub fn check_model(config: &RunConfig, model: &Path) -> Result<()> {
    let outputs = outputs(config);
    if outputs.is_empty() {
        return Ok(());
    }
    refuse_shared(&outputs, &files_at(model, "the model"))
}

/// The files of a model: one file, all parts of a split one, or the files of its folder.
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

/// The files that the run writes outside of its own folder.
fn outputs(config: &RunConfig) -> Vec<Named> {
    let mut outputs = Vec::new();
    if let Some(record) = &config.presentation.record {
        outputs.push(("--record", record.clone()));
        outputs.push(("the unfinished --record", recording::partial(record)));
    }
    let rollouts = config.rollouts.as_ref();
    let rows = rollouts.and_then(|rollouts| rollouts.files.output.clone());
    outputs.extend(rows.map(|rows| ("--output", rows)));
    // By default the copy is named after the run, which is new.
    if config.presentation.profiling.profile_name.is_some() {
        let copy = profile::copy_path(&config.presentation.profiling, "");
        outputs.extend(copy.map(|copy| ("--profile-name", copy)));
    }
    outputs
}

/// Expanded flows and their cache, as far as an output has such a name.
fn flows(folder: &Path, outputs: &[Named]) -> Vec<Named> {
    let names = outputs.iter().filter_map(|(_, path)| path.file_name());
    let reserved = names.filter(|name| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"_expanded_") || name.starts_with(b".expanded_cache")
    });
    reserved
        .map(|name| ("an expanded flow", folder.join(name)))
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

/// Two paths are one file if their identities are equal.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// Device and inode, with links resolved.
    File(u64, u64),
    /// A file that does not exist yet: its name in the real path of its folder.
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
        // The folder may not exist yet.
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
    fn links_and_relative_paths_name_the_same_file() {
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
