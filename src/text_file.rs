//! Text files from the user: templates, suites, scripts, rows, fixtures.
//!
//! Only regular files are accepted: a named pipe would block, a folder or a device contains no
//! text, and most of these files are read more than once. A leading byte order mark is dropped.

use std::fs;
use std::io;
use std::path::Path;

/// U+FEFF, which some editors and spreadsheets write at the start of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads the bytes of a regular file.
///
/// # Errors
/// I/O errors; `InvalidInput` with the actual file type if it is not a regular file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    check(path)?;
    fs::read(path)
}

/// Reads a regular file as UTF-8, without a byte order mark.
///
/// # Errors
/// As for [`read`]; `InvalidData` if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    check(path)?;
    fs::read_to_string(path).map(without_mark)
}

/// Removes a leading byte order mark.
pub fn without_mark(mut text: String) -> String {
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    text
}

/// Removes a byte order mark from a line of JSON Lines. Concatenated files may have one at the
/// start of any line.
pub fn line_without_mark(line: &str) -> &str {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
}

/// File type at a path, unless it is a regular file.
pub fn other_kind(path: &Path) -> Option<&'static str> {
    match fs::metadata(path) {
        Ok(target) if target.is_file() => None,
        Ok(target) => Some(kind_name(target.file_type())),
        Err(_) => fs::symlink_metadata(path)
            .is_ok_and(|entry| entry.is_symlink())
            .then_some("a broken symbolic link"),
    }
}

fn check(path: &Path) -> io::Result<()> {
    match other_kind(path) {
        None => Ok(()),
        Some(kind) => {
            let what = format!("it is {kind}, not a regular file");
            Err(io::Error::new(io::ErrorKind::InvalidInput, what))
        }
    }
}

fn kind_name(kind: fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "\u{feff}{}\n").expect("writable");
        assert_eq!(read_text(&path).expect("readable"), "{}\n");
        assert_eq!(without_mark("a\u{feff}".to_owned()), "a\u{feff}");
        assert_eq!(line_without_mark("\u{feff}{}"), "{}");
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo is there").success());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("none", &link).expect("writable");
        for (path, what) in [
            (folder.path(), "a folder"),
            (&link, "a broken symbolic link"),
            (&pipe, "a named pipe"),
            (Path::new("/dev/null"), "a device"),
        ] {
            let expected = format!("it is {what}, not a regular file");
            assert_eq!(read_text(path).expect_err(what).to_string(), expected);
            assert_eq!(read(path).expect_err(what).to_string(), expected);
            assert_eq!(other_kind(path), Some(what));
        }
        assert_eq!(other_kind(&folder.path().join("none")), None);
    }
}
