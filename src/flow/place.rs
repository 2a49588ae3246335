//! Positions in files (`path:line:column`), and hints for errors there.

use std::fmt::Display;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Error, Exit, Result};
use crate::text_file;

use super::shipped;

/// The content of a text file, kept to locate errors in it.
#[derive(Debug)]
pub(super) struct SourceFile {
    path: PathBuf,
    text: String,
}

impl SourceFile {
    /// Reads a file without its byte order mark. It is a usage error if that fails or the file is not UTF-8.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            text: utf8(path, read(path)?)?,
        })
    }

    /// A file that is embedded in the program: `name` in `templates` or `fixtures`.
    pub(super) fn shipped(folder: &str, name: &str) -> Option<Self> {
        let path = format!("{folder}/{name}");
        let text = shipped::text(&path)?.to_owned();
        Some(Self {
            path: shipped::shown_path(&path),
            text: text_file::without_mark(text),
        })
    }

    /// The file's path; `None` if it is embedded in the program.
    pub(super) fn on_disk(&self) -> Option<&Path> {
        (!shipped::is_shown_path(&self.path)).then_some(&self.path)
    }

    /// Converts line endings to `\n`, so that prompts do not depend on how the repository was checked out.
    pub(super) fn with_line_feeds(mut self) -> Self {
        if self.text.contains("\r\n") {
            self.text = self.text.replace("\r\n", "\n");
        }
        self
    }

    #[cfg(test)]
    pub(super) fn of(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// A usage error at byte `offset`.
    pub(super) fn error(&self, offset: usize, what: impl Display) -> Error {
        let (line, column) = line_and_column(&self.text, offset);
        Error::usage(format!("{}:{line}:{column}: {what}", shown(&self.path)))
    }

    /// Maps byte `offset` of the value of the TOML string at `span` to a byte offset in the file. They
    /// differ because of escapes, line-ending backslashes and a trimmed first line break.
    pub(super) fn in_string(&self, span: &Range<usize>, offset: usize) -> usize {
        let raw = &self.text.as_bytes()[span.clone()];
        let basic = raw.first() == Some(&b'"');
        let multi_line = raw.starts_with(b"\"\"\"") || raw.starts_with(b"'''");
        let mut at = if multi_line { 3 } else { 1 };
        if multi_line {
            at += usize::from(raw.get(at) == Some(&b'\r'));
            at += usize::from(raw.get(at) == Some(&b'\n'));
        }
        let mut value = 0;
        while value < offset && at < raw.len() {
            let (of_raw, of_value) = match (basic && raw[at] == b'\\', raw.get(at + 1)) {
                (true, Some(b' ' | b'\t' | b'\r' | b'\n')) => {
                    let blanks = raw[at + 1..].iter();
                    (
                        1 + blanks.take_while(|b| b.is_ascii_whitespace()).count(),
                        0,
                    )
                }
                (true, Some(b'x')) => escaped_char(raw, at, 2),
                (true, Some(b'u')) => escaped_char(raw, at, 4),
                (true, Some(b'U')) => escaped_char(raw, at, 8),
                (true, _) => (2, 1),
                (false, _) => (1, 1),
            };
            at += of_raw;
            value += of_value;
        }
        span.start + at.min(raw.len())
    }
}

/// The lengths, in the file and in the value, of the escape at `at` with `digits` hex digits.
fn escaped_char(raw: &[u8], at: usize, digits: usize) -> (usize, usize) {
    let length = raw
        .get(at + 2..at + 2 + digits)
        .and_then(|hex| std::str::from_utf8(hex).ok())
        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
        .and_then(char::from_u32)
        .map_or(1, char::len_utf8);
    (2 + digits, length)
}

/// Reads a file given by the user. Failure is a usage error that names the file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    text_file::read(path).map_err(|error| unreadable(path, error))
}

/// A usage error if the path exists and is not a regular file.
pub(super) fn no_file(path: &Path) -> Option<Error> {
    let kind = text_file::other_kind(path)?;
    let what = format!("{} is {kind}, not a regular file", shown(path));
    Some(Error::usage(what))
}

/// A usage error for an unreadable file.
pub(super) fn unreadable(path: &Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "give this user the right to read it",
        io::ErrorKind::NotFound => "it was removed meanwhile: put it back, or name another",
        _ => "see whether its disk or file server works, and try again",
    };
    Error::usage(format!("{}: cannot be read", shown(path)))
        .caused_by(error)
        .hint(hint)
}

/// Decodes a text file, without its byte order mark. Any encoding other than UTF-8 is a usage error.
pub(super) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let text = String::from_utf8(bytes).map(text_file::without_mark);
    text.map_err(|error| {
        if matches!(error.as_bytes(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
            return Error::usage(format!("{}: UTF-16, not UTF-8", shown(path)))
                .hint("prompts are made of UTF-8 text: convert the file, or leave it out");
        }
        let offset = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[offset];
        Error::usage(format!(
            "{}: not UTF-8 at byte {offset} (0x{byte:02x})",
            shown(path)
        ))
        .hint("prompts are made of text: convert the file, or leave it out")
    })
}

/// Line and column of byte `offset`, both from 1; columns count characters.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
    (line, 1 + before[line_start..].chars().count())
}

/// A path for messages, without the `./` that a layout of `.` prepends.
pub(super) fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(".").unwrap_or(path).display()
}

/// Joins `folder` and a relative path from a template; `None` if it leads out of the folder.
pub(super) fn below(folder: &Path, relative: &str) -> Option<PathBuf> {
    use std::path::Component;
    let path = Path::new(relative);
    let inside = !relative.is_empty()
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    inside.then(|| folder.join(path))
}

/// Whether `path`, which is lexically below `folder`, is a link to somewhere else.
pub(super) fn leads_out(folder: &Path, path: &Path) -> bool {
    match (folder.canonicalize(), path.canonicalize()) {
        (Ok(folder), Ok(path)) => !path.starts_with(folder),
        // It does not exist or cannot be read.
        _ => false,
    }
}

/// Sorted names of the entries of a folder that `keep` maps to a name. Empty if the folder cannot be listed,
/// since it only serves hints.
pub(super) fn names_in(folder: &Path, keep: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| keep(&entry.ok()?.path()))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// A hint that suggests the closest known name and lists all of them.
pub(super) fn choice(wrong: &str, what: &str, known: &[impl AsRef<str>]) -> String {
    let list: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    let all = if list.is_empty() {
        format!("there are no {what}")
    } else {
        format!("{what}: {}", list.join(", "))
    };
    match closest(wrong, &list) {
        Some(name) => format!("did you mean `{name}`? {all}"),
        None => all,
    }
}

/// The known name closest to the wrong one, if it is close enough.
pub(super) fn closest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = wrong.chars().count() / 3;
    known
        .iter()
        .map(|name| (distance(wrong, name), *name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// The Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Creates an output folder; failure is an output error.
pub(super) fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .or_exit(Exit::Output, || {
            format!("failed to create the folder {}", shown(path))
        })
        .map_err(|error| error.hint("make its parent writable, remove what is in the way, or let --root name another folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        assert_eq!(line_and_column("", 0), (1, 1));
        assert_eq!(line_and_column("äb\ncd", 2), (1, 2));
        assert_eq!(line_and_column("äb\ncd", 1), (1, 1), "inside a character");
        assert_eq!(line_and_column("äb\ncd", 4), (2, 1));
        assert_eq!(line_and_column("ab", 99), (1, 3));
    }

    #[test]
    fn the_closest_name_is_suggested_only_if_it_is_close() {
        assert_eq!(closest("promt", &["id", "needs", "prompt"]), Some("prompt"));
        assert_eq!(closest("foo", &["id", "needs", "prompt"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "äb"), 2);
    }

    #[test]
    fn paths_stay_below_their_folder() {
        let folder = Path::new("fixtures");
        assert_eq!(below(folder, "a/b"), Some("fixtures/a/b".into()));
        for outside in ["", "..", "a/../../b", "/etc/passwd"] {
            assert_eq!(below(folder, outside), None, "{outside}");
        }
    }

    /// Every character of the value is located in the file, for every kind of string.
    #[test]
    fn offsets_in_toml_strings_are_mapped_to_the_file() {
        let strings = [
            r#""a\tb\"c\u00e4d\U0001F600e\x41f""#,
            "'a\\tb'",
            "\"\"\"\nfirst\nsecond \\\n    third \\u0041z\"\"\"",
            "\"\"\"\r\nfirst\r\nsecond\"\"\"",
            "'''\nfirst \\\nsecond'''",
        ];
        for string in strings {
            let text = format!("key = {string}\n");
            #[derive(serde::Deserialize)]
            struct Keyed {
                key: toml::Spanned<String>,
            }
            let Keyed { key } = toml::from_str(&text).expect("the string is valid");
            let span = key.span();
            let file = SourceFile::of("x.toml", &text);
            for (offset, character) in key.get_ref().char_indices() {
                if character.is_ascii_lowercase() {
                    let found = file.in_string(&span, offset);
                    // The position before a continued line may be its backslash.
                    let rest = text[found..].trim_start_matches(['\\', '\n', ' ']);
                    assert!(rest.starts_with(character), "{string} at {offset}: {rest}");
                }
            }
        }
    }
}
