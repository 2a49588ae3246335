//! Fallible allocation for memory whose size depends on a model file or a setting.
//!
//! Linux overcommits: it grants more memory than it has and kills a process that uses it. So sizes
//! are compared with the available memory first. The allocation is fallible as well, for limits
//! (`ulimit -v`) and for systems that do not overcommit.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::TryReserveError;
use std::fmt;
use std::path::Path;

use crate::environment::{AvailableMemory, available_memory};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Kept free for the rest of the process and the system.
const RESERVE: u64 = 64 << 20;

/// Smaller allocations skip the check.
const SMALL: usize = 16 << 20;

/// A buffer could not be allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfMemory {
    pub(crate) bytes: usize,
    /// The available memory, if the check found it too small.
    available: Option<AvailableMemory>,
}

impl OutOfMemory {
    /// The allocator refused a buffer of this size.
    pub(crate) fn of(bytes: usize) -> Self {
        Self {
            bytes,
            available: None,
        }
    }

    /// Aborts as the standard library does on allocation failure, for small buffers whose failure
    /// cannot be reported.
    pub(crate) fn abort(self) -> ! {
        let layout = Layout::from_size_align(self.bytes, 64);
        handle_alloc_error(layout.unwrap_or(Layout::new::<u8>()))
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Bytes(self.bytes as u64);
        match self.available {
            None => write!(f, "the system refused to allocate {bytes}"),
            Some(available) => write!(
                f,
                "{bytes} are needed, but {} {} available",
                available.source,
                Bytes(available.bytes)
            ),
        }
    }
}

impl std::error::Error for OutOfMemory {}

/// Checks that `bytes` can be allocated now and leave [`RESERVE`] free. Sizes below [`SMALL`]
/// always pass.
///
/// # Errors
/// If too little memory is available; the error has the amount.
pub(crate) fn check(bytes: usize) -> Result<(), OutOfMemory> {
    if bytes < SMALL {
        return Ok(());
    }
    check_growth(bytes)
}

/// Like [`check`], but without a minimum size: for memory that grows in small pieces.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_growth(bytes: usize) -> Result<(), OutOfMemory> {
    match available_memory() {
        Some(available) if (bytes as u64).saturating_add(RESERVE) > available.bytes => {
            Err(OutOfMemory {
                bytes,
                available: Some(available),
            })
        }
        _ => Ok(()),
    }
}

/// Like [`check`], for a buffer that a library allocates at once and aborts if that fails.
///
/// # Errors
/// As [`check`], or if a trial allocation fails.
pub(crate) fn probe(bytes: usize) -> Result<(), OutOfMemory> {
    check(bytes)?;
    let refused = |_: TryReserveError| OutOfMemory::of(bytes);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(refused)
}

/// Grows `numbers` to at least `len`, filled with `value`.
///
/// # Errors
/// If there is not enough memory; `numbers` is then unchanged.
pub(crate) fn reach<T: Clone>(
    numbers: &mut Vec<T>,
    len: usize,
    value: T,
) -> Result<(), OutOfMemory> {
    if numbers.len() < len {
        reserve(numbers, len)?;
        numbers.resize(len, value);
    }
    Ok(())
}

/// Reserves capacity so that `numbers` can grow to `len` without allocating.
///
/// # Errors
/// As [`reach`].
pub(crate) fn reserve<T>(numbers: &mut Vec<T>, len: usize) -> Result<(), OutOfMemory> {
    if numbers.capacity() < len {
        let bytes = len.saturating_mul(size_of::<T>());
        check(bytes)?;
        let refused = |_: TryReserveError| OutOfMemory::of(bytes);
        numbers.try_reserve(len - numbers.len()).map_err(refused)?;
    }
    Ok(())
}

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
    fn an_allocation_larger_than_memory_is_refused_with_both_sizes() {
        let error = check(1 << 60).expect_err("no machine has that");
        let text = error.to_string();
        if cfg!(target_os = "linux") {
            assert!(text.starts_with("1024.0 PiB are needed, but "), "{text}");
        }
        assert!(probe(1 << 60).is_err());
        assert!(probe(usize::MAX).is_err());
        assert!(check(1 << 10).is_ok() && probe(1 << 10).is_ok());
    }

    #[test]
    fn a_buffer_that_cannot_grow_is_unchanged() {
        let mut numbers = vec![1.0f32];
        assert!(reach(&mut numbers, 1 << 58, 0.0).is_err());
        assert!(reach(&mut numbers, usize::MAX, 0.0).is_err());
        assert_eq!(numbers, [1.0]);
        reach(&mut numbers, 3, 2.0).expect("there is memory for three numbers");
        assert_eq!(numbers, [1.0, 2.0, 2.0]);
        reach(&mut numbers, 2, 0.0).expect("it is long enough");
        assert_eq!(numbers.len(), 3);
    }

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
