//! A repository of the Hugging Face hub: finds cached files and downloads the rest.
//!
//! `hf-hub` implements the cache layout (shared with the Python libraries) and resumes interrupted
//! downloads. It has no timeouts and verifies no digests, so both are added here. Each request runs
//! in a thread that is watched and abandoned if it hangs. The hub cache names each large file by
//! its SHA-256, so a file with such a name is verified against it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::ProgressBar;

use super::{ModelFile, ModelFormat, ModelSource, POLL, Watch, bar, folder, interrupted};
use crate::config::ModelConfig;
use crate::engine::load::gguf::split;
use crate::error::{Context, Error, Exit, Result};
use crate::hash;
use crate::stopwatch;

/// Upper bound on attempts per download.
const ATTEMPTS: usize = 3;

/// A client for the hub, as configured.
pub(super) struct Hub<'a> {
    config: &'a ModelConfig,
    cache: Cache,
    /// How long the hub may take to respond.
    patience: Duration,
    /// How long a download may make no progress.
    stalled: Duration,
}

impl<'a> Hub<'a> {
    pub(super) fn new(config: &'a ModelConfig, patience: Duration, stalled: Duration) -> Self {
        Self {
            config,
            cache: Cache::new(config.hf_cache_dir.clone()),
            patience,
            stalled,
        }
    }

    fn api(&self) -> Result<Api> {
        // Also reads the token that a login stored next to the cache.
        let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_progress(false);
        if let Some(token) = &self.config.hf_token {
            builder = builder.with_token(Some(token.clone()));
        }
        if let Some(endpoint) = &self.config.hf_endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        builder.build().or_exit(Exit::Preflight, || {
            "failed to set up the hub client".to_owned()
        })
    }
}

/// A repository at a revision.
pub(super) struct Repository {
    name: String,
    revision: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Repository {
    /// The current state of the repository.
    pub(super) fn latest(name: String) -> Self {
        Self {
            name,
            revision: "main".to_owned(),
        }
    }

    /// The repository at a commit.
    pub(super) fn at(name: &str, revision: &str) -> Self {
        Self {
            name: name.to_owned(),
            revision: revision.to_owned(),
        }
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }

    /// The revision's folder in the cache, if present.
    fn snapshot(&self, hub: &Hub) -> Option<PathBuf> {
        let cache = hub.cache.repo(self.repo());
        // A commit has its own folder; a branch is a file with the commit's name.
        let folder = hub.cache.path().join(self.repo().folder_name());
        let commit = std::fs::read_to_string(folder.join("refs").join(&self.revision))
            .map_or_else(|_| self.revision.clone(), |commit| commit.trim().to_owned());
        let is_name = !commit.is_empty() && !commit.contains(['/', '\\']) && commit != "..";
        let snapshot = cache.pointer_path(&commit);
        (is_name && snapshot.is_dir()).then_some(snapshot)
    }

    /// Path of a cached file.
    pub(super) fn cached_file(&self, hub: &Hub, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(hub)?.join(file);
        path.is_file().then_some(path)
    }

    /// The model in the cache. With `file`, that file and all parts of its model. Without it, the
    /// only GGUF model in the repository's folder, or the folder itself if it is complete.
    ///
    /// # Errors
    /// If there is more than one GGUF model to choose from.
    pub(super) fn find_local(&self, hub: &Hub, file: Option<&str>) -> Result<Option<ModelFile>> {
        if let Some(file) = file {
            let path = self.cached_parts(hub, file);
            return Ok(path.map(|path| model(path, ModelSource::Cache, ModelFormat::Gguf)));
        }
        let Some(snapshot) = self.snapshot(hub) else {
            return Ok(None);
        };
        if let Some(gguf) = self.choose_gguf(&folder::files(&snapshot)?)? {
            let path = self.cached_parts(hub, gguf);
            return Ok(path.map(|path| model(path, ModelSource::Cache, ModelFormat::Gguf)));
        }
        let is_whole = folder::missing(&snapshot)?.is_empty();
        Ok(is_whole.then(|| model(snapshot, ModelSource::Cache, ModelFormat::Folder)))
    }

    /// Path of the first part of a file's model, if all parts are cached.
    fn cached_parts(&self, hub: &Hub, file: &str) -> Option<PathBuf> {
        let parts = parts(file);
        let paths: Option<Vec<PathBuf>> = parts
            .iter()
            .map(|part| self.cached_file(hub, part))
            .collect();
        paths?.into_iter().next()
    }

    /// The only GGUF model among these files; for a split model, its first listed part.
    fn choose_gguf<'f>(&self, files: &'f [String]) -> Result<Option<&'f str>> {
        let mut models = BTreeSet::new();
        let ggufs: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(|file| file.ends_with(".gguf") && models.insert(parts(file)))
            .collect();
        match ggufs[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [first, ..] => Err(Error::usage(format!(
                "{self} has several models: {} (MODEL)",
                ggufs.join(", ")
            ))
            .hint(format!("choose one: MODEL={self}:{first}"))),
        }
    }

    /// Downloads the model. With `file`, that file and all parts of its model. Without it, the only
    /// GGUF model in the repository, or the files of a model folder.
    ///
    /// # Errors
    /// If the hub does not have it or cannot be reached, or the watcher cancelled.
    pub(super) fn fetch(
        &self,
        hub: &Hub,
        file: Option<&str>,
        watch: &mut Watch,
    ) -> Result<ModelFile> {
        let failed = |error: Error| match error.exit() {
            Exit::Incomplete | Exit::Usage => error,
            _ => error
                .context(format!("failed to fetch the model {self}"))
                .hint("check the name and the network, or set MODEL=/path/to/file.gguf"),
        };
        if let Some(file) = file {
            let path = self.fetch_parts(hub, file, watch).map_err(failed)?;
            return Ok(model(path, ModelSource::Hub, ModelFormat::Gguf));
        }
        let files = self.list(hub, watch).map_err(failed)?;
        if let Some(gguf) = self.choose_gguf(&files)? {
            let path = self.fetch_parts(hub, gguf, watch).map_err(failed)?;
            return Ok(model(path, ModelSource::Hub, ModelFormat::Gguf));
        }
        let path = self.fetch_folder(hub, &files, watch).map_err(failed)?;
        Ok(model(path, ModelSource::Hub, ModelFormat::Folder))
    }

    /// Names of all files in the repository.
    fn list(&self, hub: &Hub, watch: &mut Watch) -> Result<Vec<String>> {
        let api = hub.api()?.repo(self.repo());
        let started = Activity::default();
        let info = watched(hub, &started, watch, move || api.info())?
            .map_err(|error| self.refused(error, None))?;
        Ok(info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect())
    }

    fn fetch_folder(&self, hub: &Hub, files: &[String], watch: &mut Watch) -> Result<PathBuf> {
        let has = |file: &str| files.iter().any(|other| other == file);
        let mut missing: Vec<&str> = folder::REQUIRED
            .into_iter()
            .filter(|file| !has(file))
            .collect();
        let mut weights: Vec<String> = files
            .iter()
            .filter(|file| folder::is_weights(file))
            .cloned()
            .collect();
        if weights.is_empty() {
            missing.push("*.safetensors");
        }
        if !missing.is_empty() {
            return Err(Error::preflight(format!(
                "it has no usable model: neither a .gguf file nor {}",
                missing.join(", ")
            )));
        }
        // The index goes first: with it, an interrupted folder is recognized as incomplete.
        if has(folder::INDEX) {
            let index = self.fetch_file(hub, folder::INDEX, watch)?;
            let named: Vec<String> = folder::weights_of_index(&index)?.into_iter().collect();
            weights = match named.iter().any(|file| has(file)) {
                false if has(folder::SINGLE) => vec![folder::SINGLE.to_owned()],
                _ => named,
            };
        } else if has(folder::SINGLE) {
            weights = vec![folder::SINGLE.to_owned()];
        }
        let optional = folder::OPTIONAL.into_iter().filter(|file| has(file));
        for file in optional.chain(weights.iter().map(String::as_str)) {
            self.fetch_file(hub, file, watch)?;
        }
        let mut path = PathBuf::new();
        for file in folder::REQUIRED {
            path = self.fetch_file(hub, file, watch)?;
        }
        path.pop();
        folder::check(&path)?;
        Ok(path)
    }

    /// Downloads all parts of a file's model. Returns the path of the first.
    fn fetch_parts(&self, hub: &Hub, file: &str, watch: &mut Watch) -> Result<PathBuf> {
        let mut first = None;
        for part in parts(file) {
            let path = self.fetch_file(hub, &part, watch)?;
            first.get_or_insert(path);
        }
        first.ok_or_else(|| Error::preflight(format!("{file} has no parts")))
    }

    /// Downloads a file unless it is cached. Returns its path in the cache.
    ///
    /// # Errors
    /// As [`Repository::fetch`], and if the file's digest does not match.
    pub(super) fn fetch_file(&self, hub: &Hub, file: &str, watch: &mut Watch) -> Result<PathBuf> {
        if let Some(path) = self.cached_file(hub, file) {
            return Ok(path);
        }
        (watch.say)(&format!("Fetching {file} from the hub ({self})"));
        let api = hub.api()?;
        let mut attempt = 1;
        let (path, size) = loop {
            let activity = Activity::default();
            let bar = bar::bytes(file, 0);
            let progress = Shown {
                activity: activity.clone(),
                bar: bar.clone(),
            };
            let repo: ApiRepo = api.repo(self.repo());
            let name = file.to_owned();
            let result = watched(hub, &activity, watch, move || {
                repo.download_with_progress(&name, progress)
            });
            bar.finish_and_clear();
            match result? {
                Ok(path) => break (path, activity.total()),
                Err(ApiError::InvalidResume) if attempt < ATTEMPTS => self.drop_parts(hub),
                // Connection lost: the next attempt resumes the download.
                Err(ApiError::IoError(_) | ApiError::RequestError(_))
                    if attempt < ATTEMPTS && activity.received() > 0 => {}
                Err(error) => return Err(self.refused(error, Some(file))),
            }
            attempt += 1;
        };
        check(&path, size)?;
        Ok(path)
    }

    /// Removes partial downloads: they do not match the file on the hub any more.
    fn drop_parts(&self, hub: &Hub) {
        let blobs = hub
            .cache
            .path()
            .join(self.repo().folder_name())
            .join("blobs");
        for file in folder::files(&blobs).unwrap_or_default() {
            if file.ends_with(".part") {
                // A file that cannot be removed makes the next attempt fail.
                let _ = std::fs::remove_file(blobs.join(file));
            }
        }
    }

    /// Translates the hub's error. The library keeps the HTTP status only as text.
    fn refused(&self, error: ApiError, file: Option<&str>) -> Error {
        let text = error.to_string();
        let status = |code: &str| text.contains(&format!("status: {code}"));
        if status("404") {
            return Error::preflight(match file {
                Some(file) => format!("there is no {file} in {self}"),
                None => format!("there is no repository {self}"),
            });
        }
        if status("401") || status("403") {
            return Error::preflight(format!(
                "the hub requires a login for {self}, or there is no such repository"
            ))
            .hint("set HF_TOKEN to the token of an account that may read it");
        }
        if let ApiError::LockAcquisition(path) = &error {
            return Error::preflight(format!(
                "another process is fetching the same file ({})",
                path.display()
            ))
            .hint("wait for it to end and try again");
        }
        Error::preflight("the hub cannot be used").caused_by(error)
    }
}

/// The files of the model that a GGUF file belongs to: the file itself, or all parts of a split
/// model.
fn parts(file: &str) -> Vec<String> {
    split::part_names(file).unwrap_or_else(|| vec![file.to_owned()])
}

fn model(path: PathBuf, source: ModelSource, format: ModelFormat) -> ModelFile {
    ModelFile {
        path,
        source,
        sha256: None,
        format,
    }
}

/// Verifies the size of a downloaded file, and its digest if the blob's name is one. Removes a
/// wrong file, so that the next run does not use it.
fn check(path: &Path, size: u64) -> Result<()> {
    let context = || format!("failed to read {}", path.display());
    let blob = path.canonicalize().or_exit(Exit::Preflight, context)?;
    let length = blob.metadata().or_exit(Exit::Preflight, context)?.len();
    let expected = blob
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    let is_digest = expected.len() == 64 && expected.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_right = length == size
        && (!is_digest
            || hash::sha256_file(&blob, |_| ()).or_exit(Exit::Preflight, context)? == expected);
    if is_right {
        return Ok(());
    }
    for path in [path, &blob] {
        std::fs::remove_file(path).or_exit(Exit::Preflight, || {
            format!("failed to remove {}", path.display())
        })?;
    }
    Err(Error::preflight(format!(
        "the downloaded file is not the expected one ({length} of {size} bytes, or a wrong digest)"
    )))
}

/// Progress of a request, updated by its thread.
#[derive(Clone, Default)]
struct Activity(Arc<RequestProgress>);

#[derive(Default)]
struct RequestProgress {
    /// Bytes downloaded so far, including those of earlier attempts.
    received: AtomicU64,
    /// Size of the whole file in bytes; 0 until known.
    total: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Activity {
    fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        if let Ok(mut last) = self.0.last.lock() {
            *last = Some(stopwatch::now());
        }
    }

    /// Time of the last progress; `None` before the first.
    fn last(&self) -> Option<Instant> {
        self.0.last.lock().ok().and_then(|last| *last)
    }
}

/// Draws the progress bar and records progress.
struct Shown {
    activity: Activity,
    bar: ProgressBar,
}

impl Progress for Shown {
    fn init(&mut self, size: usize, _filename: &str) {
        self.activity.0.total.store(size as u64, Ordering::Relaxed);
        self.activity.touch();
        // Called again when the response starts, followed by an `update` with the bytes that
        // earlier attempts downloaded.
        self.activity.0.received.store(0, Ordering::Relaxed);
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.activity
            .0
            .received
            .fetch_add(size as u64, Ordering::Relaxed);
        self.activity.touch();
        self.bar.inc(size as u64);
    }

    fn finish(&mut self) {}
}

/// Runs a request in its own thread, which is abandoned on an interrupt or a stall: the library's
/// requests cannot be cancelled. An abandoned thread can at most complete a file in the hub's
/// cache.
fn watched<T: Send + 'static>(
    hub: &Hub,
    activity: &Activity,
    watch: &mut Watch,
    request: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let started = stopwatch::now();
    std::thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || {
            // Fails if the thread was abandoned.
            let _ = sender.send(request());
        })
        .or_exit(Exit::Preflight, || "failed to start a thread".to_owned())?;
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::preflight(
                    "the request to the hub failed unexpectedly",
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if (watch.cancelled)() {
            return Err(interrupted());
        }
        let (since, limit) = match activity.last() {
            None => (started, hub.patience),
            Some(last) => (last, hub.stalled),
        };
        if since.elapsed() > limit {
            return Err(Error::preflight(format!(
                "the hub has not responded for {} s",
                limit.as_secs_f64()
            )));
        }
    }
}
