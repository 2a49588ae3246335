//! Fallible allocation for buffers whose size a model file or a setting decides. The size is compared
//! with the available memory before the buffer is used.
//!
//! Linux overcommits: it grants more memory than it has, and kills a process that uses it. So sizes are
//! compared with the available memory first. The allocation itself is fallible as well, for limits
//! (`ulimit -v`) and for systems that do not overcommit.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::TryReserveError;
use std::fmt;

mod available;

pub use available::{AvailableMemory, available_memory};

/// Headroom for the rest of the process and the system, in bytes.
const RESERVE: u64 = 64 << 20;

/// Allocations below this size are not checked, in bytes.
const SMALL: usize = 16 << 20;

/// A buffer that cannot be allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory {
    /// In bytes.
    pub bytes: usize,
    /// The available memory, if it is known to be too little.
    available: Option<AvailableMemory>,
}

impl OutOfMemory {
    pub fn of(bytes: usize) -> Self {
        Self {
            bytes,
            available: None,
        }
    }

    /// Aborts the process, as the standard library does: for small buffers, whose callers cannot
    /// recover.
    pub fn abort(self) -> ! {
        let layout = Layout::from_size_align(self.bytes, 64);
        handle_alloc_error(layout.unwrap_or(Layout::new::<u8>()))
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Size(self.bytes as u64);
        match self.available {
            None => write!(f, "the system refused to allocate {bytes}"),
            Some(available) => write!(
                f,
                "{bytes} are needed, but {} {} available",
                available.source,
                Size(available.bytes)
            ),
        }
    }
}

/// Bytes in binary units, as the rest of flowbench prints them: `18.4 MiB`.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = None;
        for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = Some(larger);
        }
        match unit {
            None => write!(f, "{} B", self.0),
            Some(unit) => write!(f, "{value:.1} {unit}"),
        }
    }
}

impl std::error::Error for OutOfMemory {}

/// Checks that `bytes` bytes are available, with `RESERVE` left over.
///
/// # Errors
/// Too little memory is available.
pub fn check(bytes: usize) -> Result<(), OutOfMemory> {
    if bytes < SMALL {
        return Ok(());
    }
    check_growth(bytes)
}

/// The same without the exception for small sizes: for buffers that grow in small steps.
///
/// # Errors
/// As [`check`].
pub fn check_growth(bytes: usize) -> Result<(), OutOfMemory> {
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

/// The same for a buffer that a library will allocate in one piece, aborting if it cannot. This also
/// tries the allocation.
///
/// # Errors
/// As [`check`], or the system refuses the allocation.
pub fn probe(bytes: usize) -> Result<(), OutOfMemory> {
    check(bytes)?;
    let refused = |_: TryReserveError| OutOfMemory::of(bytes);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(refused)
}

/// # Errors
/// There is no memory; `numbers` is then unchanged.
pub fn ensure_len<T: Clone>(numbers: &mut Vec<T>, len: usize, value: T) -> Result<(), OutOfMemory> {
    if numbers.len() < len {
        ensure_capacity(numbers, len)?;
        numbers.resize(len, value);
    }
    Ok(())
}

/// Makes sure that `numbers` can grow to `len` without an allocation.
///
/// # Errors
/// As [`ensure_len`].
pub fn ensure_capacity<T>(numbers: &mut Vec<T>, len: usize) -> Result<(), OutOfMemory> {
    if numbers.capacity() < len {
        let bytes = len.saturating_mul(size_of::<T>());
        check(bytes)?;
        let refused = |_: TryReserveError| OutOfMemory::of(bytes);
        numbers.try_reserve(len - numbers.len()).map_err(refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_size_is_refused_with_both_sizes() {
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
        assert!(ensure_len(&mut numbers, 1 << 58, 0.0).is_err());
        assert!(ensure_len(&mut numbers, usize::MAX, 0.0).is_err());
        assert_eq!(numbers, [1.0]);
        ensure_len(&mut numbers, 3, 2.0).expect("there is memory for three numbers");
        assert_eq!(numbers, [1.0, 2.0, 2.0]);
        ensure_len(&mut numbers, 2, 0.0).expect("it is long enough");
        assert_eq!(numbers.len(), 3);
    }
}
