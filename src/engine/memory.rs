//! Memory whose size a model file or a setting decides: it is asked for so that the answer can be no,
//! and compared with what there is before it is used.
//!
//! Linux promises more memory than it has, and ends a process that takes the promise up. So sizes are
//! compared with what is available first; the allocation itself is fallible besides, for limits
//! (`ulimit -v`) and systems that promise no more than they have.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::TryReserveError;
use std::fmt;
use std::path::Path;

use crate::environment::{AvailableMemory, available_memory};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Left to the rest of the process and the system when memory is taken bit by bit.
const RESERVE: u64 = 64 << 20;

/// Sizes below this are not worth asking the system about.
const SMALL: usize = 16 << 20;

/// No memory for a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfMemory {
    /// The buffer's size in bytes.
    pub(crate) bytes: usize,
    /// What there was, where that is known to be too little.
    available: Option<AvailableMemory>,
}

impl OutOfMemory {
    /// A buffer of so many bytes was refused.
    pub(crate) fn of(bytes: usize) -> Self {
        Self {
            bytes,
            available: None,
        }
    }

    /// Ends the process, as the standard library does: for small buffers, where there is no way to go
    /// on and nobody to tell.
    pub(crate) fn abort(self) -> ! {
        let layout = Layout::from_size_align(self.bytes, 64);
        handle_alloc_error(layout.unwrap_or(Layout::new::<u8>()))
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Bytes(self.bytes as u64);
        match self.available {
            None => write!(f, "the system gives no memory for {bytes}"),
            Some(available) => write!(
                f,
                "{bytes} are needed, and {} {}",
                available.source,
                Bytes(available.bytes)
            ),
        }
    }
}

impl std::error::Error for OutOfMemory {}

/// Whether so many bytes can be taken now, with something left for everybody else.
///
/// # Errors
/// What there is, where it is too little.
pub(crate) fn check(bytes: usize) -> Result<(), OutOfMemory> {
    if bytes < SMALL {
        return Ok(());
    }
    check_growth(bytes)
}

/// The same, however few they are: for what grows bit by bit.
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

/// The same for a buffer that a library will allocate at once, and end the process where it cannot.
///
/// # Errors
/// As [`check`], or where the system would refuse.
pub(crate) fn probe(bytes: usize) -> Result<(), OutOfMemory> {
    check(bytes)?;
    let refused = |_: TryReserveError| OutOfMemory::of(bytes);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(refused)
}

/// Makes `numbers` at least `len` long.
///
/// # Errors
/// Where there is no memory; then nothing has changed.
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

/// Makes sure that `numbers` can become `len` long without asking for memory.
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

/// Half of the memory that is available, in bytes; 0 where the system does not tell.
pub(crate) fn half_of_available() -> usize {
    let half = available_memory().map_or(0, |available| available.bytes / 2);
    usize::try_from(half).unwrap_or(usize::MAX)
}

/// Whether a model's weights fit, before they are read.
///
/// # Errors
/// Exit code 3, with both sizes.
pub(crate) fn check_weights(path: &Path, bytes: usize) -> Result<()> {
    check(bytes).map_err(|source| {
        Error::preflight(format!(
            "the weights of `{}` do not fit in memory",
            path.display()
        ))
        .caused_by(source)
        .hint("take a smaller model or a smaller quantisation of it, or end what else uses memory")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_with_both_sizes() {
        let error = check(1 << 60).expect_err("no machine has that");
        let text = error.to_string();
        if cfg!(target_os = "linux") {
            assert!(text.starts_with("1024.0 PiB are needed, and "), "{text}");
        }
        assert!(probe(1 << 60).is_err());
        assert!(probe(usize::MAX).is_err());
        assert!(check(1 << 10).is_ok() && probe(1 << 10).is_ok());
    }

    #[test]
    fn a_buffer_that_cannot_grow_stays_as_it_was() {
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
    fn weights_that_do_not_fit_are_told_with_a_hint() {
        let error = check_weights(Path::new("m.gguf"), 1 << 60).err();
        if cfg!(target_os = "linux") {
            let report = error.expect("no machine has that").report();
            assert!(report.contains("the weights of `m.gguf` do not fit in memory"));
            assert!(report.contains("1024.0 PiB are needed, and "), "{report}");
            assert!(report.contains("hint: take a smaller model"), "{report}");
        }
    }
}
