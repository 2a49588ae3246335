//! `flowbench init`: a folder to start from.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cli::InitArgs;
use crate::error::{Error, Exit, Result};
use crate::flow::Shipped;
use crate::report::Console;

/// The example: a template, what belongs to it, and a nightly job.
const EXAMPLE: &[(&str, &str)] = &[
    ("templates/review.toml", include_str!("init/review.toml")),
    (
        "templates/review.suite.jsonl",
        include_str!("init/review.suite.jsonl"),
    ),
    (
        "templates/review.script.jsonl",
        include_str!("init/review.script.jsonl"),
    ),
    ("fixtures/shop/cart.py", include_str!("init/cart.py")),
    ("fixtures/shop/prices.py", include_str!("init/prices.py")),
];

/// Name of the example's template.
const NAME: &str = "review";

/// The nightly job of the example; its template's name is replaced for another template.
const NIGHTLY: &str = include_str!("init/nightly.sh");

/// Lists the shipped templates, or writes the files.
///
/// # Errors
/// Exit code 2 for a file that exists already or a template that is not shipped, 110 where a file cannot be
/// written.
pub(crate) fn run(arguments: &InitArgs, console: &mut Console) -> Result<Exit> {
    if arguments.list {
        let shipped = Shipped::all();
        let width = shipped.iter().map(|one| one.name.len()).max().unwrap_or(0);
        for Shipped {
            name, description, ..
        } in &shipped
        {
            console.result(&format!("{name:width$}  {description}"))?;
        }
        return Ok(Exit::Done);
    }
    let (name, mut files) = match &arguments.template {
        None => (NAME, EXAMPLE.to_vec()),
        Some(name) => {
            let shipped = find(name)?;
            (shipped.name, shipped.files())
        }
    };
    let nightly = NIGHTLY.replace(NAME, name);
    files.push(("nightly.sh", &nightly));

    let targets: Vec<PathBuf> = (files.iter())
        .map(|(path, _)| beneath(&arguments.dir, path))
        .collect();
    // Before the first is written, so that a folder is made as a whole or not at all.
    if let Some(there) = targets.iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(exists(there));
    }
    for (target, (_, text)) in targets.iter().zip(&files) {
        let mode = if target.ends_with("nightly.sh") {
            0o777
        } else {
            0o666
        };
        write(target, text, mode)?;
        console.result(&format!("wrote {}", target.display()))?;
    }
    console.result(&next(&arguments.dir, name))?;
    Ok(Exit::Done)
}

fn find(name: &str) -> Result<Shipped> {
    let mut shipped = Shipped::all();
    match shipped.iter().position(|one| one.name == name) {
        Some(index) => Ok(shipped.swap_remove(index)),
        None => {
            let names: Vec<&str> = shipped.iter().map(|one| one.name).collect();
            let names = names.join(", ");
            Err(
                Error::usage(format!("no shipped template is called `{name}`"))
                    .hint(format!("`flowbench init --list` describes them: {names}")),
            )
        }
    }
}

/// What to type next.
fn next(folder: &Path, name: &str) -> String {
    let enter = match folder == Path::new(".") {
        true => String::new(),
        false => format!(
            "cd {} && ",
            crate::report::summary::quoted(&folder.display().to_string())
        ),
    };
    format!("next: {enter}TEMPLATE={name} MODE=scripted flowbench run")
}

/// A path in the new folder, without the `./` that nobody would type.
fn beneath(folder: &Path, path: &str) -> PathBuf {
    match folder == Path::new(".") {
        true => PathBuf::from(path),
        false => folder.join(path),
    }
}

fn exists(path: &Path) -> Error {
    Error::usage(format!("{} exists already", path.display()))
        .hint("init replaces no file: name another folder, or move the file away")
}

/// Writes a new file. One that appeared in the meantime is not replaced.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    fs::create_dir_all(folder)
        .and_then(|()| options.open(path))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists if path.symlink_metadata().is_ok() => exists(path),
            _ => Error::output(format!("failed to write {}", path.display()))
                .caused_by(error)
                .hint("name a folder that can be written: flowbench init DIR"),
        })
}
