//! How much a test of many cases does: the unit tests include this file.

/// The number of cases of a test whose time grows with them: `few`, or `all` if `FLOWBENCH_TEST_THOROUGH` is
/// set (`.ci/nightly`).
pub(crate) fn cases(few: usize, all: usize) -> usize {
    match std::env::var_os("FLOWBENCH_TEST_THOROUGH") {
        Some(_) => all,
        None => few,
    }
}
