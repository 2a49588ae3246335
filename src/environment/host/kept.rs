//! A small file that is read again and again: opened once, then read with pread(2), which for `/proc` and
//! `/sys` gives the present content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longer content is cut off. What is parsed of these files comes first in them.
const LONGEST: usize = 1 << 14;

#[derive(Debug)]
pub(super) struct KeptFile {
    file: File,
    buffer: Vec<u8>,
}

impl KeptFile {
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let buffer = vec![0; 256];
        Ok(Self { file, buffer })
    }

    /// The present content.
    ///
    /// # Errors
    /// If it cannot be read, or is not text.
    pub(super) fn read(&mut self) -> io::Result<&str> {
        loop {
            let length = self.file.read_at(&mut self.buffer, 0)?;
            // The kernel makes the content at each read from the start, so a read in parts could mix two.
            if length < self.buffer.len() || self.buffer.len() >= LONGEST {
                let text = &self.buffer[..length];
                return match std::str::from_utf8(text) {
                    Ok(text) => Ok(text),
                    // Cut off within a character.
                    Err(error) if error.error_len().is_none() => {
                        let valid = &text[..error.valid_up_to()];
                        std::str::from_utf8(valid).map_err(io::Error::other)
                    }
                    Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                };
            }
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
    }

    /// The content as a number; `None` if it cannot be read or is none.
    pub(super) fn number(&mut self) -> Option<u64> {
        self.read().ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_content_is_read_however_long_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "12\n").expect("writable");
        let mut kept = KeptFile::open(&path).expect("there");
        assert_eq!(kept.number(), Some(12));
        std::fs::write(&path, "7").expect("writable");
        assert_eq!(kept.number(), Some(7));
        let long = "x".repeat(5000);
        std::fs::write(&path, &long).expect("writable");
        assert_eq!(kept.read().expect("readable"), long);
        std::fs::write(&path, "é".repeat(LONGEST)).expect("writable");
        assert!(kept.read().expect("readable").len() > LONGEST - 2);
        std::fs::write(&path, [0xff, 0xfe]).expect("writable");
        assert!(kept.read().is_err());
        assert_eq!(kept.number(), None);
        assert!(KeptFile::open(&folder.path().join("none")).is_err());
    }
}
