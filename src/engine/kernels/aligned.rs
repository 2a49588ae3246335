//! A fixed-length buffer that starts on a cache line.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

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
unsafe impl Plain for f32 {}

/// `len` elements from a 64-byte boundary on, zero at first. Fresh zero pages come straight from the
/// operating system, so an unused part costs no memory.
pub(crate) struct Aligned<T: Plain> {
    allocation: NonNull<u8>,
    start: NonNull<T>,
    len: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl<T: Plain> Aligned<T> {
    /// A buffer of zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is at least `LINE`.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the layout has room for moving the start up to the next line.
        let start = unsafe { allocation.add(allocation.as_ptr().align_offset(LINE)) }.cast();
        Self {
            allocation,
            start,
            len,
        }
    }

    /// A line too long rather than aligned to a line: the allocator takes an over-aligned zeroed
    /// buffer from used memory and clears it, and a plain one from fresh pages.
    fn layout(len: usize) -> Layout {
        let bytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(LINE));
        match bytes.map(|bytes| Layout::from_size_align(bytes, align_of::<T>())) {
            Some(Ok(layout)) => layout,
            _ => panic!("a buffer of {len} elements is larger than the address space"),
        }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout.
        unsafe { dealloc(self.allocation.as_ptr(), Self::layout(self.len)) }
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` initialised elements .
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
