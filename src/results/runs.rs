//! Finds runs by what users call them.

use std::path::{Path, PathBuf};

use super::baselines;
use super::files::cannot_write;
use super::names::{natural, start_time};
use super::run_folder::is_in_use;
use crate::error::{Error, Result};

/// The folder of results, and what is kept in it.
const HINT: &str =
    "name a run's folder, its ID, latest, latest~N, a baseline, or several with commas";

/// The folders of the runs that `text` names, in the order of their names in it: folders or their `run.json`,
/// run IDs, `latest`, `latest~N` (N runs before), and names of baselines, separated by commas.
///
/// # Errors
/// Exit code 2 if a name is not that of a run or baseline.
pub fn resolve(text: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for name in text.split(',').map(str::trim) {
        for folder in resolve_one(name, out)? {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    Ok(folders)
}

fn resolve_one(name: &str, out: &Path) -> Result<Vec<PathBuf>> {
    if name.is_empty() {
        return Err(Error::usage("a run without a name").hint(HINT));
    }
    if let Some(back) = steps_back(name) {
        let mut runs = chronological(out)?;
        let count = runs.len();
        let place = count.checked_sub(back + 1).ok_or_else(|| {
            Error::usage(format!("{} holds no {name}", out.display()))
                .hint(format!("it holds {}", crate::units::plural(count, "run")))
        })?;
        return Ok(vec![runs.swap_remove(place)]);
    }
    if let Some(ids) = baselines::read(out)?.remove(name) {
        return ids.iter().map(|id| of_baseline(name, id, out)).collect();
    }
    let candidates = [PathBuf::from(name), out.join(name)];
    for path in candidates {
        if path.join("run.json").is_file() {
            return Ok(vec![path]);
        }
        if path.file_name().is_some_and(|file| file == "run.json") && path.is_file() {
            let folder = path.parent().map(Path::to_owned).unwrap_or_default();
            return Ok(vec![folder]);
        }
        if path.is_dir() {
            let message = format!(
                "{}: not the folder of a run, it has no run.json",
                path.display()
            );
            return Err(Error::usage(message).hint(HINT));
        }
    }
    let message = format!("no run or baseline is called {name:?} in {}", out.display());
    Err(Error::usage(message).hint(HINT))
}

/// `latest` is 0, `latest~2` is 2.
fn steps_back(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("latest")?;
    match rest.strip_prefix('~') {
        Some(number) => number.parse().ok(),
        None => rest.is_empty().then_some(0),
    }
}

fn of_baseline(name: &str, id: &str, out: &Path) -> Result<PathBuf> {
    let folder = out.join(id);
    if folder.join("run.json").is_file() {
        return Ok(folder);
    }
    let message = format!(
        "baseline {name} has the run {id}, which is not in {}",
        out.display()
    );
    Err(Error::usage(message).hint("save the baseline again (--save-baseline), or name its runs"))
}

/// The folder of the latest run.
///
/// # Errors
/// Exit code 2 if there is none.
pub fn latest(out: &Path) -> Result<PathBuf> {
    chronological(out)?.pop().ok_or_else(|| no_runs(out))
}

/// All runs in `out`, at least one, in the order in which they began.
///
/// Run names begin with the second of their start. Within a second, `started_at` of the record decides, then
/// the number of the name. Runs that were renamed are placed by `started_at`.
///
/// # Errors
/// Exit code 2 if there is none, or the folder cannot be read.
pub fn chronological(out: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(out).map_err(|source| no_runs(out).caused_by(source))?;
    let mut runs: Vec<(Option<String>, PathBuf)> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("run.json").is_file())
        .map(|path| (start_time(&path).or_else(|| second(&path)), path))
        .collect();
    if runs.is_empty() {
        return Err(no_runs(out));
    }
    runs.sort();
    for same in runs.chunk_by_mut(|a, b| a.0 == b.0) {
        if same.len() > 1 {
            same.sort_by_cached_key(|(_, path)| {
                let name = natural(path.file_name().unwrap_or_default());
                (started_at(path), name)
            });
        }
    }
    Ok(runs.into_iter().map(|(_, path)| path).collect())
}

/// Removes the folders of all runs but the last `keep` and those of baselines. Returns how many.
///
/// # Errors
/// Exit code 2 if the folder or the baselines cannot be read; 110 if a run cannot be removed.
pub fn prune(out: &Path, keep: usize) -> Result<usize> {
    let named: Vec<String> = baselines::read(out)?.into_values().flatten().collect();
    let mut runs = chronological(out)?;
    runs.truncate(runs.len().saturating_sub(keep));
    let is_named = |run: &PathBuf| {
        let name = run
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| named.contains(&name))
    };
    runs.retain(|run| !is_named(run) && !is_in_use(run));
    for run in &runs {
        std::fs::remove_dir_all(run).map_err(|source| cannot_write(run, source))?;
    }
    Ok(runs.len())
}

fn no_runs(out: &Path) -> Error {
    Error::usage(format!("{} holds no run", out.display()))
        .hint("run something first, or let OUT (--out) name the folder where runs are kept")
}

/// The second in which a run began, as its record says, in the form of names.
fn second(run: &Path) -> Option<String> {
    Some(started_at(run)?.strftime("%Y%m%dT%H%M%SZ").to_string())
}

/// `started_at` of the record; `None`, which sorts first, if it cannot be read.
fn started_at(run: &Path) -> Option<jiff::Timestamp> {
    #[derive(serde::Deserialize)]
    struct Started {
        started_at: String,
    }
    let text = std::fs::read(run.join("run.json")).ok()?;
    let started: Started = serde_json::from_slice(&text).ok()?;
    started.started_at.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn latest_of(runs: &[(&str, &str)]) -> String {
        let out = tempfile::tempdir().expect("a temporary folder");
        for (name, started_at) in runs {
            let folder = out.path().join(name);
            fs::create_dir(&folder).expect("writable");
            let record = format!("{{\"schema\": 1, \"started_at\": \"{started_at}\"}}");
            fs::write(folder.join("run.json"), record).expect("writable");
        }
        let found = latest(out.path()).expect("there are runs");
        found.file_name().expect("a name").display().to_string()
    }

    #[test]
    fn the_latest_run_is_the_one_that_began_last() {
        let at = "2026-01-31T09:30:00.5Z";
        let copies: Vec<String> = ["", "-2", "-9", "-10", "-11"]
            .map(|number| format!("20260131T093000Z-scripted{number}"))
            .into();
        let copies: Vec<(&str, &str)> = copies.iter().map(|name| (name.as_str(), at)).collect();
        assert_eq!(latest_of(&copies), "20260131T093000Z-scripted-11");
        // Two modes in a second.
        let modes = [
            ("20260131T093000Z-standalone", "2026-01-31T09:30:00.1Z"),
            ("20260131T093000Z-reuse", "2026-01-31T09:30:00.12Z"),
        ];
        assert_eq!(latest_of(&modes), "20260131T093000Z-reuse");
        let renamed = [
            ("20260131T093000Z-reuse", "2026-01-31T09:30:00Z"),
            ("baseline", "2026-01-30T09:30:00Z"),
        ];
        assert_eq!(latest_of(&renamed), "20260131T093000Z-reuse");
        let renamed = [renamed[1], ("zero", "2026-01-30T09:29:59Z")];
        assert_eq!(latest_of(&renamed), "baseline");
    }
}
