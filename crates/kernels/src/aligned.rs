//! Fixed-length buffers for what every pass reads: they start on a cache line, and lie in huge pages
//! where the system has them.
//!
//! Decoding reads all weights for each token, and keys and values from all over their pool. With pages
//! of 4 KiB most of these reads miss the table of translations, and on a virtual machine a miss walks
//! two page tables: one sequence decoded 1.2–1.3 times as fast with huge pages on two Zen 4 cores.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use crate::memory::OutOfMemory;

/// Numbers for which all bits zero is a value.
///
/// # Safety
/// All bit patterns of the type are valid and it has no destructor.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for i16 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Bytes of a huge page on x86-64, and on 64-bit ARM with pages of 4 KiB.
pub(super) const HUGE: usize = 2 << 20;

/// Bytes of a region that small buffers share.
const REGION: usize = 32 << 20;

/// Buffers below this have a region of their own only if nothing is left in the shared one.
const SHARED: usize = REGION / 4;

/// `len` elements from a 64-byte boundary on, zero at first. They come straight from the operating
/// system, so an unused part costs no memory.
pub(crate) struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the memory mapped: it goes back with the last buffer in it.
    _region: Option<Arc<Region>>,
}

/// Memory from the operating system, given out from its start on and never twice.
struct Region {
    map: MmapMut,
    /// Where the first huge page starts.
    first: usize,
}

/// The region that small buffers are taken from, and how much of it is taken.
static CURRENT: Mutex<Option<(Arc<Region>, usize)>> = Mutex::new(None);

impl Region {
    /// At least `bytes` bytes of zeros.
    fn new(bytes: usize) -> Result<Arc<Self>, OutOfMemory> {
        let refused = || OutOfMemory::of(bytes);
        let length = bytes.checked_add(HUGE).ok_or_else(refused)?;
        let map = MmapMut::map_anon(length).map_err(|_| refused())?;
        // A wish: without it, or without huge pages, the memory is as good, and slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let first = map.as_ptr().align_offset(HUGE).min(HUGE);
        Ok(Arc::new(Self { map, first }))
    }

    /// Where byte `at` of the usable part is.
    fn at(&self, at: usize) -> *mut u8 {
        self.map.as_ptr().wrapping_add(self.first + at).cast_mut()
    }

    /// A region and a place in it for so many bytes, which nobody else has.
    fn take(bytes: usize) -> Result<(Arc<Self>, usize), OutOfMemory> {
        if bytes > SHARED {
            return Ok((Self::new(bytes)?, 0));
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((region, taken)) = current.as_mut()
            && *taken + bytes <= REGION
        {
            let at = *taken;
            *taken += bytes.next_multiple_of(LINE);
            return Ok((Arc::clone(region), at));
        }
        let region = Self::new(REGION)?;
        *current = Some((Arc::clone(&region), bytes.next_multiple_of(LINE)));
        Ok((region, 0))
    }
}

impl<T: Plain> Aligned<T> {
    /// A buffer without elements.
    pub(crate) const fn empty() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
            _region: None,
        }
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// The system gives no memory for it.
    pub(crate) fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        let refused = || OutOfMemory::of(len.saturating_mul(size_of::<T>()));
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(refused)?;
        if bytes == 0 {
            return Ok(Self::empty());
        }
        let (region, at) = Region::take(bytes)?;
        Ok(Self {
            start: NonNull::new(region.at(at).cast()).ok_or_else(refused)?,
            len,
            _region: Some(region),
        })
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` elements, zeros at first, which are values, and mapped
        // for as long as the region lives; nobody else has them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: it owns plain numbers, as a `Vec` does.
unsafe impl<T: Plain + Send> Send for Aligned<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain + Sync> Sync for Aligned<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    fn bytes_of<T: Plain>(buffer: &Aligned<T>) -> Range<usize> {
        let range = buffer.as_ptr_range();
        range.start.addr()..range.end.addr()
    }

    #[test]
    fn buffers_are_zero_aligned_and_apart() {
        let mut buffers: Vec<Aligned<u16>> = [1, 31, 32, 33, 100_000, 1 << 20, 5 << 20, 0]
            .map(|len| Aligned::zeroed(len).expect("there is memory"))
            .into();
        for (value, buffer) in (1u16..).zip(&mut buffers) {
            assert!(buffer.iter().all(|number| *number == 0));
            assert!(buffer.is_empty() || bytes_of(buffer).start.is_multiple_of(LINE));
            buffer.fill(value);
        }
        for (value, buffer) in (1u16..).zip(&buffers) {
            assert!(buffer.iter().all(|number| *number == value), "{value}");
        }
    }

    #[test]
    fn large_buffers_start_with_a_huge_page_and_go_back() {
        let buffer = Aligned::<u8>::zeroed(SHARED + 1).expect("there is memory");
        assert!(bytes_of(&buffer).start.is_multiple_of(HUGE));
        let region = Arc::downgrade(buffer._region.as_ref().expect("a region"));
        drop(buffer);
        assert!(region.upgrade().is_none());
    }

    #[test]
    fn a_size_that_no_system_has_is_an_error() {
        for len in [usize::MAX, usize::MAX / 4, 1 << 60] {
            assert!(Aligned::<f32>::zeroed(len).is_err());
        }
    }

    #[test]
    fn many_small_buffers_use_up_regions() {
        let buffers: Vec<Aligned<f32>> = (0..40)
            .map(|_| Aligned::zeroed(1 << 19).expect("there is memory"))
            .collect();
        let mut ranges: Vec<Range<usize>> = buffers.iter().map(bytes_of).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
