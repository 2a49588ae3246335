//! Where the real model is for tests: the unit tests and the end-to-end tests include this file.

use std::path::PathBuf;

/// The default model's file name, as `DEFAULT_MODEL` has it (a unit test compares them).
pub(crate) const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The default model: the file that `FLOWBENCH_TEST_MODEL` names, or the one in the user's cache.
///
/// Without it a test prints a note and passes.
///
/// # Panics
/// In CI (`CI` is set), where the model must be there.
#[allow(
    clippy::print_stderr,
    reason = "a skipped test says so; clippy allows it in unit tests anyway"
)]
pub(crate) fn test_model() -> Option<PathBuf> {
    let in_cache = || {
        let caches = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let caches =
            caches.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(caches?.join("flowbench").join(FILE))
    };
    let path = std::env::var_os("FLOWBENCH_TEST_MODEL").map(PathBuf::from);
    let found = path.or_else(in_cache).filter(|path| path.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "the default model is not here; `flowbench model fetch` gets it"
        );
        eprintln!("skipped: no model (FLOWBENCH_TEST_MODEL, or `flowbench model fetch`)");
    }
    found
}
