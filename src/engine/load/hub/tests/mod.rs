//! Tests of the whole search, with a shell script as `python3` and a thread as the hub.

mod package;
mod repository;
mod server;

use std::fs;
use std::io::Write;

use tempfile::TempDir;

use super::*;
use crate::hash;

/// Incompressible content, so that a truncated package is noticed.
fn content() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..300_000).map(|_| next()).collect()
}

/// A folder with everything that a search needs.
struct Place {
    folder: TempDir,
    config: ModelConfig,
    pinned: PinnedModel,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = ModelConfig {
            model: None,
            cache_dir: folder.path().join("cache"),
            hf_cache_dir: folder.path().join("hf"),
            // A port without a listener.
            hf_endpoint: Some("http://127.0.0.1:1".to_owned()),
            hf_token: None,
            offline: false,
        };
        let pinned = PinnedModel {
            name: "Test",
            file: "test.gguf",
            bytes: content().len() as u64,
            sha256: Box::leak(hash::sha256(&content()).into_boxed_str()),
            repository: "owner/test",
            revision: "0123456789abcdef0123456789abcdef01234567",
            package: "test-package",
            version: "1.0",
            member: "test_package/test.gguf",
            wheel_bytes: 300_200,
        };
        let place = Self {
            folder,
            config,
            pinned,
        };
        place.wheel(&content());
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/testdata/python3");
        std::os::unix::fs::symlink(python, place.path("python3")).unwrap();
        place.python("cp $wheel $dest/test.whl");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the package that the script finds at `$wheel`.
    fn wheel(&self, content: &[u8]) {
        let mut wheel = zip::ZipWriter::new(fs::File::create(self.path("test.whl")).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        wheel
            .start_file("test_package/__init__.py", options)
            .unwrap();
        wheel.start_file(self.pinned.member, options).unwrap();
        wheel.write_all(content).unwrap();
        wheel.finish().unwrap();
    }

    /// Sets what `python3 -m pip` does; `$dest` is the folder for the package.
    fn python(&self, script: &str) {
        let script = format!(
            "echo \"$*\" >> {log}\nwheel={wheel}\n\
             while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n{script}\n",
            log = self.path("calls").display(),
            wheel = self.path("test.whl").display(),
        );
        fs::write(self.path("pip.sh"), script).unwrap();
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |calls| calls.lines().count())
    }

    fn finder(&self) -> Finder<'_> {
        Finder {
            pinned: self.pinned,
            python: self.path("python3"),
            patience: Patience {
                with_another: Duration::from_millis(500),
                alone: Duration::from_millis(500),
                stalled: Duration::from_millis(500),
            },
            ..Finder::new(&self.config)
        }
    }

    fn locate(&self) -> Result<ModelFile> {
        self.locate_while(&|| false).0
    }

    /// Also returns the status lines.
    fn locate_while(&self, cancelled: &dyn Fn() -> bool) -> (Result<ModelFile>, Vec<String>) {
        let mut said = Vec::new();
        let mut watch = Watch {
            say: &mut |line| said.push(line.to_owned()),
            cancelled,
        };
        (self.finder().locate(&mut watch), said)
    }

    fn cached(&self) -> PathBuf {
        self.config.cache_dir.join(self.pinned.file)
    }

    /// Asserts that the search fails with these words and leaves no usable file.
    fn assert_refused(&self, words: &[&str]) {
        let error = self.locate().unwrap_err();
        assert_eq!(error.exit(), Exit::Preflight, "{}", error.report());
        for words in words {
            assert!(
                error.report().contains(words),
                "{words}: {}",
                error.report()
            );
        }
        assert!(
            error.report().contains("MODEL=/path/to/file.gguf"),
            "{}",
            error.report()
        );
        assert!(!self.cached().exists());
        assert_eq!(self.finder().find_local().unwrap(), None);
    }
}

#[test]
fn a_given_path_is_used_as_it_is() {
    let mut place = Place::new();
    let path = place.path("mine.gguf");
    fs::write(&path, "GGUF").unwrap();
    place.config.model = Some(path.to_str().unwrap().to_owned());
    let found = place.locate().unwrap();
    assert_eq!(found.path, path);
    assert_eq!(found.source, ModelSource::Path);
    assert_eq!(found.format, ModelFormat::Gguf);
    assert_eq!(found.sha256, None);
    // Its digest is known after it was hashed once.
    let sha256 = digest(&place.config, &found).unwrap();
    assert_eq!(sha256, Some(hash::sha256(b"GGUF")));
    assert_eq!(place.locate().unwrap().sha256, sha256);

    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    place.config.model = Some(folder.to_str().unwrap().to_owned());
    assert!(
        place
            .locate()
            .unwrap_err()
            .report()
            .contains("is not a model")
    );
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(folder.join(file), "{}").unwrap();
    }
    let found = place.locate().unwrap();
    assert_eq!(found.format, ModelFormat::Folder);
    assert_eq!(digest(&place.config, &found).unwrap(), None);
}

#[test]
fn tests_look_for_the_default_model_by_its_file_name() {
    assert_eq!(super::DEFAULT_MODEL.file, crate::test_model::FILE);
}
