//! `flows/.expanded_cache.json`: tells whether the expanded flows are still those asked for.
//!
//! # What makes an entry stale
//!
//! An expansion is used again only if all of this is as it was:
//!
//! - the cache file is there, can be read as what it is, and has this [`SCHEMA`];
//! - it was written by this [`EXPANDER_VERSION`]: the same input still gives the same bytes;
//! - `template_hash`: the template's file name and content, its suite's content, and the names and
//!   contents of all files that its texts include;
//! - `fixture_hash`: the relative paths and contents of the fixture's included files;
//! - `num_flows`;
//! - every expanded file is there, with its size and its SHA-256.
//!
//! Times and permissions of files do not count, nor do files in `flows/` that are not listed.
//!
//! # What a kill leaves
//!
//! The old cache file is removed before the first flow is written, and the new one is written
//! last, so that an expansion that was cut short has none. Each file is written under another name
//! and renamed. Nothing is synced to the disk: after a power failure the digests tell what was
//! lost, and a new expansion takes milliseconds.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, Result};
use crate::hash::sha256;

use super::place::shown;

/// The cache file's name in `flows/`.
pub(super) const FILE: &str = ".expanded_cache.json";

/// Version of the cache file's own format.
pub(super) const SCHEMA: u32 = 1;

/// Version of the expansion: to be raised when the same template, suite and fixture come to other
/// bytes than before.
pub(super) const EXPANDER_VERSION: u32 = 3;

/// What an expansion is made from. All of it is in the cache file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) fixture_hash: &'a str,
    pub(super) template_hash: &'a str,
    pub(super) num_flows: usize,
}

/// The cache file.
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

/// An expanded file as it was written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CachedFile {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// Whether the expanded flows could be used as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheState {
    /// Every file is what it was.
    Hit,
    /// The flows have to be expanded anew.
    Miss(MissReason),
}

/// Why expanded flows could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissReason {
    /// There is no cache file.
    NoCache,
    /// The template, its suite, a file that it includes, or its name is another.
    TemplateChanged,
    /// A file of the fixture was changed, added, removed or renamed.
    FixtureChanged,
    /// Another number of flows is asked for.
    NumFlowsChanged {
        /// How many there are.
        cached: usize,
        /// How many are asked for.
        asked: usize,
    },
    /// An expanded file is gone: its name.
    FileMissing(String),
    /// An expanded file is not what was written, or cannot be read: its name.
    FileAltered(String),
    /// The cache file is no cache file, or is not whole.
    CacheUnreadable,
    /// Another version of the expansion wrote it.
    OtherExpander {
        /// The version that did.
        cached: u32,
    },
    /// The cache file has another format.
    OtherSchema {
        /// Its schema.
        cached: u32,
    },
    /// The caller did not want the cache to be used.
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
    /// What the short text leaves out: which file, from what to what.
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

/// Name of the file that holds the flow with this number: at least five digits, so that the names
/// sort like the numbers up to 99,999 flows.
pub(super) fn flow_file(number: usize) -> String {
    format!("_expanded_{number:05}.json")
}

/// Checks the expansion in `folder` against what is asked for. Each file that is as it was is
/// given to `take`, number first; if that does not want it, the file counts as altered.
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
    // First by itself: another schema may have other fields.
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
        // Before the fixture: another template most often has another fixture, too.
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
        // A list that is not that of these flows: the names lead nowhere else, then.
        let named = |(index, file): (usize, &CachedFile)| file.name == flow_file(index + 1);
        let whole = self.files.len() == self.num_flows && self.files.iter().enumerate().all(named);
        (!whole).then_some(MissReason::CacheUnreadable)
    }
}

/// Writes into `flows/`, each file at once or not at all.
pub(super) struct Writer<'a> {
    folder: &'a Path,
    /// With the process's id: where there is no lock, two runs do not write the same file.
    temporary: String,
}

const TEMPORARY_PREFIX: &str = ".expanded-";
const TEMPORARY_SUFFIX: &str = ".tmp";

impl<'a> Writer<'a> {
    /// Begins an expansion: from here on there is no valid cache.
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

    /// Writes a flow's file.
    pub(super) fn flow(&self, number: usize, bytes: &[u8]) -> Result<CachedFile> {
        let name = flow_file(number);
        self.write(&name, |file| file.write_all(bytes))?;
        Ok(CachedFile {
            name,
            size: bytes.len() as u64,
            sha256: sha256(bytes),
        })
    }

    /// Ends the expansion: removes what is no longer asked for, and makes the cache valid.
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
            // The error is told; that this fails, too, would not add to it.
            let _ = fs::remove_file(&temporary);
            not_written(&self.folder.join(name), error)
        })
    }
}

/// Removes flows that are not among the first `num_flows`, and what a killed run left half
/// written. Nothing else in the folder is touched.
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
            "the flows have to be expanded anew: make the folder writable"
        }
        _ => "look at the folder: flowbench writes _expanded_*.json and .expanded_cache.json there",
    };
    Error::new(Exit::Output, format!("failed to write {}", shown(path)))
        .caused_by(error)
        .hint(hint)
}
