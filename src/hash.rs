//! SHA-256 for the expansion cache, the pinned model, and output hashes.

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// A SHA-256 hasher over a sequence of parts. Each part is preceded by its length, so that ("ab",
/// "c") and ("a", "bc") hash differently.
#[derive(Clone, Default)]
pub struct PartsHasher(Sha256);

impl PartsHasher {
    pub fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The digest as 64 lowercase hex digits.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// SHA-256 of `bytes` as 64 lowercase hex digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, read in chunks; `progress` is called with the number of bytes read so far.
pub fn sha256_file(path: &Path, mut progress: impl FnMut(u64)) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
        total += read as u64;
        progress(total);
    }
}

/// First 16 hex digits of the SHA-256 of token IDs (little-endian u32). Compares the outputs of two
/// runs without printing them.
pub fn token_hash(tokens: &[u32]) -> String {
    let mut hasher = Sha256::new();
    for token in tokens {
        hasher.update(token.to_le_bytes());
    }
    hex(&hasher.finalize()[..8])
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(token_hash(&[]), "e3b0c44298fc1c14");
        assert_eq!(token_hash(&[1, 2]).len(), 16);
        assert_ne!(token_hash(&[1, 2]), token_hash(&[2, 1]));
    }

    #[test]
    fn part_boundaries_change_the_digest() {
        let digest = |parts: &[&str]| {
            let mut hasher = PartsHasher::default();
            parts.iter().for_each(|part| hasher.part(part.as_bytes()));
            hasher.finish()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["ab"]), digest(&["ab", ""]));
    }
}
