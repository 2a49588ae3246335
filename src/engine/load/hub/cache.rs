//! flowbench's cache: the downloaded model, known digests, the download lock, and the download's
//! work folder.
//!
//! ```text
//! <cache>/<model>.gguf          exists only when complete
//! <cache>/digests/<key>.json    one stamp per file, wherever the file is
//! <cache>/fetch.lock            held by the downloading process
//! <cache>/tmp/                  used only by the holder of the lock
//! ```

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{POLL, Watch, bar};
use crate::error::{Context, Exit, Result};
use crate::hash;

/// The cache in `folder`, which need not exist yet.
pub(super) struct Cache {
    folder: PathBuf,
}

/// Whether a digest may come from a stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digest {
    /// Yes, if the file has not changed since it was hashed.
    Known,
    /// No: hash the whole file.
    Fresh,
}

/// A digest and the file's identity when it was hashed. Stale as soon as path, size, modification
/// time, inode or device differ.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    schema: u32,
    path: PathBuf,
    size: u64,
    /// Nanoseconds since 1970.
    modified_ns: i128,
    inode: u64,
    device: u64,
    sha256: String,
}

impl Stamp {
    const SCHEMA: u32 = 1;

    /// The stamp of the file's current state; follows symlinks.
    fn of(path: &Path, sha256: String) -> std::io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            schema: Self::SCHEMA,
            path: path.to_owned(),
            size: metadata.len(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
            sha256,
        })
    }
}

/// The exclusive right to download, until dropped.
pub(super) struct FetchLock {
    /// Keeps the file lock, which the system releases at the latest when the process exits.
    _file: File,
}

impl Cache {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The path of a downloaded file with this name.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    fn stamp_path(&self, path: &Path) -> PathBuf {
        let key = &hash::sha256(path.as_os_str().as_encoded_bytes())[..32];
        self.folder.join("digests").join(format!("{key}.json"))
    }

    /// The digest of a file that was hashed before and has not changed since.
    pub(super) fn known_digest(&self, path: &Path) -> Option<String> {
        let path = std::path::absolute(path).ok()?;
        let text = fs::read(self.stamp_path(&path)).ok()?;
        // A damaged stamp, or one of another version, is ignored.
        let stamp: Stamp = serde_json::from_slice(&text).ok()?;
        let now = Stamp::of(&path, stamp.sha256.clone()).ok()?;
        (stamp == now).then_some(stamp.sha256)
    }

    /// SHA-256 of a file. Shows a progress bar if the file has to be read.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn digest(&self, path: &Path, digest: Digest) -> Result<String> {
        if digest == Digest::Known
            && let Some(known) = self.known_digest(path)
        {
            return Ok(known);
        }
        let context = || format!("failed to read {}", path.display());
        let before = Stamp::of(path, String::new()).or_exit(Exit::Preflight, context)?;
        let bar = bar::bytes("Checking the digest", before.size);
        let sha256 = hash::sha256_file(path, |bytes| bar.set_position(bytes))
            .or_exit(Exit::Preflight, context)?;
        bar.finish_and_clear();
        // Do not store a digest if the file changed while it was read.
        if Stamp::of(path, String::new()).is_ok_and(|after| after == before) {
            self.remember(path, &sha256);
        }
        Ok(sha256)
    }

    /// Stores a digest. Write errors are ignored: they make the next run slower, not wrong.
    pub(super) fn remember(&self, path: &Path, sha256: &str) {
        let _ = self.write_stamp(path, sha256);
    }

    fn write_stamp(&self, path: &Path, sha256: &str) -> std::io::Result<()> {
        let path = std::path::absolute(path)?;
        let stamp = Stamp::of(&path, sha256.to_owned())?;
        let target = self.stamp_path(&path);
        let folder = self.folder.join("digests");
        fs::create_dir_all(&folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, &stamp)?;
        file.persist(target)?;
        Ok(())
    }

    /// Waits until no other process is downloading and takes the lock.
    ///
    /// # Errors
    /// If the cache cannot be written, or the watcher cancels the wait.
    pub(super) fn lock(&self, watch: &mut Watch) -> Result<FetchLock> {
        fs::create_dir_all(&self.folder).or_exit(Exit::Preflight, || {
            format!("failed to create the cache {}", self.folder.display())
        })?;
        let path = self.folder.join("fetch.lock");
        let context = || format!("failed to lock the cache ({})", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .or_exit(Exit::Preflight, context)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        (watch.say)("Waiting for another flowbench process to download the model");
                        told = true;
                    }
                    watch.check()?;
                    std::thread::sleep(POLL);
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).or_exit(Exit::Preflight, context);
                }
            }
        }
        Ok(FetchLock { _file: file })
    }

    /// Creates an empty folder for a download, deleted when dropped. Anything already in the
    /// cache's `tmp` was left by processes that died: only the holder of the lock writes there.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub(super) fn work_folder(&self, _lock: &FetchLock) -> Result<TempDir> {
        let tmp = self.folder.join("tmp");
        let context = || format!("failed to prepare {}", tmp.display());
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).or_exit(Exit::Preflight, context);
            }
            _ => {}
        }
        fs::create_dir_all(&tmp).or_exit(Exit::Preflight, context)?;
        tempfile::Builder::new()
            .prefix("fetch-")
            .tempdir_in(&tmp)
            .or_exit(Exit::Preflight, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(&folder.path().join("cache"));
        (folder, cache)
    }

    #[test]
    fn a_digest_is_cached_until_the_file_changes() {
        let (folder, cache) = cache();
        let path = folder.path().join("model.gguf");
        fs::write(&path, "abc").unwrap();
        assert_eq!(cache.known_digest(&path), None);
        let digest = cache.digest(&path, Digest::Known).unwrap();
        assert_eq!(digest, hash::sha256(b"abc"));
        assert_eq!(cache.known_digest(&path), Some(digest));

        // Same size, other content.
        fs::write(&path, "abd").unwrap();
        assert_eq!(cache.known_digest(&path), None);
        assert_eq!(
            cache.digest(&path, Digest::Known).unwrap(),
            hash::sha256(b"abd")
        );

        // Another file in its place, with the same size and modification time.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "xyz").unwrap();
        File::options()
            .write(true)
            .open(&other)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(cache.known_digest(&path), None);
        assert_eq!(
            cache.digest(&path, Digest::Known).unwrap(),
            hash::sha256(b"xyz")
        );
    }

    #[test]
    fn a_fresh_digest_ignores_the_stamp() {
        let (folder, cache) = cache();
        let path = folder.path().join("model.gguf");
        fs::write(&path, "abc").unwrap();
        cache.remember(&path, "made up");
        assert_eq!(cache.digest(&path, Digest::Known).unwrap(), "made up");
        assert_eq!(
            cache.digest(&path, Digest::Fresh).unwrap(),
            hash::sha256(b"abc")
        );
        assert_eq!(
            cache.digest(&path, Digest::Known).unwrap(),
            hash::sha256(b"abc")
        );
    }

    #[test]
    fn a_damaged_stamp_is_ignored() {
        let (folder, cache) = cache();
        let path = folder.path().join("model.gguf");
        fs::write(&path, "abc").unwrap();
        cache.digest(&path, Digest::Known).unwrap();
        let stamp = cache.stamp_path(&path);
        for text in ["", "{", "[]", r#"{"schema": 2}"#] {
            fs::write(&stamp, text).unwrap();
            assert_eq!(cache.known_digest(&path), None, "{text}");
        }
    }

    #[test]
    fn leftovers_of_dead_processes_are_removed() {
        let (_folder, cache) = cache();
        let left = cache.path("tmp").join("fetch-dead");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("half.whl"), "half").unwrap();
        let mut watch = Watch {
            say: &mut |_| (),
            cancelled: &|| false,
        };
        let lock = cache.lock(&mut watch).unwrap();
        let work = cache.work_folder(&lock).unwrap();
        assert!(!left.exists());
        assert!(work.path().exists());
    }

    #[test]
    fn a_second_download_waits_and_can_be_interrupted() {
        let (_folder, cache) = cache();
        let mut watch = Watch {
            say: &mut |_| (),
            cancelled: &|| false,
        };
        let lock = cache.lock(&mut watch).unwrap();
        let mut said = Vec::new();
        let mut watch = Watch {
            say: &mut |line| said.push(line.to_owned()),
            cancelled: &|| true,
        };
        let error = cache.lock(&mut watch).err().unwrap();
        assert_eq!(error.exit(), Exit::Incomplete);
        assert_eq!(
            said,
            ["Waiting for another flowbench process to download the model"]
        );
        drop(lock);
        assert!(
            cache
                .lock(&mut Watch {
                    say: &mut |_| (),
                    cancelled: &|| false
                })
                .is_ok()
        );
    }
}
