//! Memory that the engine needs in one piece: compared with what is available before it is allocated.

use std::path::Path;

use flowbench_kernels::memory::available_memory;
pub(crate) use flowbench_kernels::memory::{
    OutOfMemory, check, ensure_capacity, ensure_len, probe,
};

use crate::error::{Error, Result};

/// Half of the available memory in bytes; 0 if unknown.
pub(crate) fn half_of_available() -> usize {
    let half = available_memory().map_or(0, |available| available.bytes / 2);
    usize::try_from(half).unwrap_or(usize::MAX)
}

/// Checks that a model's weights fit in memory, before they are read.
///
/// # Errors
/// Exit code 3, with the needed and the available size.
pub(crate) fn check_weights(path: &Path, bytes: usize) -> Result<()> {
    check(bytes).map_err(|source| {
        Error::preflight(format!(
            "the weights of `{}` do not fit in memory",
            path.display()
        ))
        .caused_by(source)
        .hint("use a smaller model or quantization, or stop other programs that use memory")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_do_not_fit_are_an_error_with_a_hint() {
        let error = check_weights(Path::new("m.gguf"), 1 << 60).err();
        if cfg!(target_os = "linux") {
            let report = error.expect("no machine has that").report();
            assert!(report.contains("the weights of `m.gguf` do not fit in memory"));
            assert!(report.contains("1024.0 PiB are needed, but "), "{report}");
            assert!(report.contains("hint: use a smaller model"), "{report}");
        }
    }
}
