//! Memory that grows in place: all addresses are reserved at once, and memory is committed as it is
//! needed.
//!
//! Elements never move, so readers can compute addresses as in an array. Reserved addresses cost
//! nothing and count against no memory limit. Committing memory can fail; then nothing has changed.

use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::aligned::{HUGE, Plain};
use crate::memory::{self, OutOfMemory};

/// A growing array, aligned to a huge page. It dereferences to the committed elements, which start as
/// zeros.
pub(crate) struct Reserved<T: Plain> {
    /// The mapping: `mapped` bytes of addresses.
    map: *mut std::ffi::c_void,
    mapped: usize,
    /// The first element, at the first huge-page boundary of the mapping.
    start: NonNull<T>,
    /// Reserved elements.
    capacity: usize,
    /// Committed elements.
    len: usize,
    /// Memory is committed in multiples of this many bytes.
    slab: usize,
}

impl<T: Plain> Reserved<T> {
    /// Reserves addresses for `capacity` elements and commits no memory. Memory will be committed in
    /// multiples of `slab` bytes, rounded up to huge pages.
    ///
    /// # Errors
    /// The address range is refused (`ulimit -v`, or a size beyond the address space).
    pub(crate) fn new(capacity: usize, slab: usize) -> Result<Self, OutOfMemory> {
        let failed = || OutOfMemory::of(capacity.saturating_mul(size_of::<T>()));
        let mut reserved = Self {
            map: ptr::null_mut(),
            mapped: 0,
            start: NonNull::dangling(),
            capacity,
            len: 0,
            slab: slab.max(1).next_multiple_of(HUGE),
        };
        let bytes = capacity.checked_mul(size_of::<T>()).ok_or_else(failed)?;
        if bytes == 0 {
            return Ok(reserved);
        }
        // Whole huge pages, plus one for the alignment.
        let mapped = bytes
            .checked_next_multiple_of(HUGE)
            .and_then(|bytes| bytes.checked_add(HUGE))
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .ok_or_else(failed)?;
        // SAFETY: a new mapping at an address that the system chooses.
        let map = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                mapped,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }
        .map_err(|_| failed())?;
        reserved.map = map;
        reserved.mapped = mapped;
        // Only a hint: without huge pages everything works, more slowly.
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping is this value's own, and the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(map, mapped, rustix::mm::Advice::LinuxHugepage) };
        let first = map.cast::<u8>().align_offset(HUGE).min(HUGE);
        let start = map.cast::<u8>().wrapping_add(first).cast::<T>();
        reserved.start = NonNull::new(start).ok_or_else(failed)?;
        Ok(reserved)
    }

    /// Commits at least `len` elements.
    ///
    /// # Errors
    /// There is too little memory, or `len` exceeds the capacity; then nothing has changed.
    pub(crate) fn grow_to(&mut self, len: usize) -> Result<(), OutOfMemory> {
        if len <= self.len {
            return Ok(());
        }
        let size = size_of::<T>();
        if len > self.capacity {
            return Err(OutOfMemory::of(len.saturating_mul(size)));
        }
        let committed = (self.len * size).next_multiple_of(HUGE);
        let needed = (len * size).next_multiple_of(HUGE);
        let limit = (self.capacity * size).next_multiple_of(HUGE);
        let target = needed.next_multiple_of(self.slab).min(limit);
        // If memory is short, no more than is needed.
        let taken = match self.commit(committed, target) {
            Err(_) if target > needed => self.commit(committed, needed).map(|()| needed),
            taken => taken.map(|()| target),
        }?;
        self.len = (taken / size).min(self.capacity);
        Ok(())
    }

    /// Commits the bytes `have..end`, both multiples of a huge page.
    fn commit(&self, have: usize, end: usize) -> Result<(), OutOfMemory> {
        if end <= have {
            return Ok(());
        }
        memory::check_growth(end - have)?;
        let at = self.start.as_ptr().cast::<u8>().wrapping_add(have);
        // SAFETY: these bytes are in the mapping, which this value owns, and nobody has a reference to
        // them yet.
        unsafe {
            mprotect(
                at.cast(),
                end - have,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
        }
        .map_err(|_| OutOfMemory::of(end - have))
    }
}

impl<T: Plain> Drop for Reserved<T> {
    fn drop(&mut self) {
        if self.mapped > 0 {
            // SAFETY: this value owns the mapping, and no reference into it is left.
            let _ = unsafe { munmap(self.map, self.mapped) };
        }
    }
}

impl<T: Plain> Deref for Reserved<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements from `start` on are committed; they start as zeros, which are valid
        // values; nobody else uses them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Reserved<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: it owns plain numbers, as a `Vec` does.
unsafe impl<T: Plain + Send> Send for Reserved<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain + Sync> Sync for Reserved<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn far_more_addresses_than_memory_can_be_reserved() {
        // 16 TiB.
        let mut numbers = Reserved::<u16>::new(8 << 40, 32 << 20).expect("addresses");
        assert!(numbers.is_empty());
        numbers.grow_to(100).expect("a slab");
        assert_eq!(numbers.len(), 16 << 20);
        assert!(numbers.as_ptr().addr().is_multiple_of(HUGE));
        numbers[99] = 7;
        let start = numbers.as_ptr();
        numbers.grow_to((16 << 20) + 1).expect("another slab");
        assert_eq!(numbers.len(), 32 << 20);
        assert_eq!((numbers.as_ptr(), numbers[99]), (start, 7));
        assert_eq!(numbers[32 << 19], 0);
    }

    #[test]
    fn a_refused_reservation_or_growth_changes_nothing() {
        assert!(Reserved::<f32>::new(usize::MAX, HUGE).is_err());
        assert!(Reserved::<f32>::new(usize::MAX / 8, HUGE).is_err());
        let mut numbers = Reserved::<u8>::new(8 << 40, HUGE).expect("addresses");
        numbers.grow_to(10).expect("a huge page");
        // More than any machine has, then more than was reserved.
        if cfg!(target_os = "linux") {
            assert!(numbers.grow_to(8 << 40).is_err());
        }
        assert!(numbers.grow_to((8 << 40) + 1).is_err());
        assert_eq!(numbers.len(), HUGE);
        let mut none = Reserved::<f32>::new(0, HUGE).expect("nothing");
        assert!(none.grow_to(0).is_ok() && none.grow_to(1).is_err() && none.is_empty());
    }

    proptest! {
        /// However it grows, it holds at least the requested length, never more than its capacity, and
        /// keeps what was written.
        #[test]
        fn growth_keeps_what_was_written(
            capacity in 1usize..3_000_000,
            steps in prop::collection::vec(0usize..3_500_000, 1..8),
        ) {
            let mut numbers = Reserved::<f32>::new(capacity, 1).expect("addresses");
            let mut written = Vec::new();
            for len in steps {
                let before = numbers.len();
                match numbers.grow_to(len) {
                    Ok(()) => prop_assert!(len <= numbers.len() && numbers.len() <= capacity),
                    Err(_) => prop_assert!(len > capacity && numbers.len() == before),
                }
                if let Some(last) = numbers.len().checked_sub(1) {
                    numbers[last] = last as f32;
                    written.push(last);
                }
                for at in &written {
                    prop_assert_eq!(numbers[*at], *at as f32);
                }
            }
        }
    }
}
