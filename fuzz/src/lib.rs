//! What the targets share: the entry, and a limit of allocations.
//!
//! libFuzzer's `-malloc_limit_mb` needs a sanitizer. This allocator has the same limit in any build.

use std::alloc::{GlobalAlloc, Layout, System};

pub use libfuzzer_sys;

/// The largest allocation in bytes. No input is larger than a few thousand bytes, so a larger one follows from a
/// number that the input claims.
const LARGEST: usize = 512 << 20;

struct Limited;

impl Limited {
    fn check(size: usize) {
        if size > LARGEST {
            // libFuzzer keeps the input of a process that aborts.
            std::process::abort();
        }
    }
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::check(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static LIMITED: Limited = Limited;

/// The fuzzer's entry for a target of `flowbench::fuzzing`.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        use $crate::libfuzzer_sys;

        libfuzzer_sys::fuzz_target!(|data: &[u8]| flowbench::fuzzing::run($name, data));
    };
}
