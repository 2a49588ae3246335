//! Every kept input is run again: the seeds, and what a fuzzer found.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{TARGETS, files, run};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The kept inputs of a target, by name.
fn kept(target: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder().join("kept").join(target)).expect("a folder for the target");
    let mut kept: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    kept.sort();
    kept
}

/// Whoever looks for the cause of a panic finds the input's name on stderr.
fn replay(target: &str) {
    let inputs = kept(target);
    assert!(!inputs.is_empty(), "{target} has no seed");
    for input in inputs {
        let data = fs::read(&input).expect("readable");
        let ends = std::panic::catch_unwind(|| run(target, &data));
        assert!(ends.is_ok(), "{}", input.display());
    }
}

#[test]
fn every_target_has_seeds_and_a_program() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("the fuzzers' manifest");
    let names: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    for name in &names {
        let program = folder().join("fuzz_targets").join(format!("{name}.rs"));
        let text = fs::read_to_string(program).expect("a program for the target");
        assert!(text.contains(&format!("\"{name}\"")), "{text}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    let folders = fs::read_dir(folder().join("kept")).expect("seeds");
    let folders = folders.map(|entry| entry.expect("readable"));
    for entry in folders.filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().into_string().expect("UTF-8");
        assert!(names.contains(name.as_str()), "{name} is no target");
    }
}

#[test]
fn files_of_an_input_are_apart() {
    assert_eq!(files(b"a\n=====\nb\n=====\nc"), [&b"a"[..], b"b\n=====\nc"]);
    assert_eq!(files(b"a"), [&b"a"[..], b"", b""]);
    assert_eq!(files(b"\n=====\n"), [b"", b""]);
}

macro_rules! replayed {
    ($($target:ident),* $(,)?) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*
    };
}

replayed![
    gguf,
    safetensors,
    vocabulary,
    tokenizer,
    text,
    jinja,
    sse,
    template,
    suite,
    expression,
    flow,
    cache,
    records,
    history,
    script,
    answer,
];
