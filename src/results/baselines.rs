//! Names for runs that others are compared with: `baselines.json` in the folder of results.

use std::collections::BTreeMap;
use std::path::Path;

use super::files::replace;
use super::reading;
use crate::error::{Error, Result};

const FILE: &str = "baselines.json";

/// The run IDs of each baseline; none if nothing was saved.
///
/// # Errors
/// Exit code 2 if the file cannot be read or parsed.
pub fn read(out: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let file = out.join(FILE);
    if !file.is_file() {
        return Ok(BTreeMap::new());
    }
    let text =
        std::fs::read_to_string(&file).map_err(|source| reading::cannot_read(&file, source))?;
    serde_json::from_str(&text).map_err(|source| {
        Error::usage(format!("{}: not a list of baselines", file.display()))
            .hint("correct it, or remove it and save the baselines again (--save-baseline)")
            .caused_by(source)
    })
}

/// Lets `name` stand for `runs` from now on.
///
/// # Errors
/// Exit code 110 if the file cannot be written; 2 if the old one cannot be read.
pub fn save(out: &Path, name: &str, runs: &[String]) -> Result<()> {
    // Held against another process that saves at the same time.
    let _lock = std::fs::File::open(out).and_then(|folder| folder.lock().map(|()| folder));
    let mut all = read(out)?;
    all.insert(name.to_owned(), runs.to_vec());
    let mut text = serde_json::to_vec_pretty(&all).unwrap_or_default();
    text.push(b'\n');
    replace(&out.join(FILE), &text)
}

/// Checks the name of a baseline.
///
/// # Errors
/// What it must look like.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let taken = text.starts_with("latest") || text.starts_with("history");
    if text.is_empty() || taken || !text.chars().all(plain) || text.starts_with('.') {
        return Err("letters, digits, and . _ -; not latest or history".to_owned());
    }
    Ok(text.to_owned())
}
