//! Names of run folders.

use std::ffi::OsStr;
use std::path::Path;

/// The name of a run that starts now: UTC time and `what`, so that names sort by time.
pub fn run_name(what: &str) -> String {
    let now = jiff::Timestamp::now();
    format!("{}-{what}", now.strftime("%Y%m%dT%H%M%SZ"))
}

/// The start time at the beginning of a run's name, such as `20260131T093000Z`.
pub(super) fn start_time(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let time = name.split('-').next()?;
    let shape: String = (time.chars())
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    (shape == "00000000T000000Z").then(|| time.to_owned())
}

/// A sort key that compares runs of digits as numbers, so that `-10` comes after `-9`.
pub(super) fn natural(name: &OsStr) -> Vec<(String, u128)> {
    let name = name.to_string_lossy();
    let mut parts = Vec::new();
    let mut rest = &*name;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, from_digits) = rest.split_at(digits);
        let end = from_digits.find(|c: char| !c.is_ascii_digit());
        let (number, after) = from_digits.split_at(end.unwrap_or(from_digits.len()));
        // No run has a number with more digits than a u128.
        parts.push((text.to_owned(), number.parse().unwrap_or(0)));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_sort_by_value() {
        let mut names = ["x-10", "x-9", "x", "x-2", "flow_100000", "flow_99999"];
        names.sort_by_key(|name| natural(OsStr::new(name)));
        assert_eq!(
            names,
            ["flow_99999", "flow_100000", "x", "x-2", "x-9", "x-10"]
        );
    }
}
