//! Models split into several GGUF files by llama.cpp's `llama-gguf-split`:
//! `NAME-00001-of-00003.gguf`. The first part has the metadata. Every part has its number and the
//! number of parts in `split.no` and `split.count`, and a table of its own tensors.

use std::path::{Path, PathBuf};

use super::{Metadata, whole_number};
use crate::error::{Error, Result};

const PARTS_TOGETHER: &str = "put all parts into one folder under their own names, or merge them with \
                              `llama-gguf-split --merge`";

/// The names of all parts in order, if `name` is the name of a part.
pub(crate) fn part_names(name: &str) -> Option<Vec<String>> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| -> Option<usize> {
        let five = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        five.then(|| digits.parse().ok())?
    };
    let (number, count) = (parse(number)?, parse(count)?);
    let is_part = count > 1 && (1..=count).contains(&number);
    is_part.then(|| {
        (1..=count)
            .map(|part| format!("{stem}-{part:05}-of-{count:05}.gguf"))
            .collect()
    })
}

/// Like [`part_names`], next to the file at `path`.
pub(crate) fn part_paths(path: &Path) -> Option<Vec<PathBuf>> {
    let names = part_names(path.file_name()?.to_str()?)?;
    Some(names.iter().map(|name| path.with_file_name(name)).collect())
}

/// The part number and the number of parts of the file at `path`, both from 1, according to its
/// metadata. `None` for a model in one file.
///
/// # Errors
/// Exit code 3 if the two numbers contradict each other.
pub(super) fn position(path: &Path, metadata: &Metadata) -> Result<Option<(usize, usize)>> {
    let number = |key: &str| metadata.get(key).and_then(whole_number);
    let (Some(count), number) = (number("split.count"), number("split.no")) else {
        return Ok(None);
    };
    if count <= 1 {
        return Ok(None);
    }
    match number.and_then(|number| number.checked_add(1)) {
        Some(number) if number <= count && count < 100_000 => {
            Ok(Some((number as usize, count as usize)))
        }
        _ => Err(Error::preflight(format!(
            "`{}`: metadata keys `split.no` and `split.count` contradict each other",
            path.display()
        ))
        .hint(super::OTHER_FILE)),
    }
}

/// Paths of all parts of the model that `path` is a part of.
///
/// # Errors
/// Exit code 3 if parts are missing (the error names them), or the file is not named like a part.
pub(super) fn locate(path: &Path, (number, count): (usize, usize)) -> Result<Vec<PathBuf>> {
    let is_part = format!(
        "`{}` is part {number} of {count} of a split model",
        path.display()
    );
    let paths = part_paths(path).filter(|paths| paths.len() == count);
    let Some(paths) = paths.filter(|paths| paths[number - 1].file_name() == path.file_name())
    else {
        return Err(Error::preflight(format!(
            "{is_part}, but is not named NAME-{number:05}-of-{count:05}.gguf, so the other \
             parts cannot be found"
        ))
        .hint(PARTS_TOGETHER));
    };
    let missing: Vec<String> = paths
        .iter()
        .filter(|path| !path.is_file())
        .filter_map(|path| Some(format!("`{}`", path.file_name()?.display())))
        .collect();
    match &missing[..] {
        [] => Ok(paths),
        [first, ..] => {
            let more = match missing.len() {
                1 => "is missing".to_owned(),
                2 => format!("and {} are missing", missing[1]),
                parts => format!("and {} more parts are missing", parts - 1),
            };
            Err(Error::preflight(format!("{is_part}; {first} {more}")).hint(PARTS_TOGETHER))
        }
    }
}

/// The error for a part whose metadata does not match its name.
pub(super) fn mixed(path: &Path, (number, count): (usize, usize)) -> Error {
    Error::preflight(format!(
        "`{}` is not part {number} of {count} of the model",
        path.display()
    ))
    .hint("parts of different models seem to be mixed: use the parts of one model only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_recognized_by_their_names() {
        let names = part_names("a/m-00002-of-00003.gguf").unwrap();
        assert_eq!(
            names,
            [
                "a/m-00001-of-00003.gguf",
                "a/m-00002-of-00003.gguf",
                "a/m-00003-of-00003.gguf"
            ]
        );
        for name in [
            "m.gguf",
            "m-00001-of-00001.gguf",
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-1-of-2.gguf",
            "m-00001-of-00002.bin",
            "m-+0001-of-00002.gguf",
            "00001-of-00002.gguf",
        ] {
            assert_eq!(part_names(name), None, "{name}");
        }
    }
}
