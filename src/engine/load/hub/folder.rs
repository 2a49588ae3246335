//! Models in folders: the files they consist of, and which of those are missing.

use std::collections::BTreeSet;
use std::path::Path;

pub(super) use crate::engine::load::safetensors::shards::{INDEX, SINGLE, is_weights};

use crate::engine::load::safetensors::shards;
use crate::error::{Context, Error, Exit, Result};

/// Files that every folder must have.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Small optional files that describe the tokenizer and the chat template.
pub(super) const OPTIONAL: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Files that are missing for a complete model.
///
/// # Errors
/// If the folder or its index cannot be read.
pub(super) fn missing(folder: &Path) -> Result<Vec<String>> {
    let mut missing: Vec<String> = REQUIRED
        .into_iter()
        .filter(|file| !folder.join(file).is_file())
        .map(str::to_owned)
        .collect();
    let has_index = folder.join(INDEX).is_file();
    if !has_index && !files(folder)?.iter().any(|file| is_weights(file)) {
        missing.push("*.safetensors".to_owned());
        return Ok(missing);
    }
    match shards::of_folder(folder) {
        Ok(shards) => missing.extend(
            shards
                .files
                .into_iter()
                .filter(|file| !folder.join(file).is_file()),
        ),
        Err(error) if has_index => return Err(error),
        // Several weight files, and no index to tell which belong to the model.
        Err(_) => missing.push(INDEX.to_owned()),
    }
    Ok(missing)
}

/// Checks that the folder is a complete model.
///
/// # Errors
/// If files are missing; the error lists them.
pub(super) fn check(folder: &Path) -> Result<()> {
    let missing = missing(folder)?;
    if missing.is_empty() {
        return Ok(());
    }
    let error = Error::preflight(format!(
        "{} is not a model: {} {} missing",
        folder.display(),
        missing.join(", "),
        if missing.len() == 1 { "is" } else { "are" }
    ));
    let gguf = files(folder)?
        .into_iter()
        .find(|file| file.ends_with(".gguf"));
    Err(match gguf {
        Some(file) => error.hint(format!("MODEL={}", folder.join(file).display())),
        None => error.hint("a model folder has config.json, tokenizer.json and *.safetensors"),
    })
}

/// The weight files that an index lists, without duplicates, in order.
pub(super) fn weights_of_index(index: &Path) -> Result<BTreeSet<String>> {
    shards::of_index(index).map(|shards| shards.files)
}

/// File names in a folder, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<String>> {
    let context = || format!("failed to list {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).or_exit(Exit::Preflight, context)? {
        let entry = entry.or_exit(Exit::Preflight, context)?;
        files.extend(entry.file_name().into_string());
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        let report = || check(folder.path()).unwrap_err().report();
        assert!(report().contains("config.json, tokenizer.json, *.safetensors are missing"));
        write("config.json", "{}");
        write("tokenizer.json", "{}");
        assert!(
            report().contains("*.safetensors is missing"),
            "{}",
            report()
        );
        write("x.gguf", "");
        assert!(report().contains("x.gguf"), "{}", report());
        write("model.safetensors", "");
        check(folder.path()).unwrap();

        write(
            INDEX,
            r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#,
        );
        write("m-1.safetensors", "");
        assert!(
            report().contains("m-2.safetensors is missing"),
            "{}",
            report()
        );
        write("m-2.safetensors", "");
        check(folder.path()).unwrap();
    }

    #[test]
    fn an_index_may_only_list_files_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join(INDEX);
        for text in ["{", "{}", r#"{"weight_map": {"a": "../m.safetensors"}}"#] {
            std::fs::write(&index, text).unwrap();
            assert!(weights_of_index(&index).is_err(), "{text}");
        }
    }
}
