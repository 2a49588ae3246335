//! `flows/.expanded_cache.json`: decides whether the expanded flows on disk are still valid.
//!
//! # Validity
//!
//! An expansion is reused only if none of the following has changed:
//!
//! - the cache file exists, is readable, and has this [`SCHEMA`];
//! - it was written by this [`EXPANDER_VERSION`], so the same input produces the same bytes;
//! - `template_hash`: the template's file name and content, its suite's content, and the names and
//!   contents of all included files;
//! - `fixture_hash`: the relative paths and contents of the fixture's included files;
//! - `num_flows`;
//! - every expanded file exists with its size and its SHA-256.
//!
//! File times and permissions do not count, nor do unlisted files in `flows/`.
//!
//! # Crash safety
//!
//! The old cache file is removed before the first flow is written, and the new one is written last, so an
//! interrupted expansion has none. Each file is written under a temporary name and renamed. Nothing is synced
//! to disk: after a power failure the digests reveal what was lost, and a new expansion takes milliseconds.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, Result};
use crate::hash::sha256;

use super::place::shown;

pub(super) const FILE: &str = ".expanded_cache.json";

/// Version of the format of the cache file.
pub(super) const SCHEMA: u32 = 1;

/// Version of the expansion. Increment it when the same template, suite and fixture expand to different
/// bytes.
pub(super) const EXPANDER_VERSION: u32 = 3;

/// The inputs of an expansion, all of which are stored in the cache file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) fixture_hash: &'a str,
    pub(super) template_hash: &'a str,
    pub(super) num_flows: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cache {
    schema: u32,
    expander_version: u32,
    fixture_hash: String,
    template_hash: String,
    num_flows: usize,
    /// RFC 3339, in UTC.
    created_at: String,
    files: Vec<CachedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CachedFile {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// Whether the expanded flows on disk are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheState {
    /// All files are unchanged.
    Hit,
    /// The flows must be expanded again.
    Miss(MissReason),
}

/// Why the expanded flows are not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissReason {
    /// There is no cache file.
    NoCache,
    /// The template, its name, its suite, or an included file changed.
    TemplateChanged,
    /// A file of the fixture was changed, added, removed or renamed.
    FixtureChanged,
    /// A different number of flows is requested.
    NumFlowsChanged {
        /// Number of flows on disk.
        cached: usize,
        /// Number of flows requested.
        asked: usize,
    },
    /// The name of a missing file.
    FileMissing(String),
    /// The name of an expanded file that differs or cannot be read.
    FileAltered(String),
    /// The cache file is malformed or truncated.
    CacheUnreadable,
    /// It was written by another version of the expander.
    OtherExpander {
        /// That version.
        cached: u32,
    },
    OtherSchema {
        /// The schema found.
        cached: u32,
    },
    /// The caller disabled the cache.
    Disabled,
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCache => "no cache",
            Self::TemplateChanged => "template changed",
            Self::FixtureChanged => "fixture changed",
            Self::NumFlowsChanged { .. } => "num_flows changed",
            Self::FileMissing(_) => "file missing",
            Self::FileAltered(_) => "file altered",
            Self::CacheUnreadable => "cache unreadable",
            Self::OtherExpander { .. } => "other expander version",
            Self::OtherSchema { .. } => "other cache schema",
            Self::Disabled => "cache disabled",
        })
    }
}

impl MissReason {
    /// Details that the short text omits: the file name, or the old and the new value.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::NumFlowsChanged { cached, asked } => Some(format!("from {cached} to {asked}")),
            Self::FileMissing(name) | Self::FileAltered(name) => Some(name.clone()),
            Self::OtherExpander { cached } => Some(format!("{cached}, not {EXPANDER_VERSION}")),
            Self::OtherSchema { cached } => Some(format!("{cached}, not {SCHEMA}")),
            Self::NoCache
            | Self::TemplateChanged
            | Self::FixtureChanged
            | Self::CacheUnreadable
            | Self::Disabled => None,
        }
    }
}

/// The file name of a flow: at least five digits, so that names sort numerically up to 99,999 flows.
pub(super) fn flow_file(number: usize) -> String {
    format!("_expanded_{number:05}.json")
}

/// Checks the expansion in `folder` against the request. Each unchanged file is passed to `take` with its
/// number; if `take` rejects it, the file counts as altered.
pub(super) fn verify(
    folder: &Path,
    key: Key,
    mut take: impl FnMut(usize, &[u8]) -> Option<()>,
) -> CacheState {
    let cache = match read(folder) {
        Ok(cache) => cache,
        Err(reason) => return CacheState::Miss(reason),
    };
    if let Some(reason) = cache.differs(key) {
        return CacheState::Miss(reason);
    }
    let mut bytes = Vec::new();
    for (index, file) in cache.files.iter().enumerate() {
        if let Err(error) = read_into(&folder.join(&file.name), &mut bytes) {
            return CacheState::Miss(match error.kind() {
                ErrorKind::NotFound => MissReason::FileMissing(file.name.clone()),
                _ => MissReason::FileAltered(file.name.clone()),
            });
        }
        let same = bytes.len() as u64 == file.size && sha256(&bytes) == file.sha256;
        if !same || take(index + 1, &bytes).is_none() {
            return CacheState::Miss(MissReason::FileAltered(file.name.clone()));
        }
    }
    CacheState::Hit
}

fn read(folder: &Path) -> Result<Cache, MissReason> {
    let open = || {
        let file = File::open(folder.join(FILE)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => MissReason::NoCache,
            _ => MissReason::CacheUnreadable,
        });
        file.map(BufReader::new)
    };
    // Parse the schema first: another schema may have other fields.
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    match serde_json::from_reader(open()?) {
        Ok(Schema { schema: SCHEMA }) => {
            serde_json::from_reader(open()?).map_err(|_| MissReason::CacheUnreadable)
        }
        Ok(Schema { schema: cached }) => Err(MissReason::OtherSchema { cached }),
        Err(_) => Err(MissReason::CacheUnreadable),
    }
}

fn read_into(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    io::Read::read_to_end(&mut File::open(path)?, bytes)?;
    Ok(())
}

impl Cache {
    fn differs(&self, key: Key) -> Option<MissReason> {
        if self.expander_version != EXPANDER_VERSION {
            let cached = self.expander_version;
            return Some(MissReason::OtherExpander { cached });
        }
        // Checked before the fixture: a different template usually has a different fixture as well.
        if self.template_hash != key.template_hash {
            return Some(MissReason::TemplateChanged);
        }
        if self.fixture_hash != key.fixture_hash {
            return Some(MissReason::FixtureChanged);
        }
        if self.num_flows != key.num_flows {
            return Some(MissReason::NumFlowsChanged {
                cached: self.num_flows,
                asked: key.num_flows,
            });
        }
        // The files must be exactly those of the flows, so no name can point elsewhere.
        let named = |(index, file): (usize, &CachedFile)| file.name == flow_file(index + 1);
        let whole = self.files.len() == self.num_flows && self.files.iter().enumerate().all(named);
        (!whole).then_some(MissReason::CacheUnreadable)
    }
}

/// Writes into `flows/`, each file atomically.
pub(super) struct Writer<'a> {
    folder: &'a Path,
    /// Contains the process id: without a lock, two runs must not write the same file.
    temporary: String,
}

const TEMPORARY_PREFIX: &str = ".expanded-";
const TEMPORARY_SUFFIX: &str = ".tmp";

impl<'a> Writer<'a> {
    /// Begins an expansion. Invalidates the cache.
    pub(super) fn begin(folder: &'a Path) -> Result<Self> {
        let cache = folder.join(FILE);
        match fs::remove_file(&cache) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(not_written(&cache, error));
            }
            _ => {}
        }
        let process = std::process::id();
        Ok(Self {
            folder,
            temporary: format!("{TEMPORARY_PREFIX}{process}{TEMPORARY_SUFFIX}"),
        })
    }

    pub(super) fn flow(&self, number: usize, bytes: &[u8]) -> Result<CachedFile> {
        let name = flow_file(number);
        self.write(&name, |file| file.write_all(bytes))?;
        Ok(CachedFile {
            name,
            size: bytes.len() as u64,
            sha256: sha256(bytes),
        })
    }

    /// Ends the expansion: removes surplus flows and makes the cache valid.
    pub(super) fn finish(self, key: Key, files: Vec<CachedFile>) -> Result<()> {
        remove_strays(self.folder, key.num_flows)?;
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second());
        let cache = Cache {
            schema: SCHEMA,
            expander_version: EXPANDER_VERSION,
            fixture_hash: key.fixture_hash.to_owned(),
            template_hash: key.template_hash.to_owned(),
            num_flows: key.num_flows,
            created_at: now.unwrap_or_default().to_string(),
            files,
        };
        self.write(FILE, |file| {
            let mut file = BufWriter::new(file);
            serde_json::to_writer_pretty(&mut file, &cache)?;
            file.write_all(b"\n")?;
            file.flush()
        })
    }

    fn write(&self, name: &str, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let temporary = self.folder.join(&self.temporary);
        let written = File::create(&temporary)
            .and_then(|mut file| content(&mut file))
            .and_then(|()| fs::rename(&temporary, self.folder.join(name)));
        written.map_err(|error| {
            // Ignore a failed clean-up: the original error is reported.
            let _ = fs::remove_file(&temporary);
            not_written(&self.folder.join(name), error)
        })
    }
}

/// Removes flows beyond the first `num_flows` and temporary files of killed runs, and nothing else.
pub(super) fn remove_strays(folder: &Path, num_flows: usize) -> Result<()> {
    let failed = |error| not_written(folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if is_stray(name, num_flows) && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(not_written(&entry.path(), error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_stray(name: &str, num_flows: usize) -> bool {
    if name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
        return true;
    }
    let Some(number) = name.strip_prefix("_expanded_") else {
        return false;
    };
    let Some(number) = number.strip_suffix(".json") else {
        return false;
    };
    let asked_for = number
        .parse()
        .is_ok_and(|number| (1..=num_flows).contains(&number) && flow_file(number) == name);
    !asked_for
}

fn not_written(path: &Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space on that disk",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "the flows must be expanded again: make the folder writable, or point FLOWBENCH_ROOT (--root) \
             at a writable copy of templates/ and fixtures/"
        }
        _ => "check the folder: flowbench writes _expanded_*.json and .expanded_cache.json there",
    };
    Error::new(Exit::Output, format!("failed to write {}", shown(path)))
        .caused_by(error)
        .hint(hint)
}
