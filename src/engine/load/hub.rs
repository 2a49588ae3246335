//! stub

#[cfg(test)]
pub(crate) fn test_model() -> Option<std::path::PathBuf> {
    std::env::var_os("FLOWBENCH_TEST_MODEL").map(Into::into)
}
