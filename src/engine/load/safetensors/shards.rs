//! Determines which files of a folder are its weights.
//!
//! If `model.safetensors.index.json` exists, it decides: only the files it lists count, and each
//! tensor is read from the file it gives. Otherwise the weights are in `model.safetensors`, in the
//! folder's only `.safetensors` file, or in a complete set of `NAME-00001-of-00003.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use serde::Deserialize;

use crate::engine::load::{foreign, json};
use crate::error::{Context, Error, Exit, Result};

/// Lists the weight files and the tensors in each.
pub(in crate::engine::load) const INDEX: &str = "model.safetensors.index.json";
/// The weights if they are in a single file.
pub(in crate::engine::load) const SINGLE: &str = "model.safetensors";
const COMPLETE: &str =
    "the folder needs config.json, tokenizer.json and model.safetensors (or its shards and index)";

/// A folder's weight files.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::engine::load) struct Shards {
    /// File names in the folder.
    pub(in crate::engine::load) files: BTreeSet<String>,
    /// The file of each tensor that the index lists.
    of_tensor: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Parses an index.
///
/// # Errors
/// Exit code 3 if it cannot be read, or does not list weight files of its own folder.
pub(in crate::engine::load) fn of_index(path: &Path) -> Result<Shards> {
    let index: Option<Index> = json::read(path)?;
    let of_tensor = index.map(|index| index.weight_map).unwrap_or_default();
    let files: BTreeSet<String> = of_tensor.values().cloned().collect();
    // The index is untrusted: it must not list files outside the folder.
    match files.iter().find(|file| !is_weights(file)) {
        None if files.is_empty() => Err(Error::preflight(format!(
            "`{}` lists no weight files",
            path.display()
        ))
        .hint("fetch the index again, or use another model")),
        None => Ok(Shards { files, of_tensor }),
        Some(file) => Err(Error::preflight(format!(
            "`{}` names `{file}`, which is not a .safetensors file of its folder",
            path.display()
        ))
        .hint("use the model in safetensors, or as a GGUF file")),
    }
}

/// The folder's weight files, whether or not they exist.
///
/// # Errors
/// Exit code 3 if there are none, or several and nothing tells which of them belong to the model.
pub(in crate::engine::load) fn of_folder(folder: &Path) -> Result<Shards> {
    let single = folder.join(SINGLE).is_file();
    let index = folder.join(INDEX);
    if index.is_file() {
        let shards = of_index(&index)?;
        // A stale index: its shards were merged into one file.
        let none = !shards.files.iter().any(|file| folder.join(file).is_file());
        if !(none && single) {
            return Ok(shards);
        }
    }
    let of = |files: Vec<String>| Shards {
        files: files.into_iter().collect(),
        of_tensor: BTreeMap::new(),
    };
    if single {
        return Ok(of(vec![SINGLE.to_owned()]));
    }
    let mut found = Vec::new();
    let failed = || format!("failed to list `{}`", folder.display());
    for entry in fs::read_dir(folder).or_exit(Exit::Preflight, failed)? {
        let entry = entry.or_exit(Exit::Preflight, failed)?;
        found.extend(
            entry
                .file_name()
                .into_string()
                .ok()
                .filter(|name| is_weights(name)),
        );
    }
    found.sort();
    match &found[..] {
        [] => Err(Error::preflight(format!(
            "`{}` has neither {SINGLE} nor {INDEX}",
            folder.display()
        ))
        .hint(COMPLETE)),
        [first, others @ ..] => match numbered(first) {
            Some(set) if found.iter().all(|name| set.contains(name)) => Ok(of(set)),
            _ if others.is_empty() => Ok(of(found)),
            _ => Err(Error::preflight(format!(
                "`{}` has several weight files ({}), and no {INDEX} that says which of them \
                 belong to the model",
                folder.display(),
                found.join(", ")
            ))
            .hint("fetch the model's index as well")),
        },
    }
}

/// The names of all files of the numbered set (`NAME-00001-of-00003.safetensors`) that `name`
/// belongs to.
fn numbered(name: &str) -> Option<Vec<String>> {
    let gguf = format!("{}.gguf", name.strip_suffix(".safetensors")?);
    let parts = crate::engine::load::gguf::split::part_names(&gguf)?;
    let renamed = parts.iter().map(|part| {
        let stem = part.strip_suffix(".gguf").unwrap_or(part);
        format!("{stem}.safetensors")
    });
    Some(renamed.collect())
}

/// Whether this is a weight file at the top level of a folder.
pub(in crate::engine::load) fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.contains(['/', '\\'])
}

/// The folder's memory-mapped weights.
pub(super) struct Weights {
    files: Vec<(String, MmapedSafetensors)>,
    /// By tensor name: the type and the index of its file.
    pub(super) tensors: BTreeMap<String, (String, usize)>,
}

impl Weights {
    /// Maps the files and locates each tensor.
    ///
    /// # Errors
    /// Exit code 3 if a listed file or tensor is missing, a file is corrupt, or two files contain
    /// the same tensor.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let shards = of_folder(folder)?;
        let mut files = Vec::new();
        let mut tensors: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for (index, name) in shards.files.into_iter().enumerate() {
            let file = map(&folder.join(&name))?;
            for (tensor, view) in file.tensors() {
                if shards
                    .of_tensor
                    .get(&tensor)
                    .is_some_and(|file| *file != name)
                {
                    continue;
                }
                let entry = (format!("{:?}", view.dtype()), index);
                let before = tensors.insert(tensor.clone(), entry);
                // With an index, a duplicate is a tensor that the index does not list.
                if let (Some((_, other)), true) = (before, shards.of_tensor.is_empty()) {
                    let (other, _): &(String, MmapedSafetensors) = &files[other];
                    return Err(Error::preflight(format!(
                        "`{}`: both {other} and {name} contain the tensor `{tensor}`",
                        folder.display()
                    ))
                    .hint(format!(
                        "fetch {INDEX}, which says which one to use, or fetch the model again"
                    )));
                }
            }
            files.push((name, file));
        }
        let lost = shards
            .of_tensor
            .iter()
            .find(|(name, _)| !tensors.contains_key(*name));
        if let Some((tensor, file)) = lost {
            return Err(Error::preflight(format!(
                "`{}` has no tensor `{tensor}`, which {INDEX} lists for it",
                folder.join(file).display()
            ))
            .hint("index and files seem to belong to different models: fetch them again"));
        }
        Ok(Self { files, tensors })
    }

    /// The file that contains a tensor.
    pub(super) fn file_of(&self, tensor: &str) -> Option<&MmapedSafetensors> {
        let (_, index) = self.tensors.get(tensor)?;
        self.files.get(*index).map(|(_, file)| file)
    }
}

fn map(path: &Path) -> Result<MmapedSafetensors> {
    if !path.is_file() {
        return Err(Error::preflight(format!("`{}` is missing", path.display()))
            .hint("fetch the missing file"));
    }
    // SAFETY: the map is read-only, and this program never writes a weights file in place. A
    // process that shortens one meanwhile would kill this one with SIGBUS, as with any program that
    // maps its weights.
    let mapped = unsafe { MmapedSafetensors::new(path) };
    mapped.map_err(|source| {
        let foreign = start(path).and_then(|start| foreign::recognise(&start));
        match foreign {
            Some((what, hint)) => {
                Error::preflight(format!("`{}` {what}", path.display())).hint(hint)
            }
            None => Error::preflight(format!(
                "failed to read the weights in `{}`",
                path.display()
            ))
            .caused_by(source)
            .hint("the file is cut short or corrupt: fetch it again"),
        }
    })
}

/// A file's first bytes.
fn start(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(32).read_to_end(&mut start).ok()?;
    Some(start)
}

/// The model folder, if `path` is one of its files: `config.json`, a shard, the index.
pub(crate) fn folder_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let is_one = name.ends_with(".json")
        || name.ends_with(".safetensors")
        || name.ends_with(".jinja")
        || matches!(name, "tokenizer.model" | "merges.txt" | "README.md");
    let parent = path.parent()?;
    let folder = match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_owned(),
    };
    let is_model = name.ends_with(".safetensors") || folder.join("config.json").is_file();
    (is_one && is_model).then_some(folder)
}
