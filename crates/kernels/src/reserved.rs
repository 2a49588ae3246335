//! Memory that grows in place: addresses for all of it are reserved at once, and the memory itself is
//! taken from the system as it is needed.
//!
//! What lies in it never moves, and stands at one distance from the start however it grew, so whoever
//! reads it computes addresses as in an array. Reserved addresses cost nothing and count against no
//! limit of memory; taking memory can fail, and then nothing has changed.

use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::aligned::{HUGE, Plain};
use crate::memory::{self, OutOfMemory};

/// A growing array. It starts with a huge page, and dereferences to the elements that there is memory
/// for, zero at first.
pub(crate) struct Reserved<T: Plain> {
    /// The mapping, `mapped` bytes of addresses.
    map: *mut std::ffi::c_void,
    mapped: usize,
    /// The first element: the first huge page in the mapping.
    start: NonNull<T>,
    /// Most elements.
    capacity: usize,
    /// Elements that there is memory for.
    len: usize,
    /// Bytes that memory is taken in.
    slab: usize,
}

impl<T: Plain> Reserved<T> {
    /// Addresses for `capacity` elements, and no memory. It will be taken in pieces of `slab` bytes or
    /// more.
    ///
    /// # Errors
    /// The system has no room for so many addresses (`ulimit -v`, a size beyond the address space).
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
        // Whole huge pages, and one more to find the first of them.
        let mapped = bytes
            .checked_next_multiple_of(HUGE)
            .and_then(|bytes| bytes.checked_add(HUGE))
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .ok_or_else(failed)?;
        // SAFETY: a new mapping, at an address of the system's choice.
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
        // A wish: without it, or without huge pages, the memory is as good, and slower.
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping is this value's own, and the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(map, mapped, rustix::mm::Advice::LinuxHugepage) };
        let first = map.cast::<u8>().align_offset(HUGE).min(HUGE);
        let start = map.cast::<u8>().wrapping_add(first).cast::<T>();
        reserved.start = NonNull::new(start).ok_or_else(failed)?;
        Ok(reserved)
    }

    /// Makes sure that there is memory for `len` elements. There may then be memory for more.
    ///
    /// # Errors
    /// There is too little memory, or `len` is more than the capacity; then nothing has changed.
    pub(crate) fn grow_to(&mut self, len: usize) -> Result<(), OutOfMemory> {
        if len <= self.len {
            return Ok(());
        }
        let size = size_of::<T>();
        if len > self.capacity {
            return Err(OutOfMemory::of(len.saturating_mul(size)));
        }
        let have = (self.len * size).next_multiple_of(HUGE);
        let least = (len * size).next_multiple_of(HUGE);
        let most = (self.capacity * size).next_multiple_of(HUGE);
        let wish = least.next_multiple_of(self.slab).min(most);
        // Where memory is short, no more than is needed.
        let taken = match self.take(have, wish) {
            Err(_) if wish > least => self.take(have, least).map(|()| least),
            taken => taken.map(|()| wish),
        }?;
        self.len = (taken / size).min(self.capacity);
        Ok(())
    }

    /// Takes the memory from byte `have` to byte `end`, both multiples of a huge page.
    fn take(&self, have: usize, end: usize) -> Result<(), OutOfMemory> {
        if end <= have {
            return Ok(());
        }
        memory::check_growth(end - have)?;
        let at = self.start.as_ptr().cast::<u8>().wrapping_add(have);
        // SAFETY: these bytes are in the mapping, which is this value's own, and nobody has a
        // reference to them yet.
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
            // SAFETY: the mapping is this value's own, and nobody has a reference into it any more.
            let _ = unsafe { munmap(self.map, self.mapped) };
        }
    }
}

impl<T: Plain> Deref for Reserved<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: there is memory for `len` elements from `start` on, zeros at first, which are values;
        // nobody else has them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Reserved<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for writing.
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
    fn far_more_addresses_than_memory_can_be_reserved_and_used_from_the_start() {
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
    fn what_cannot_be_had_is_an_error_and_changes_nothing() {
        assert!(Reserved::<f32>::new(usize::MAX, HUGE).is_err());
        assert!(Reserved::<f32>::new(usize::MAX / 8, HUGE).is_err());
        let mut numbers = Reserved::<u8>::new(8 << 40, HUGE).expect("addresses");
        numbers.grow_to(10).expect("a huge page");
        // More than any machine has, and more than was reserved.
        if cfg!(target_os = "linux") {
            assert!(numbers.grow_to(8 << 40).is_err());
        }
        assert!(numbers.grow_to((8 << 40) + 1).is_err());
        assert_eq!(numbers.len(), HUGE);
        let mut none = Reserved::<f32>::new(0, HUGE).expect("nothing");
        assert!(none.grow_to(0).is_ok() && none.grow_to(1).is_err() && none.is_empty());
    }

    proptest! {
        /// However it grows, it holds what was asked for, never more than its capacity, and keeps what
        /// was written.
        #[test]
        fn what_was_written_stays(
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
